"""Present entries of MLflow for a model and its versions, its refusals as `RegistryError`."""

from __future__ import annotations

from datetime import UTC, datetime

from plumbline.data_contracts.errors import RegistryError
from plumbline.tasks.registry.store.client import Store, refusals


def registered(store: Store, name: str) -> tuple[dict[str, str], dict[str, str]] | None:
    """Aliases (to version numbers) and tags of a registered model; None if MLflow has no such model."""
    with refusals(f"looking up {name}"):
        return store.reader.model(name)


def location_of(store: Store, name: str, number: str) -> str:
    """The place of a version's files. Raises `RegistryError` for no such version, or a place outside."""
    with refusals(f"artifacts of models:/{name}/{number}"):
        location = store.reader.location(name, number)
    if not location:
        raise _no_version(name, number)
    return store.located(location)


def registered_at(store: Store, name: str, number: str) -> datetime:
    """The time of a version's registration, by MLflow's clock. Raises `RegistryError` if there is no such version."""
    with refusals(f"looking up models:/{name}/{number}"):
        found = store.reader.version(name, number)
    if found is None:
        raise _no_version(name, number)
    return datetime.fromtimestamp(found.created_ms / 1000, UTC)


def stage_seconds(store: Store) -> dict[str, float]:
    """Seconds of each stage's last run that was no reuse, by the stage's name; stages that never ran are left out."""
    with refusals("times of stages"):
        return store.reader.stage_seconds(store.params.experiment)


def _no_version(name: str, number: str) -> RegistryError:
    return RegistryError(
        f"models:/{name}/{number}: MLflow has no such version; was it deleted? `plumbline lineage` lists what there is."
    )
