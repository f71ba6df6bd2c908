"""A version's lineage as OpenLineage run events: one START and one COMPLETE a stage, with a model facet of our own.

The manifest holds no clock, so every event bears the time of the registration. Run ids are uuid5 of manifest and
stage: sent twice, the events are the same.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plumbline.data_contracts.errors import OperationsError, UsageError
from plumbline.data_contracts.extras import needs_extra
from plumbline.data_contracts.private_names import require_names
from plumbline.data_contracts.secrets import mask
from plumbline.tasks.registry.lineage.build import DescribedVersion

if TYPE_CHECKING:
    from openlineage.client.transport.http import HttpTransport

with needs_extra("openlineage", "OpenLineage events"):
    import attr
    from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState
    from openlineage.client.facet_v2 import (
        DatasetFacet,
        JobFacet,
        RunFacet,
        dataset_version_dataset,
        job_type_job,
        parent_run,
        set_producer,
        source_code_location_job,
    )
    from openlineage.client.serde import Serde

require_names("openlineage-python", DatasetFacet, "_get_schema")
require_names("openlineage-python", RunFacet, "_get_schema")

NAMESPACE = "plumbline"
PRODUCER = "https://pypi.org/project/plumbline"
set_producer(PRODUCER)
_IDS = uuid.UUID("2f0c4dd6-3c1b-5f0e-9a53-1b3f2d1c7a60")
_TIMEOUT_S = 10.0
_ON_THE_WEB = ("http://", "https://")


@attr.define
class PlumblineModelDatasetFacet(DatasetFacet):
    """The facet of a registered model in a dataset event: the version, its gate, and the hashes it rests on."""

    modelUri: str = attr.field()
    manifestSha256: str = attr.field()
    gatePassed: bool = attr.field()
    methods: list[str] = attr.field()
    aliases: list[str] = attr.field()
    objects: dict[str, str] = attr.field()

    @staticmethod
    def _get_schema() -> str:
        return "urn:plumbline:openlineage:1-0-0:PlumblineModelDatasetFacet"


@attr.define
class PlumblineStageRunFacet(RunFacet):
    """The params that a stage saw, and the digest and contract of the artifact that it wrote."""

    params: dict[str, Any] = attr.field()
    artifactDigest: str | None = attr.field(default=None)
    contract: str | None = attr.field(default=None)

    @staticmethod
    def _get_schema() -> str:
        return "urn:plumbline:openlineage:1-0-0:PlumblineStageRunFacet"


def run_events(manifest: Mapping[str, Any], about: DescribedVersion) -> list[RunEvent]:
    """The events of every stage, in the order of `dvc.lock`, then those of the registration itself."""
    events = [event for name in manifest["stages"] for event in _stage_events(name, manifest, about)]
    return events + list(_registration(manifest, about))


def serialise(event: RunEvent) -> bytes:
    """One event as one line of JSON."""
    text: str = Serde.to_json(event)
    return text.encode()


def emit(events: Iterable[RunEvent], target: str) -> int:
    """Send events to a URL, or append them to a file; return how many. Raises `OperationsError`, `UsageError`."""
    events = list(events)
    if target.startswith(_ON_THE_WEB):
        transport = _http(target)
        for event in events:
            try:
                transport.emit(event).raise_for_status()
            except Exception as error:  # requests, urllib3 and the client's own each fail in a way of their own
                raise OperationsError(
                    f"{mask(target)}: expected an OpenLineage server to take the event, found: "
                    f"{mask(str(error))[:300]}. Events sent before it are kept; sending all again changes nothing."
                ) from error
        return len(events)
    try:
        with Path(target).open("ab") as file:
            file.write(b"".join(serialise(event) + b"\n" for event in events))
    except OSError as error:
        raise UsageError(f"{target}: cannot append events there ({error.strerror}). Give a file or a URL.") from error
    return len(events)


def _http(target: str) -> HttpTransport:
    from openlineage.client.transport.http import HttpConfig, HttpTransport

    return HttpTransport(HttpConfig(url=target, timeout=_TIMEOUT_S, retry={"total": 2}))


def _stage_events(name: str, manifest: Mapping[str, Any], about: DescribedVersion) -> Iterator[RunEvent]:
    stage = manifest["stages"][name]
    artifact = stage["artifact"] or {}
    facet = PlumblineStageRunFacet(
        params=dict(stage["params"]), artifactDigest=artifact.get("digest"), contract=artifact.get("contract")
    )
    inputs = [InputDataset(NAMESPACE, path, facets=_version(entry["md5"])) for path, entry in stage["deps"].items()]
    outputs = [OutputDataset(NAMESPACE, path, facets=_version(entry["md5"])) for path, entry in stage["outs"].items()]
    yield from _pair(
        f"{manifest['model']['name']}.{name}", name, manifest, about, inputs, outputs, {"plumbline": facet}
    )


def _registration(manifest: Mapping[str, Any], about: DescribedVersion) -> Iterator[RunEvent]:
    objects = manifest["objects"]
    inputs = [InputDataset(NAMESPACE, entry["path"], facets=_version(entry["md5"])) for entry in objects.values()]
    model = PlumblineModelDatasetFacet(
        modelUri=about.model_uri,
        manifestSha256=about.manifest_sha256,
        gatePassed=bool(manifest["gate"]["passed"]),
        methods=str(manifest["as_run"].get("finetune", {}).get("method", "")).split("+"),
        aliases=list(about.aliases),
        objects={role: entry["md5"] for role, entry in objects.items()},
    )
    facets = _version(about.manifest_sha256) | {"plumblineModel": model}
    outputs = [OutputDataset(NAMESPACE, about.model_uri, facets=facets)]
    yield from _pair(f"{manifest['model']['name']}.register", "register", manifest, about, inputs, outputs, {})


def _pair(
    job: str,
    stage: str,
    manifest: Mapping[str, Any],
    about: DescribedVersion,
    inputs: list[InputDataset],
    outputs: list[OutputDataset],
    facets: dict[str, RunFacet],
) -> Iterator[RunEvent]:
    """START and COMPLETE of one job, as children of the run that made the version."""
    parent = parent_run.ParentRunFacet(
        run=parent_run.Run(runId=_run_id(about, "retrain")),
        job=parent_run.Job(namespace=NAMESPACE, name=f"{manifest['model']['name']}.retrain"),
    )
    run = Run(_run_id(about, stage), facets={"parent": parent, **facets})
    described = Job(NAMESPACE, job, facets=_job_facets(manifest))
    for state in (RunState.START, RunState.COMPLETE):
        yield RunEvent(
            eventTime=about.registered_at,
            producer=PRODUCER,
            run=run,
            job=described,
            eventType=state,
            inputs=inputs,
            outputs=outputs if state is RunState.COMPLETE else [],
        )


def _run_id(about: DescribedVersion, stage: str) -> str:
    return str(uuid.uuid5(_IDS, f"{about.manifest_sha256} {stage}"))


def _job_facets(manifest: Mapping[str, Any]) -> dict[str, JobFacet]:
    facets: dict[str, JobFacet] = {
        "jobType": job_type_job.JobTypeJobFacet(processingType="BATCH", integration="PLUMBLINE", jobType="STAGE")
    }
    commit = manifest["git"]["commit"]
    if commit:
        facets["sourceCodeLocation"] = source_code_location_job.SourceCodeLocationJobFacet(
            type="git", url="file:workspace", version=commit
        )
    return facets


def _version(digest: str) -> dict[str, DatasetFacet]:
    return {"version": dataset_version_dataset.DatasetVersionDatasetFacet(datasetVersion=digest)}
