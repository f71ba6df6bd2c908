"""Look-ups by MLflow's client: in a store behind HTTP, or in a database of another revision than we read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from plumbline.tasks.registry.store.reader import (
    CONTEXT,
    CURVE,
    PARENT,
    REUSED_TAG,
    SECONDS,
    STAGE_TAG,
    RunRecord,
    VersionRecord,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

_MISSING = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


class ClientReader:
    """A `RegistryReader`. Raises MLflow's errors. Of a run's metrics it has the latest values alone."""

    def __init__(self, client: MlflowClient) -> None:
        self._client = client

    def names(self) -> list[str]:
        """Names of the registered models."""
        return [str(model.name) for model in _pages(self._client.search_registered_models)]

    def model(self, name: str) -> tuple[dict[str, str], dict[str, str]] | None:
        """Aliases (to version numbers) and tags of a registered model."""
        found = _found(self._client.get_registered_model, name)
        if found is None:
            return None
        return {str(alias): str(number) for alias, number in found.aliases.items()}, dict(found.tags)

    def version(self, name: str, number: str) -> VersionRecord | None:
        """One version; a deleted one is None."""
        found = _found(self._client.get_model_version, name, number)
        return None if found is None else _version(found)

    def versions(self, name: str, tags: Sequence[str] | None = None) -> list[VersionRecord]:
        """Every version of a model, oldest first, with all its tags."""
        found = _pages(self._client.search_model_versions, f"name = '{name}'", max_results=10_000)
        return sorted((_version(item) for item in found), key=lambda version: int(version.number))

    def latest(self, name: str) -> str | None:
        """The highest number of a version."""
        order = ["version_number DESC"]
        found = self._client.search_model_versions(f"name = '{name}'", max_results=1, order_by=order)
        return str(found[0].version) if found else None

    def location(self, name: str, number: str) -> str | None:
        """The location of a version's files."""
        found = _found(self._client.get_model_version_download_uri, name, number)
        return None if found is None else str(found)

    def runs(self, run_id: str) -> dict[str, RunRecord]:
        """The run and the runs of its stages by id, deleted ones too, without curves of training."""
        from mlflow.entities import ViewType

        run = _found(self._client.get_run, run_id)
        if run is None:
            return {}
        query = f"tags.`{PARENT}` = '{run_id}'"
        children = self._client.search_runs([run.info.experiment_id], query, ViewType.ALL, max_results=1000)
        return {str(each.info.run_id): _run(each) for each in (run, *children)}

    def stage_seconds(self, experiment: str) -> dict[str, float]:
        """Seconds of each stage's last run that ended well and was no reuse, by the stage's name."""
        found = self._client.get_experiment_by_name(experiment)
        if found is None:
            return {}
        ended = f"attributes.status = 'FINISHED' and tags.`{REUSED_TAG}` = 'false'"
        runs = self._client.search_runs([found.experiment_id], ended, order_by=["attributes.end_time ASC"])
        return {
            run.data.tags[STAGE_TAG]: float(run.data.metrics[SECONDS]) for run in runs if STAGE_TAG in run.data.tags
        }

    def logged_model(self, model_id: str) -> RunRecord:
        """MLflow's entry of a logged model beside its files."""
        model = self._client.get_logged_model(model_id)
        metrics: dict[str, set[float]] = {}
        for metric in model.metrics or ():
            metrics.setdefault(metric.key, set()).add(metric.value)
        return RunRecord(str(model.model_id), False, metrics, dict(model.params or {}), dict(model.tags or {}))


def _found(ask: Callable[..., Any], *what: str) -> Any:
    """The answer, or None if MLflow has no such thing."""
    from mlflow.exceptions import MlflowException

    try:
        return ask(*what)
    except MlflowException as error:
        if error.error_code not in _MISSING:
            raise
        return None


def _pages(ask: Callable[..., Any], *what: Any, **options: Any) -> list[Any]:
    page = ask(*what, **options)
    found = list(page)
    while page.token:
        page = ask(*what, page_token=page.token, **options)
        found += page
    return found


def _version(found: Any) -> VersionRecord:
    created = int(found.creation_timestamp)
    return VersionRecord(
        str(found.version), dict(found.tags), found.run_id, created, None, found.description, found.source
    )


def _run(run: Any) -> RunRecord:
    inputs = run.inputs.dataset_inputs if run.inputs else ()
    return RunRecord(
        str(run.info.run_id),
        run.info.lifecycle_stage == "deleted",
        {key: {value} for key, value in run.data.metrics.items() if not key.startswith(CURVE)},
        dict(run.data.params),
        dict(run.data.tags),
        {
            item.dataset.name: (item.dataset.digest, {tag.key: tag.value for tag in item.tags}.get(CONTEXT, ""))
            for item in inputs
        },
        str(run.info.artifact_uri or ""),
    )
