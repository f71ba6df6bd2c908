"""A registry of many versions, read in a few calls: one version by URI, and what pins every version.

MLflow's client takes seconds to import, and builds an object with all its tags for each version, two milliseconds
apiece. An index that is derived from manifests needs one number and one hash a version, so a store in a database is
asked for just these, through MLflow's own tables (`tasks.registry.store.tables`). A store behind HTTP is asked by the
client.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from plumbline.data_contracts.errors import RegistryError, RegistryRefused
from plumbline.tasks.registry.signing.signatures import MANIFEST
from plumbline.tasks.registry.store.client import Store, refusals
from plumbline.tasks.registry.store.fetching import fetched
from plumbline.tasks.registry.store.lookup import location_of, registered
from plumbline.tasks.registry.versions.registered import (
    _URI,
    CANDIDATE,
    CHAMPION,
    GATE_TAG,
    MANIFEST_TAG,
    Version,
    _version,
    all_versions,
    from_row,
    resolve,
)


@dataclass(frozen=True, slots=True)
class Pinned:
    """A version by its tags: the SHA-256 of its manifest, the gate's verdict; and the place of its files."""

    manifest_sha256: str
    passed: bool
    location: str | None = None


def find_version(store: Store, uri: str) -> Version:
    """As `resolve`, without listing every version. Raises `UnknownModelError` when there is none."""
    match = _URI.match(uri)
    search = _from_client if store.tables is None else _from_tables
    found = search(store, match["name"], match["alias"], match["version"]) if match else None
    return resolve(store, uri) if found is None else found  # slower, and words the refusal


def _from_tables(store: Store, name: str, alias: str | None, number: str | None) -> Version | None:
    assert store.tables is not None
    with refusals(f"looking up {name}"):
        holders = (store.tables.model(name) or ({}, {}))[0]
        if number is None:
            number = _holder(holders, alias) or (store.tables.latest(name) if alias is None else None)
        row = None if number is None else store.tables.version(name, number)
    return None if row is None else from_row(name, row, holders)


def _holder(holders: Mapping[str, str], alias: str | None) -> str | None:
    """The version that an alias names, or, if none is asked for, the champion or else the candidate."""
    wanted = [alias] if alias is not None else [CHAMPION, CANDIDATE]
    return next((str(holders[item]) for item in wanted if item in holders), None)


def _from_client(store: Store, name: str, alias: str | None, number: str | None) -> Version | None:
    found = _ask_client(store, name, alias, number)
    return None if found is None else _version(found, [str(item) for item in found.aliases])


def _ask_client(store: Store, name: str, alias: str | None, number: str | None) -> Any:
    from mlflow.exceptions import MlflowException

    client = store.client
    try:
        if number is not None:
            return client.get_model_version(name, number)
        aliases = client.get_registered_model(name).aliases
        holder = _holder(aliases, alias)
        if holder is not None:
            return client.get_model_version(name, holder)
        if alias is not None:
            return None
        latest = client.search_model_versions(f"name = '{name}'", max_results=1, order_by=["version_number DESC"])
        return client.get_model_version(name, latest[0].version) if latest else None
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        with refusals(f"looking up {name}"):
            raise


def live_aliases(store: Store, name: str) -> dict[str, str]:
    """Alias -> version number, as they stand now; empty if there is no such model."""
    found = registered(store, name)
    return found[0] if found else {}


def pinned_versions(store: Store, name: str) -> dict[str, Pinned]:
    """Every version's number -> what pins it."""
    if store.tables is None:
        return {version.number: _pin(version.tags, None) for version in all_versions(store, name)}
    with refusals(f"listing {name}"):
        rows = store.tables.versions(name, (MANIFEST_TAG, GATE_TAG))
    return {row.number: _pin(row.tags, row.location) for row in rows}


def _pin(tags: Mapping[str, str], location: str | None) -> Pinned:
    return Pinned(tags.get(MANIFEST_TAG) or "", tags.get(GATE_TAG) == "passed", location or None)


def pinned_manifest(store: Store, name: str, number: str, pin: Pinned) -> dict[str, Any]:
    """The manifest of one version, whose bytes have been found to be the pinned ones. Raises `RegistryError`."""
    version = Version(name, number, (), {MANIFEST_TAG: pin.manifest_sha256}, None)
    location = pin.location
    if location is None:
        location = location_of(store, name, number)
    try:
        with fetched(store, location, MANIFEST) as folder:
            data = (folder / MANIFEST).read_bytes()
    except OSError as error:
        raise RegistryError(f"{version.uri}: its {MANIFEST} cannot be read: {error}.") from error
    found = hashlib.sha256(data).hexdigest()
    if found != pin.manifest_sha256:
        raise RegistryRefused(f"{version.uri}: {MANIFEST} was changed, expected {pin.manifest_sha256}, found {found}.")
    manifest: dict[str, Any] = orjson.loads(data)
    return manifest
