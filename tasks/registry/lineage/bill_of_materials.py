"""A version as a CycloneDX 1.6 ML-BOM: the model with its card, the data it was made from, the libraries it ran on.

cyclonedx-python-lib has no model card and no component data yet (it passes over them in its own model), so these two
parts are added to the JSON it writes; tests hold the whole to the library's validator of schema 1.6.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import orjson

from plumbline.data_contracts.extras import needs_extra
from plumbline.tasks.registry.lineage.build import DescribedVersion

with needs_extra("cyclonedx", "CycloneDX bill of materials"):
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output import make_outputter
    from cyclonedx.schema import OutputFormat, SchemaVersion
    from packageurl import PackageURL

_IDS = uuid.UUID("5a7d3f52-8c0e-5d0b-b3a9-70a9f4f6c3d1")
_MODELS = ("reference", "base", "reward")
_DATA = ("raw", "world", "validated", "curated")
_LEARNING = {"ppo": "reinforcement-learning", "grpo": "reinforcement-learning"}


def render_bom(manifest: Mapping[str, Any], about: DescribedVersion) -> bytes:
    """The bill as JSON. The same version gives the same bytes while its aliases stay."""
    bom = Bom(serial_number=uuid.uuid5(_IDS, about.manifest_sha256))
    bom.metadata.timestamp = datetime.fromisoformat(about.registered_at)
    model = _model(manifest, about)
    bom.metadata.component = model
    parts = [*_models(manifest), *_data(manifest)]
    libraries = _libraries(manifest)
    for part in [*parts, *libraries]:
        bom.components.add(part)
    bom.register_dependency(model, [*parts, *libraries])
    document: dict[str, Any] = orjson.loads(
        make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string()
    )
    document["metadata"]["component"]["modelCard"] = _card(manifest)
    for component in document["components"]:
        if component["type"] == "data":
            component["data"] = [_component_data(component, manifest)]
    return orjson.dumps(document, option=orjson.OPT_INDENT_2) + b"\n"


def _model(manifest: Mapping[str, Any], about: DescribedVersion) -> Component:
    weights = [
        HashType(alg=HashAlgorithm.SHA_256, content=entry["sha256"])
        for name, entry in sorted(manifest["files"].items())
        if name.startswith("model/") and name.endswith(".safetensors")
    ]
    facts = {
        "model_uri": about.model_uri,
        "manifest_sha256": about.manifest_sha256,
        "aliases": ",".join(about.aliases),
        "gate": "passed" if manifest["gate"]["passed"] else "rejected",
        "workspace_commit": manifest["git"]["commit"] or "",
        "environment_sha256": manifest["environment"]["sha256"],
    }
    return Component(
        name=manifest["model"]["name"],
        version=about.number,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=about.model_uri,
        hashes=weights[:1],  # one hash an algorithm; of a model in shards the properties name the whole
        properties=_properties(facts),
    )


def _models(manifest: Mapping[str, Any]) -> Iterable[Component]:
    for role in _MODELS:
        if role in manifest["objects"]:
            yield _object(manifest, role, ComponentType.MACHINE_LEARNING_MODEL)


def _data(manifest: Mapping[str, Any]) -> Iterable[Component]:
    for role in _DATA:
        if role in manifest["objects"]:
            yield _object(manifest, role, ComponentType.DATA)


def _object(manifest: Mapping[str, Any], role: str, kind: ComponentType) -> Component:
    entry, run = manifest["objects"][role], manifest["as_run"].get(role, {})
    facts = {"role": role, "path": entry["path"], "dvc_md5": entry["md5"], "artifact_sha256": entry["digest"] or ""}
    facts |= {name: str(run[name]) for name in ("source", "revision") if run.get(name)}
    return Component(
        name=entry["path"], version=entry["md5"], type=kind, bom_ref=f"object:{role}", properties=_properties(facts)
    )


def _libraries(manifest: Mapping[str, Any]) -> list[Component]:
    return [
        Component(
            name=name,
            version=version,
            type=ComponentType.LIBRARY,
            bom_ref=f"pypi:{name}@{version}",
            purl=PackageURL("pypi", None, name, version),
        )
        for name, version in manifest["environment"]["packages"].items()
    ]


def _properties(facts: Mapping[str, str]) -> list[Property]:
    return [Property(name=f"plumbline:{name}", value=value) for name, value in facts.items() if value]


def _card(manifest: Mapping[str, Any]) -> dict[str, Any]:
    run = manifest["as_run"].get("finetune", {})
    method = str(run.get("method", ""))
    datasets = [{"ref": f"object:{role}"} for role in _DATA if role in manifest["objects"]]
    base = manifest["as_run"].get("base", {})
    learning = next((kind for name, kind in _LEARNING.items() if name in method.split("+")), "supervised")
    parameters: dict[str, Any] = {
        "approach": {"type": learning},
        "task": "text generation",
        "architectureFamily": "transformer",
        "datasets": datasets,
        "inputs": [{"format": "text"}],
        "outputs": [{"format": "text"}],
    }
    if base.get("architecture"):
        parameters["modelArchitecture"] = str(base["architecture"])
    reasons = [reason["text"] for reason in manifest["gate"]["reasons"]]
    card: dict[str, Any] = {"modelParameters": parameters}
    metrics = list(_metrics(manifest["evaluation"]))
    if metrics:
        card["quantitativeAnalysis"] = {"performanceMetrics": metrics}
    card["considerations"] = {"technicalLimitations": reasons} if reasons else {}
    card["properties"] = [{"name": "plumbline:method", "value": method}]
    return card


def _metrics(values: Mapping[str, Any], prefix: str = "") -> Iterable[dict[str, Any]]:
    """Figures with an interval, as performance metrics."""
    for name, value in values.items():
        if not isinstance(value, Mapping):
            continue
        if {"value", "low", "high"} <= value.keys():
            interval = {"lowerBound": str(value["low"]), "upperBound": str(value["high"])}
            yield {"type": f"{prefix}{name}", "value": str(value["value"]), "confidenceInterval": interval}
        else:
            yield from _metrics(value, f"{prefix}{name}.")


def _component_data(component: Mapping[str, Any], manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Counts of a dataset, as its contents; what is in it came from people."""
    role = component["bom-ref"].removeprefix("object:")
    lines = manifest.get("accounts", {}).get(role, {}).get("lines", {})
    contents = [{"name": f"records:{name}", "value": str(counts["all"])} for name, counts in lines.items()]
    contents.append({"name": "dvc_md5", "value": component["version"]})
    return {"type": "dataset", "name": component["name"], "contents": {"properties": contents}}
