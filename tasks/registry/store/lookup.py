"""Present entries of MLflow for a model and its versions: from its tables if they can be read, else from its client."""

from __future__ import annotations

from datetime import UTC, datetime

from plumbline.tasks.registry.store.client import Store, refusals
from plumbline.tasks.registry.store.run_tables import REUSED_TAG, SECONDS, STAGE_TAG, read_stage_seconds


def registered(store: Store, name: str) -> tuple[dict[str, str], dict[str, str]] | None:
    """Aliases (to version numbers) and tags of a registered model; None if MLflow has no such model."""
    with refusals(f"looking up {name}"):
        if store.tables is not None:
            return store.tables.model(name)
        models = store.client.search_registered_models(f"name = '{name}'", max_results=1)
    if not models:
        return None
    return {str(alias): str(number) for alias, number in models[0].aliases.items()}, dict(models[0].tags)


def location_of(store: Store, name: str, number: str) -> str:
    """The place of a version's files. Raises `RegistryError` for no such version, or a place outside."""
    with refusals(f"artifacts of models:/{name}/{number}"):
        row = store.tables.version(name, number) if store.tables is not None else None
        location = row.location if row is not None else None
        location = location or str(store.client.get_model_version_download_uri(name, number))
    return store.located(location)


def registered_at(store: Store, name: str, number: str) -> datetime:
    """The time of a version's registration, by MLflow's clock. Raises `RegistryError` if there is no such version."""
    with refusals(f"looking up models:/{name}/{number}"):
        row = store.tables.version(name, number) if store.tables is not None else None
        found = row.created_ms if row is not None else store.client.get_model_version(name, number).creation_timestamp
    return datetime.fromtimestamp(int(found) / 1000, UTC)


def stage_seconds(store: Store) -> dict[str, float]:
    """Seconds of each stage's last run that was no reuse, by the stage's name; stages that never ran are left out."""
    with refusals("times of stages"):
        if store.tables is not None:
            with store.tables.reading() as connection:
                return read_stage_seconds(connection, store.params.experiment)
        experiment = store.client.get_experiment_by_name(store.params.experiment)
        if experiment is None:
            return {}
        ended = f"attributes.status = 'FINISHED' and tags.`{REUSED_TAG}` = 'false'"
        runs = store.client.search_runs([experiment.experiment_id], ended, order_by=["attributes.end_time ASC"])
    return {run.data.tags[STAGE_TAG]: float(run.data.metrics[SECONDS]) for run in runs if STAGE_TAG in run.data.tags}
