"""The latest version of the model, whatever its gate said: what fresh data are measured against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tasks.registry.client import Store, refusals
from tasks.registry.versions import StoredFiles, all_versions


@dataclass(frozen=True, slots=True)
class LatestModel:
    """A version, when it was registered, and its manifest."""

    uri: str
    registered_at: datetime
    manifest: Mapping[str, Any]


def latest_model(store: Store) -> LatestModel | None:
    """The version with the highest number, or None where none is registered. Raises `RegistryError`."""
    versions = all_versions(store, store.params.model_name)
    if not versions:
        return None
    last = versions[-1]
    with refusals(f"looking up {last.uri}"):
        stamp = store.client.get_model_version(last.name, last.number).creation_timestamp
    return LatestModel(last.uri, datetime.fromtimestamp(stamp / 1000, UTC), StoredFiles(store, last).manifest())
