"""Many versions of a registry, read in a few calls: what pins each of them.

MLflow's client takes seconds to import, and builds an object with all its tags for each version, two milliseconds
each. An index that is derived from manifests needs one number and one hash of a version, and asks for just these.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import orjson

from plumbline.data_contracts.errors import RegistryError, RegistryRefused
from plumbline.tasks.registry.signing.signatures import MANIFEST
from plumbline.tasks.registry.store.client import Store, refusals
from plumbline.tasks.registry.store.fetching import fetched
from plumbline.tasks.registry.store.lookup import location_of, registered
from plumbline.tasks.registry.versions.stored import GATE_TAG, MANIFEST_TAG, Version


@dataclass(frozen=True, slots=True)
class Pinned:
    """A version by its tags: the SHA-256 of its manifest, the gate's verdict; and the place of its files."""

    manifest_sha256: str
    passed: bool
    location: str | None = None


def live_aliases(store: Store, name: str) -> dict[str, str]:
    """Alias -> version number, as they stand now; empty if there is no such model."""
    found = registered(store, name)
    return found[0] if found else {}


def pinned_versions(store: Store, name: str) -> dict[str, Pinned]:
    """Every version's number -> what pins it."""
    with refusals(f"listing {name}"):
        found = store.reader.versions(name, (MANIFEST_TAG, GATE_TAG))
    return {
        item.number: Pinned(item.tags.get(MANIFEST_TAG) or "", item.tags.get(GATE_TAG) == "passed", item.location)
        for item in found
    }


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
