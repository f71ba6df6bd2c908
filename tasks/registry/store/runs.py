"""MLflow runs: one parent a flow, one child a stage, curves as metrics, datasets by their DVC hash."""

from __future__ import annotations

import math
import os
import re
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import psutil

from plumbline.data_contracts.errors import RegistryError
from plumbline.tasks.params.registry import RegistryParams
from plumbline.tasks.params.section import flatten
from plumbline.tasks.pipeline.stage import StageRecord
from plumbline.tasks.registry.store.client import Store, refusals

if TYPE_CHECKING:
    from mlflow.entities import Metric

CURVE = "training.jsonl"
_BATCH = 1000  # MLflow's own limit of metrics a call
_PARAM_BATCH = 100
PARAM_CHARACTERS = 6000
_HOST, _PID = "plumbline.host", "plumbline.pid"


class Run:
    """The parent run of one flow. Its methods may be called from several threads."""

    def __init__(self, store: Store, experiment_id: str, run_id: str, flow_run_id: str | None) -> None:
        self.store = store
        self.experiment_id = experiment_id
        self.run_id = run_id
        self.flow_run_id = flow_run_id
        self._lock = threading.Lock()

    def log_stage(self, record: StageRecord) -> str:
        """Log one stage as a child run: settings and figures of its artifact, its curve; return the run id."""
        end = _now()
        tags = _owner() | {
            "mlflow.parentRunId": self.run_id,
            "plumbline.stage": record.name,
            "plumbline.reused": str(record.reused).lower(),
            "plumbline.artifact": record.artifact.digest,
        }
        with self._lock, refusals(f"stage {record.name}"):
            client = self.store.client
            start = end - int(record.seconds * 1000)
            child = client.create_run(self.experiment_id, start_time=start, tags=tags, run_name=record.name)
            run_id = str(child.info.run_id)
            self._log(run_id, {"seconds": record.seconds, **figures(record.artifact.facts)}, end)
            self._log_curve(run_id, record.artifact.path / CURVE, end)
            client.set_terminated(run_id, "FINISHED", end_time=end)
        return run_id

    def seconds_of(self, stage: str, digest: str) -> float | None:
        """Seconds of the run of a stage that made the artifact with this digest; None if none is logged."""
        tags = {"stage": stage, "artifact": digest, "reused": "false"}
        # one that a kill left without its figures is not FINISHED
        made = [
            "attributes.status = 'FINISHED'",
            *(f"tags.`plumbline.{tag}` = '{value}'" for tag, value in tags.items()),
        ]
        with self._lock, refusals(f"time of stage {stage}"):
            runs = self.store.client.search_runs([self.experiment_id], " and ".join(made), max_results=1)
        return float(runs[0].data.metrics["seconds"]) if runs else None

    def log_variant(self, name: str, folder: Path, settings: Mapping[str, Any], values: Mapping[str, Any]) -> str:
        """Log one trial of a comparison as a child run: its settings, figures and the curve in `folder`."""
        from mlflow.entities import Param

        tags = _owner() | {"mlflow.parentRunId": self.run_id, "plumbline.variant": name}
        params = [Param(mlflow_key(key), param_text(value)) for key, value in settings.items()]
        with self._lock, refusals(f"variant {name}"):
            client = self.store.client
            child = client.create_run(self.experiment_id, tags=tags, run_name=name)
            run_id = str(child.info.run_id)
            for chunk in _chunks(params, _PARAM_BATCH):
                client.log_batch(run_id, params=chunk)
            self._log(run_id, figures(values), _now())
            self._log_curve(run_id, folder / CURVE, _now())
            client.set_terminated(run_id, "FINISHED")
        return run_id

    def log_datasets(self, datasets: Mapping[str, str], context: Mapping[str, str]) -> None:
        """Log DVC-versioned paths as inputs: path -> hash ("….dir"), and path -> what it was used for."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = [
            DatasetInput(
                Dataset(
                    name=path,
                    digest=digest,
                    source_type="dvc",
                    source=orjson.dumps({"path": path, "md5": digest}).decode(),
                ),
                tags=[InputTag("mlflow.data.context", context.get(path, "lineage"))],
            )
            for path, digest in datasets.items()
        ]
        with self._lock, refusals("dataset inputs"):
            self.store.client.log_inputs(self.run_id, datasets=inputs)

    def log_files(self, folder: Path, name: str) -> None:
        """Log a folder's files as artifacts of the parent run, under a name, for whoever looks at the run."""
        with self._lock, refusals(f"artifacts {name} of the run"):
            self.store.located(str(self.store.client.get_run(self.run_id).info.artifact_uri))
            self.store.client.log_artifacts(self.run_id, str(folder), name)

    def log_outcome(self, metrics: Mapping[str, Any], settings: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Log the flow's metrics, its params and its outcome on the parent run."""
        from mlflow.entities import Param, RunTag

        params = [Param(mlflow_key(name), param_text(value)) for name, value in flatten(settings)]
        with self._lock, refusals("the outcome of the run"):
            self._log(self.run_id, figures(metrics), _now())
            for chunk in _chunks(params, _PARAM_BATCH):
                self.store.client.log_batch(self.run_id, params=chunk)
            self.store.client.log_batch(self.run_id, tags=[RunTag(name, value) for name, value in tags.items()])

    def _log(self, run_id: str, values: Mapping[str, float], timestamp: int, step: int = 0) -> None:
        from mlflow.entities import Metric

        self._send(run_id, [Metric(mlflow_key(name), value, timestamp, step) for name, value in values.items()])

    def _log_curve(self, run_id: str, path: Path, timestamp: int) -> None:
        """Log a training curve: one JSON object per line, "step" and any number of metrics."""
        from mlflow.entities import Metric

        if not path.is_file():
            return
        metrics = []
        with path.open("rb") as file:
            for number, line in enumerate(file):
                point = orjson.loads(line)
                step = int(point.pop("step", number))
                metrics += [
                    Metric(f"curve/{mlflow_key(name)}", value, timestamp, step)
                    for name, value in figures(point).items()
                ]
        self._send(run_id, metrics)

    def _send(self, run_id: str, metrics: list[Metric]) -> None:
        for chunk in _chunks(metrics, _BATCH):
            self.store.client.log_batch(run_id, metrics=chunk)


@contextmanager
def open_run(
    root: Path, params: RegistryParams, *, flow_run_id: str | None = None, name: str = "retrain"
) -> Iterator[Run]:
    """Open the parent run of a flow, named so; it ends FINISHED, FAILED on an exception, or KILLED on an interrupt.

    Runs that a killed process of this host left open, those of stages included, are closed as KILLED first.
    """
    store = Store(root, params)
    experiment_id = store.experiment_id()
    _close_orphans(store, experiment_id)
    tags = _owner()
    if flow_run_id is not None:
        tags["prefect.flow_run_id"] = flow_run_id
    with refusals("opening a run"):
        created = store.client.create_run(experiment_id, tags=tags, run_name=name)
    run = Run(store, experiment_id, str(created.info.run_id), flow_run_id)
    try:
        yield run
    except BaseException as error:
        # a store that does not answer either must not hide why; the next run closes what stays open
        with suppress(RegistryError), refusals("closing the run"):
            store.client.set_terminated(run.run_id, "FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    with refusals("closing the run"):
        store.client.set_terminated(run.run_id, "FINISHED")


def _owner() -> dict[str, str]:
    """Tags that tell which process a run is open in."""
    return {_HOST: socket.gethostname(), _PID: str(os.getpid())}


def _close_orphans(store: Store, experiment_id: str) -> None:
    query = f"attributes.status = 'RUNNING' and tags.`{_HOST}` = '{socket.gethostname()}'"
    with refusals("looking for runs that a killed process left open"):
        for run in store.client.search_runs([experiment_id], query, max_results=100):
            pid = run.data.tags.get(_PID, "")
            if pid.isdigit() and int(pid) != os.getpid() and not psutil.pid_exists(int(pid)):
                store.client.set_terminated(run.info.run_id, "KILLED")


def figures(values: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers among the leaves of nested mappings, by dotted key; flags count as 0 or 1."""
    leaves = ((key, value) for key, value in flatten(values) if isinstance(value, int | float))
    return {key: float(value) for key, value in leaves if math.isfinite(value)}


def mlflow_key(name: str) -> str:
    """A metric or param key that MLflow accepts."""
    return re.sub(r"[^\w\-./ :]", "_", name)[:250]


def param_text(value: Any) -> str:
    """A value of params as MLflow is given it, keys in one order: a manifest keeps none."""
    return str(in_order(value))[:PARAM_CHARACTERS]


def in_order(value: Any) -> Any:
    """A value with the keys of all its mappings sorted, at any depth."""
    if isinstance(value, Mapping):
        return {key: in_order(value[key]) for key in sorted(value)}
    return [in_order(item) for item in value] if isinstance(value, list | tuple) else value


def _chunks(items: list[Any], size: int) -> Iterable[list[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _now() -> int:
    return int(time.time() * 1000)
