"""MLflow's entries of a version's run and of its stages' runs, read with one query per table (see `tables`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import BigInteger, Boolean, Column, Connection, Float, Integer, String, Table, Text, or_, select

from plumbline.tasks.registry.store.tables import DEFAULT_WORKSPACE, METADATA

PARENT = "mlflow.parentRunId"
CURVE = "curve/"  # what a training's curve is logged under
CONTEXT = "mlflow.data.context"
STAGE_TAG, REUSED_TAG, SECONDS = "plumbline.stage", "plumbline.reused", "seconds"

_RUNS = Table(
    "runs",
    METADATA,
    Column("run_uuid", String(32)),
    Column("experiment_id", Integer),
    Column("status", String(20)),
    Column("end_time", BigInteger),
    Column("lifecycle_stage", String(20)),
    Column("artifact_uri", String(200)),
)
_EXPERIMENTS = Table(
    "experiments",
    METADATA,
    Column("experiment_id", Integer),
    Column("name", String(256)),
    Column("workspace", String(63)),
)
_LATEST = Table(
    "latest_metrics",
    METADATA,
    Column("run_uuid", String(32)),
    Column("key", String(250)),
    Column("value", Float(53)),
    Column("is_nan", Boolean),
)
_METRICS = Table(
    "metrics",
    METADATA,
    Column("run_uuid", String(32)),
    Column("key", String(250)),
    Column("value", Float(53)),
    Column("timestamp", BigInteger),
    Column("is_nan", Boolean),
)
_PARAMS = Table(
    "params", METADATA, Column("run_uuid", String(32)), Column("key", String(250)), Column("value", String(8000))
)
_TAGS = Table(
    "tags", METADATA, Column("run_uuid", String(32)), Column("key", String(250)), Column("value", String(8000))
)
_INPUTS = Table(
    "inputs",
    METADATA,
    Column("input_uuid", String(36)),
    Column("source_type", String(36)),
    Column("source_id", String(36)),
    Column("destination_type", String(36)),
    Column("destination_id", String(36)),
)
_DATASETS = Table(
    "datasets", METADATA, Column("dataset_uuid", String(36)), Column("name", String(500)), Column("digest", String(36))
)
_INPUT_TAGS = Table(
    "input_tags", METADATA, Column("input_uuid", String(36)), Column("name", String(255)), Column("value", String(500))
)


_MODEL_METRICS = Table(
    "logged_model_metrics",
    METADATA,
    Column("model_id", String(36)),
    Column("metric_name", String(500)),
    Column("metric_value", Float(53)),
)
_MODEL_PARAMS = Table(
    "logged_model_params",
    METADATA,
    Column("model_id", String(36)),
    Column("param_key", String(255)),
    Column("param_value", Text),
)
_MODEL_TAGS = Table(
    "logged_model_tags",
    METADATA,
    Column("model_id", String(36)),
    Column("tag_key", String(255)),
    Column("tag_value", Text),
)


@dataclass(slots=True)
class RunRecord:
    """One run as MLflow shows it. `metrics`: every value ever logged a key. `datasets`: name -> digest and context.

    `artifacts` is the location of its files.
    """

    run_id: str
    deleted: bool
    metrics: dict[str, set[float]] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    datasets: dict[str, tuple[str, str]] = field(default_factory=dict)
    artifacts: str = ""


def read_runs(connection: Connection, run_id: str) -> dict[str, RunRecord]:
    """The run and the runs of its stages by id, deleted ones too; nothing if MLflow has no such run.

    Curves of training are left out: they have thousands of points, and no manifest holds them.
    """
    children = select(_TAGS.c.run_uuid).where(_TAGS.c.key == PARENT, _TAGS.c.value == run_id)
    wanted = select(_RUNS).where(or_(_RUNS.c.run_uuid == run_id, _RUNS.c.run_uuid.in_(children)))
    found = {
        row.run_uuid: RunRecord(row.run_uuid, row.lifecycle_stage == "deleted", artifacts=row.artifact_uri or "")
        for row in connection.execute(wanted)
    }
    ids = list(found)
    for table in (_METRICS, _LATEST):
        figures = select(table.c.run_uuid, table.c.key, table.c.value, table.c.is_nan)
        own = table.c.run_uuid.in_(ids), table.c.key.not_like(f"{CURVE}%")
        for run, key, value, nan in connection.execute(figures.where(*own)):
            found[run].metrics.setdefault(key, set()).add(float("nan") if nan else value)
    for run, key, value in _pairs(connection, _PARAMS, ids):
        found[run].params[key] = value
    for run, key, value in _pairs(connection, _TAGS, ids):
        found[run].tags[key] = value
    for run, name, digest, context in _inputs(connection, ids):
        found[run].datasets[name] = (digest, context or "")
    return found


def read_stage_seconds(connection: Connection, experiment: str) -> dict[str, float]:
    """Seconds of each stage's last run that ended well and was no reuse, by the stage's name."""
    stage, reused = _TAGS.alias(), _TAGS.alias()
    wanted = (
        select(stage.c.value, _LATEST.c.value)
        .select_from(_RUNS)
        .join(_EXPERIMENTS, _EXPERIMENTS.c.experiment_id == _RUNS.c.experiment_id)
        .join(stage, (stage.c.run_uuid == _RUNS.c.run_uuid) & (stage.c.key == STAGE_TAG))
        .join(reused, (reused.c.run_uuid == _RUNS.c.run_uuid) & (reused.c.key == REUSED_TAG))
        .join(_LATEST, (_LATEST.c.run_uuid == _RUNS.c.run_uuid) & (_LATEST.c.key == SECONDS))
        .where(_EXPERIMENTS.c.name == experiment, _EXPERIMENTS.c.workspace == DEFAULT_WORKSPACE)
        .where(_RUNS.c.status == "FINISHED", _RUNS.c.lifecycle_stage == "active", reused.c.value == "false")
        .order_by(_RUNS.c.end_time)
    )
    return {name: float(seconds) for name, seconds in connection.execute(wanted)}


def _pairs(connection: Connection, table: Table, ids: Sequence[str]) -> Iterable[Any]:
    columns = select(table.c.run_uuid, table.c.key, table.c.value)
    return connection.execute(columns.where(table.c.run_uuid.in_(ids)))


def _inputs(connection: Connection, ids: Sequence[str]) -> Iterable[Any]:
    """Datasets of the runs with the context of each: a join, one query."""
    joined = _INPUTS.join(_DATASETS, _DATASETS.c.dataset_uuid == _INPUTS.c.source_id).outerjoin(
        _INPUT_TAGS, (_INPUT_TAGS.c.input_uuid == _INPUTS.c.input_uuid) & (_INPUT_TAGS.c.name == CONTEXT)
    )
    columns = select(_INPUTS.c.destination_id, _DATASETS.c.name, _DATASETS.c.digest, _INPUT_TAGS.c.value)
    of_runs = _INPUTS.c.destination_type == "RUN", _INPUTS.c.destination_id.in_(ids)
    return connection.execute(columns.select_from(joined).where(*of_runs))


def read_logged_model(connection: Connection, model_id: str) -> RunRecord:
    """MLflow's entry of a logged model beside its files."""
    found = RunRecord(model_id, deleted=False)
    for table, keep in (
        (_MODEL_METRICS, lambda key, value: found.metrics.setdefault(key, set()).add(value)),
        (_MODEL_PARAMS, found.params.__setitem__),
        (_MODEL_TAGS, found.tags.__setitem__),
    ):
        _, key, value = table.c
        for row in connection.execute(select(key, value).where(table.c.model_id == model_id)):
            keep(*row)
    return found


def model_from_client(model: Any) -> RunRecord:
    """A logged model as MLflow's client has it."""
    metrics: dict[str, set[float]] = {}
    for metric in model.metrics or ():
        metrics.setdefault(metric.key, set()).add(metric.value)
    return RunRecord(str(model.model_id), False, metrics, dict(model.params or {}), dict(model.tags or {}))


def from_client(run: Any) -> RunRecord:
    """A run as MLflow's client has it: the latest value of each metric alone."""
    inputs = run.inputs.dataset_inputs if run.inputs else ()
    datasets: Mapping[str, tuple[str, str]] = {
        item.dataset.name: (item.dataset.digest, {tag.key: tag.value for tag in item.tags}.get(CONTEXT, ""))
        for item in inputs
    }
    return RunRecord(
        str(run.info.run_id),
        run.info.lifecycle_stage == "deleted",
        {key: {value} for key, value in run.data.metrics.items() if not key.startswith(CURVE)},
        dict(run.data.params),
        dict(run.data.tags),
        dict(datasets),
        str(run.info.artifact_uri or ""),
    )
