"""A registry of many versions, read in a few calls: one version by URI, and what pins every version.

MLflow's client builds an object with all its tags for each version, two milliseconds apiece: two seconds for a
thousand. An index that is derived from manifests needs one number and one hash a version, so a store in a database is
asked for just these, through MLflow's own tables. A store behind HTTP is listed by the client.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson

from data_contracts.errors import RegistryError
from tasks.registry.client import Store, refusals
from tasks.registry.fetching import fetched
from tasks.registry.signing import MANIFEST
from tasks.registry.versions import (
    _URI,
    CANDIDATE,
    CHAMPION,
    GATE_TAG,
    MANIFEST_TAG,
    Version,
    _version,
    all_versions,
    resolve,
)

_LOCATION = "storage location"  # beside the tags, under a name that no tag has


@dataclass(frozen=True, slots=True)
class Pinned:
    """What a version's tags say of it: the SHA-256 of its manifest, the gate's verdict; and where its files lie."""

    manifest_sha256: str
    passed: bool
    location: str | None = None


def find_version(store: Store, uri: str) -> Version:
    """As `resolve`, without listing every version. Raises `UnknownModelError` when there is none."""
    match = _URI.match(uri)
    found = _find(store, match["name"], match["alias"], match["version"]) if match else None
    if found is None:
        return resolve(store, uri)  # slower, and words the refusal
    return _version(found, [str(alias) for alias in found.aliases])


def _find(store: Store, name: str, alias: str | None, number: str | None) -> Any:
    from mlflow.exceptions import MlflowException

    client = store.client
    try:
        if number is not None:
            return client.get_model_version(name, number)
        aliases = client.get_registered_model(name).aliases
        wanted = [alias] if alias is not None else [CHAMPION, CANDIDATE]
        known = [item for item in wanted if item in aliases]
        if known:
            return client.get_model_version(name, str(aliases[known[0]]))
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
    """Alias -> version number, as they stand now; empty where there is no such model."""
    with refusals(f"aliases of {name}"):
        models = store.client.search_registered_models(f"name = '{name}'", max_results=1)
    return {str(alias): str(number) for alias, number in models[0].aliases.items()} if models else {}


def pinned_versions(store: Store, name: str) -> dict[str, Pinned]:
    """Every version's number -> what pins it."""
    rows = _from_database(store, name)
    if rows is None:
        rows = {version.number: dict(version.tags) for version in all_versions(store, name)}
    return {
        number: Pinned(tags.get(MANIFEST_TAG, ""), tags.get(GATE_TAG) == "passed", tags.get(_LOCATION) or None)
        for number, tags in sorted(rows.items(), key=lambda item: int(item[0]))
    }


def _from_database(store: Store, name: str) -> dict[str, dict[str, str]] | None:
    """Number -> the two tags, by one query each; None where the store is not a database of this process."""
    from mlflow.store.model_registry.dbmodels.models import SqlModelVersion, SqlModelVersionTag
    from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore

    registry = store.client._get_registry_client().store
    if not isinstance(registry, SqlAlchemyStore):
        return None
    with refusals(f"listing {name}"), registry.ManagedSessionMaker() as session:
        alive = session.query(SqlModelVersion.version, SqlModelVersion.storage_location).filter(
            SqlModelVersion.name == name, SqlModelVersion.current_stage != "Deleted_Internal"
        )
        rows: dict[str, dict[str, str]] = {str(number): {_LOCATION: location or ""} for number, location in alive}
        tags = session.query(SqlModelVersionTag.version, SqlModelVersionTag.key, SqlModelVersionTag.value).filter(
            SqlModelVersionTag.name == name, SqlModelVersionTag.key.in_((MANIFEST_TAG, GATE_TAG))
        )
        for number, key, value in tags:
            if str(number) in rows:
                rows[str(number)][str(key)] = str(value)
    return rows


def registered_at(store: Store, version: Version) -> datetime:
    """When the version was registered, by MLflow's clock."""
    with refusals(f"looking up {version.uri}"):
        item = store.client.get_model_version(version.name, version.number)
    return datetime.fromtimestamp(int(item.creation_timestamp) / 1000, UTC)


def pinned_manifest(store: Store, name: str, number: str, pin: Pinned) -> dict[str, Any]:
    """The manifest of one version, whose bytes have been found to be the pinned ones. Raises `RegistryError`."""
    version = Version(name, number, (), {MANIFEST_TAG: pin.manifest_sha256}, None)
    location = pin.location
    if location is None:
        with refusals(f"artifacts of {version.uri}"):
            location = store.client.get_model_version_download_uri(name, number)
    try:
        with fetched(store, location, MANIFEST) as folder:
            data = (folder / MANIFEST).read_bytes()
    except OSError as error:
        raise RegistryError(f"{version.uri}: its {MANIFEST} cannot be read: {error}.") from error
    found = hashlib.sha256(data).hexdigest()
    if found != pin.manifest_sha256:
        raise RegistryError(f"{version.uri}: {MANIFEST} was changed, expected {pin.manifest_sha256}, found {found}.")
    manifest: dict[str, Any] = orjson.loads(data)
    return manifest
