"""What stands in infra/ and cannot run here (Docker, Kubernetes, GPUs): held to its schemas and to the lock."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from packaging.requirements import Requirement
from ruamel.yaml import YAML

INFRA = Path(__file__).resolve().parents[2] / "infra"
ROOT = INFRA.parent
SECRET = re.compile(r"(PASSWORD|SECRET|KEY|TOKEN)")


def _yaml(path: Path) -> list[dict[str, Any]]:
    return list(YAML(typ="safe").load_all(path.read_text()))


# --- compose ---------------------------------------------------------------------------------------------------------


def _check_compose(path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    (document,) = _yaml(INFRA / "compose.yaml")
    return document


def test_compose_is_valid(tmp_path: Path) -> None:
    done = _check_compose(INFRA / "compose.yaml")
    assert done.returncode == 0, done.stdout
    broken = tmp_path / "compose.yaml"
    broken.write_text((INFRA / "compose.yaml").read_text().replace("depends_on:", "depend_on:", 1))
    assert _check_compose(broken).returncode == 1


def test_compose_has_the_services_and_each_is_asked_for_its_health(compose: dict[str, Any]) -> None:
    services = compose["services"]
    wanted = {"postgres", "redis", "s3", "prefect-server", "prefect-services", "worker", "mlflow"}
    assert set(services) == wanted
    assert {name for name, service in services.items() if "healthcheck" not in service} == {"prefect-services"}
    for service in services.values():
        for name, condition in service.get("depends_on", {}).items():
            assert condition == {"condition": "service_healthy"}
            assert "healthcheck" in services[name]
        assert service["env_file"] == ["plumbline.env"]


def test_compose_opens_loopback_alone_and_pins_every_image(compose: dict[str, Any]) -> None:
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert len(ports) == 3
    assert all(port.startswith("127.0.0.1:") for port in ports)
    for service in compose["services"].values():
        assert re.search(r":v?\d+\.\d+", service["image"]), service["image"]


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _leaves(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item, key)
    else:
        yield key, value


def test_compose_holds_no_secret(compose: dict[str, Any]) -> None:
    """Whatever is named as a secret, and every password in a URL, is asked of the environment and refused if unset."""
    held = [(key, str(value)) for key, value in _leaves(compose["services"])]
    named = [value for key, value in held if SECRET.search(key) or re.search(r"://[^/@]*:[^/@]*@", value)]
    assert len(named) >= 8
    assert all("${" in value and ":?" in value for value in named)


# --- image -----------------------------------------------------------------------------------------------------------


def _instructions() -> list[str]:
    text = re.sub(r"\\\n", " ", (INFRA / "Dockerfile").read_text())
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_the_image_installs_the_lock_and_runs_without_rights() -> None:
    lines = _instructions()
    assert {line.split()[0] for line in lines} <= {
        "FROM", "ARG", "ENV", "RUN", "WORKDIR", "COPY", "USER", "ENTRYPOINT", "CMD",
    }  # fmt: skip
    python = re.fullmatch(r"FROM python:(\d\.\d+)-slim-bookworm", lines[0])
    assert python
    assert python[1] == "3.11"
    assert any("-r requirements.lock" in line for line in lines)
    assert lines.index("USER plumbline") > max(place for place, line in enumerate(lines) if line.startswith("RUN"))
    for line in lines:
        if line.startswith("COPY"):
            assert all((ROOT / name).exists() for name in line.split()[1:-1]), line


def test_versions_of_the_project_are_the_locks(compose: dict[str, Any]) -> None:
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version
    images = [service["image"] for service in compose["services"].values() if "build" in service]
    images += re.findall(r"-t (plumbline:\S+)", (INFRA / "Dockerfile").read_text())
    images += [value for key, value in _leaves(_yaml(INFRA / "kubernetes/worker.yaml")) if key == "image"]
    images += re.findall(r'"(plumbline:[^"]+)"', (INFRA / "kubernetes/base-job-template.json").read_text())
    assert {image.removesuffix("-gpu") for image in images} == {f"plumbline:{version[1]}"}
    assert len(images) == 8


def test_what_the_images_add_is_not_in_the_lock() -> None:
    """Else the image would have another version of it than the tested one."""
    lines = (INFRA / "requirements-server.txt").read_text().splitlines()
    added = {Requirement(line).name for line in lines if not line.startswith("#")}
    locked = {line.split("==")[0].lower() for line in (ROOT / "requirements.lock").read_text().splitlines()}
    assert added
    assert not added & locked


def test_the_init_script_is_a_shell_script() -> None:
    assert subprocess.run(["sh", "-n", str(INFRA / "postgres-init.sh")], check=False).returncode == 0


# --- Kubernetes ------------------------------------------------------------------------------------------------------


def test_manifests_are_valid() -> None:
    documents = _yaml(INFRA / "kubernetes/worker.yaml")
    for document in documents:
        kubernetes_validate.validate(document, "1.32", strict=True)
    assert [document["kind"] for document in documents] == [
        "PersistentVolumeClaim", "ServiceAccount", "ServiceAccount", "Role", "RoleBinding", "Deployment",
    ]  # fmt: skip


def _template() -> dict[str, Any]:
    template: dict[str, Any] = json.loads((INFRA / "kubernetes/base-job-template.json").read_text())
    return template


def _manifest(**given: Any) -> dict[str, Any]:
    """The job that Prefect's own templating makes of the defaults and what a deployment sets."""
    from prefect.utilities.templating import apply_values

    template = _template()
    properties = template["variables"]["properties"]
    values = {name: field["default"] for name, field in properties.items() if "default" in field}
    made = apply_values(template["job_configuration"], {**values, **given}, remove_notset=True)
    manifest: dict[str, Any] = made["job_manifest"]
    # the worker adds these two: the image's command and the run's own variables
    manifest["spec"]["template"]["spec"]["containers"][0]["args"] = ["prefect", "flow-run", "execute"]
    return manifest


def test_prefect_takes_the_template() -> None:
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.utilities.schema_tools.validation import is_valid_schema, validate

    template = _template()
    WorkPoolCreate(name="kubernetes", type="kubernetes", base_job_template=template)
    is_valid_schema(template["variables"])
    validate({"gpus": 4, "memory": "200Gi"}, template["variables"], raise_on_error=True)
    assert validate({"gpus": "many"}, template["variables"]) != []
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(template["job_configuration"])))
    assert used == set(template["variables"]["properties"])


@pytest.mark.parametrize("gpus", [1, 8])
def test_the_rendered_job_is_valid_and_asks_for_gpus(gpus: int) -> None:
    manifest = _manifest(gpus=gpus)
    kubernetes_validate.validate(manifest, "1.32", strict=True)
    pod = manifest["spec"]["template"]["spec"]
    resources = pod["containers"][0]["resources"]
    assert resources["requests"]["nvidia.com/gpu"] == resources["limits"]["nvidia.com/gpu"] == gpus
    assert (pod["restartPolicy"], manifest["spec"]["backoffLimit"]) == ("Never", 0)
    manifest["spec"]["backoffLimit"] = "none"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest, "1.32", strict=True)


# --- accelerate ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "processes"),
    [("single", "NO", 1), ("ddp", "MULTI_GPU", 8), ("fsdp", "FSDP", 8), ("cpu-gloo", "MULTI_CPU", 2)],
)
def test_accelerate_loads_its_configurations(name: str, kind: str, processes: int) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    loaded = load_config_from_file(str(INFRA / "accelerate" / f"{name}.yaml"))
    assert (loaded.distributed_type.value, loaded.num_processes) == (kind, processes)
    assert loaded.use_cpu is (kind == "MULTI_CPU")
    assert bool(loaded.fsdp_config) is (kind == "FSDP")
