"""Signatures so far: the digests of all in a registry, for the record of a revocation."""

from __future__ import annotations

import orjson
from sqlalchemy import Engine

from plumbline.data_contracts.errors import RegistryError
from plumbline.tasks.registry.ledger.chain import rows_of
from plumbline.tasks.registry.ledger.head import HEAD_TAG
from plumbline.tasks.registry.signing.key_files import signature_digest
from plumbline.tasks.registry.signing.signatures import SEAL_TAG, SIGNATURE
from plumbline.tasks.registry.store.client import Store, refusals
from plumbline.tasks.registry.store.fetching import fetched
from plumbline.tasks.registry.store.lookup import location_of, registered
from plumbline.tasks.registry.versions.registered import all_versions


def signatures_of(store: Store, engine: Engine, *, versions: bool = True) -> set[str]:
    """Digests of the signatures over ledger lines, heads and, by default, versions and their seals."""
    with refusals("listing registered models"):
        names = store.reader.names()
    found: set[str] = set()
    for name in names:
        _, tags = registered(store, name) or ({}, {})
        found |= {signature_digest(str(row["signature"]).encode()) for row in rows_of(engine, name)}
        found |= _head(tags.get(HEAD_TAG))
        for version in all_versions(store, name) if versions else ():
            if (seal := version.tags.get(SEAL_TAG)) is not None:
                found.add(signature_digest(seal.encode()))
            found |= _bundle(store, version.name, version.number)
    return found


def _head(text: str | None) -> set[str]:
    try:
        return {signature_digest(str(orjson.loads(text or "")["signature"]).encode())}
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return set()


def _bundle(store: Store, name: str, number: str) -> set[str]:
    try:
        with fetched(store, location_of(store, name, number), SIGNATURE) as folder:
            return {signature_digest((folder / SIGNATURE).read_bytes())}
    except (OSError, RegistryError):  # a version without a signature has none to keep, and is refused as it was
        return set()
