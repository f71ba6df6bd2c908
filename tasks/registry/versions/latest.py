"""The latest version of the model, whatever its gate said: what fresh data are measured against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from plumbline.tasks.registry.store.client import Store
from plumbline.tasks.registry.store.lookup import registered_at
from plumbline.tasks.registry.versions.registered import StoredFiles, all_versions


@dataclass(frozen=True, slots=True)
class LatestModel:
    """A version, when it was registered, and its manifest."""

    uri: str
    registered_at: datetime
    manifest: Mapping[str, Any]


def latest_model(store: Store) -> LatestModel | None:
    """The version with the highest number, or None if none is registered. Raises `RegistryError`."""
    versions = all_versions(store, store.params.model_name)
    if not versions:
        return None
    last = versions[-1]
    return LatestModel(last.uri, registered_at(store, last.name, last.number), StoredFiles(store, last).manifest())
