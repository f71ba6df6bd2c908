"""The checks of `plumbline doctor`: versions, services, disk, GPU and file rights."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
from packaging.requirements import Requirement

from plumbline.data_contracts.errors import PlumblineError, RegistryError, UsageError
from plumbline.data_contracts.private_files import close_to_others, open_to_others
from plumbline.data_contracts.secrets import mask
from plumbline.flows.cli.access_checks import open_services, public_files
from plumbline.flows.graph.workspaces import find_workspace
from plumbline.tasks.params.layers import load_params
from plumbline.tasks.registry.store.client import Store, store_uri
from plumbline.tasks.storage.versioning.objects import ObjectStore
from plumbline.tasks.storage.versioning.workspace import Versions

_MIN_FREE_GB = 2.0
RAW = "data/raw"


@dataclass(frozen=True, slots=True)
class DoctorFinding:
    """One thing that was looked at. `advice` says what to do where it is not well."""

    name: str
    ok: bool
    found: str
    advice: str = ""


def examine(folder: Path) -> list[DoctorFinding]:
    """Every finding."""
    return [finding for look in _LOOKS for finding in look(folder)]


def mend(folder: Path) -> None:
    """Close files to other users. Bring back batches of the raw store that were changed or removed by hand."""
    root, inbox = _places(folder)
    close_to_others(root, inbox)
    Versions(root).mend_tracked(RAW, root / ".plumbline" / "set-aside")


def _versions(folder: Path) -> Iterator[DoctorFinding]:
    for text in importlib.metadata.requires("plumbline") or []:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield DoctorFinding(requirement.name, False, "not installed", "run `make setup`, or reinstall plumbline")
            continue
        fits = requirement.specifier.contains(found, prereleases=True)
        advice = "" if fits else f"tested with {requirement.specifier}; run `make setup`"
        yield DoctorFinding(requirement.name, fits, found, advice)


def _git(folder: Path) -> Iterator[DoctorFinding]:
    path = shutil.which("git")
    if path is None:
        yield DoctorFinding("git", False, "not found", "install git and put it on PATH")
        return
    version = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout.strip()
    yield DoctorFinding("git", True, version)


def _workspace(folder: Path) -> Iterator[DoctorFinding]:
    try:
        root = find_workspace(folder)
        load_params(root)
    except PlumblineError as error:
        yield DoctorFinding("workspace", False, "not usable", str(error))
        return
    yield DoctorFinding("workspace", True, str(root))


def _private_files(folder: Path) -> Iterator[DoctorFinding]:
    """Check that prompts, feedback, traffic and models are closed to other users of this machine."""
    try:
        root, inbox = _places(folder)
    except PlumblineError as error:
        yield DoctorFinding("private files", False, "unknown", str(error))
        return
    found = open_to_others(root, inbox)
    if not found:
        yield DoctorFinding("private files", True, "others can read none")
        return
    example = f"{len(found)} open to others, such as {found[0].relative_to(root)}"
    yield DoctorFinding(
        "private files", False, example, "run `plumbline doctor --fix`, as the user whose files they are"
    )


def _raw_store(folder: Path) -> Iterator[DoctorFinding]:
    """Check that the batches of the append-only raw store are as they came in."""
    try:
        changed = Versions(find_workspace(folder)).changed_tracked(RAW)
    except PlumblineError as error:
        yield DoctorFinding("raw store", False, "unknown", str(error))
        return
    found = f"changed or removed by hand: {', '.join(changed[:3])}" if changed else "as it came in"
    advice = "`plumbline doctor --fix` brings the recorded bytes back and sets changed ones aside" if changed else ""
    yield DoctorFinding("raw store", not changed, found, advice)


def _places(folder: Path) -> tuple[Path, Path]:
    """The workspace and its inbox."""
    root = find_workspace(folder)
    return root, root / load_params(root)[0].intake.inbox


def _disk(folder: Path) -> Iterator[DoctorFinding]:
    free = shutil.disk_usage(folder if folder.exists() else Path()).free / 1e9
    advice = "" if free >= _MIN_FREE_GB else f"free at least {_MIN_FREE_GB:.0f} GB"
    yield DoctorFinding("disk", free >= _MIN_FREE_GB, f"{free:.1f} GB free", advice)


def _prefect(folder: Path) -> Iterator[DoctorFinding]:
    url = os.environ.get("PREFECT_API_URL")
    if url is None:
        yield DoctorFinding("prefect", True, "no PREFECT_API_URL: a temporary server a run")
        return
    try:
        answer = httpx.get(f"{url}/health", timeout=3).raise_for_status()
        yield DoctorFinding("prefect", answer.status_code == 200, f"{url} answers {answer.status_code}")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        yield DoctorFinding("prefect", False, f"{url}: {error}", "start the server, or unset PREFECT_API_URL")


def _access(folder: Path) -> Iterator[DoctorFinding]:
    """Check that files with credentials are private, and that every service that runs asks for some."""
    try:
        root = find_workspace(folder)
        params, _ = load_params(root)
        files, services = public_files(root, params), open_services(root, params)
    except PlumblineError as error:
        yield DoctorFinding("access", False, "unknown", str(error))
        return
    advice = "make new credentials if others may have read them, else `chmod 600` the file and `chmod 700` its folder"
    yield DoctorFinding("credential files", not files, "; ".join(files) or "private", advice if files else "")
    told = "`plumbline down`, then `plumbline up`; the threat model in docs/ says what stands open" if services else ""
    yield DoctorFinding(
        "access to services", not services, "; ".join(services) or "all that run ask for credentials", told
    )


def _mlflow(folder: Path) -> Iterator[DoctorFinding]:
    try:
        root = find_workspace(folder)
        registry = load_params(root)[0].registry
        uri = store_uri(root, registry)
        if uri.startswith("http"):
            # the client itself would try again for minutes
            httpx.get(f"{mask(uri).rstrip('/')}/health", timeout=3).raise_for_status()
        elif registry.tracking_uri is not None or (root / ".plumbline" / "mlflow.db").exists():
            Store(root, registry, read_only=True)
        yield DoctorFinding("mlflow store", True, mask(uri))
    except UsageError as error:
        yield DoctorFinding("mlflow store", False, "unknown", str(error))
    except (RegistryError, OSError, httpx.HTTPError, httpx.InvalidURL) as error:
        yield DoctorFinding(
            "mlflow store", False, str(error), "start it, or correct registry.tracking_uri in params.yaml"
        )


def _remote(folder: Path) -> Iterator[DoctorFinding]:
    try:
        url = ObjectStore(find_workspace(folder)).remote_url
    except PlumblineError as error:
        yield DoctorFinding("dvc remote", False, "unknown", str(error))
        return
    lost = url is None or (url.startswith("/") and not Path(url).is_dir())
    advice = "`dvc remote add --default storage URL`, or mount the folder" if lost else ""
    yield DoctorFinding("dvc remote", not lost, mask(url or "none"), advice)


def _gpu(folder: Path) -> Iterator[DoctorFinding]:
    import torch

    found = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none: training runs on the CPU"
    yield DoctorFinding("gpu", True, found)


_LOOKS: tuple[Callable[[Path], Iterator[DoctorFinding]], ...] = (
    _versions,
    _git,
    _workspace,
    _private_files,
    _raw_store,
    _disk,
    _prefect,
    _access,
    _mlflow,
    _remote,
    _gpu,
)
