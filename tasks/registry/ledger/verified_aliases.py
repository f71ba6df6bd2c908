"""The version that an alias names, if the ledger has a line for it: read every few seconds by the server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Engine

from plumbline.data_contracts.errors import RegistryError, RegistryRefused, SignatureError
from plumbline.tasks.registry.ledger import ledger
from plumbline.tasks.registry.ledger.chain import rows_of
from plumbline.tasks.registry.store.client import Store
from plumbline.tasks.registry.store.lookup import registered


class VerifiedAliases:
    """Holders of aliases. The chain is verified whenever ledger, aliases or head are not what they were before."""

    def __init__(self, engine: Engine, store: Store) -> None:
        self._engine = engine
        self._store = store
        self._seen: tuple[Any, ...] | None = None
        self._strange: Mapping[str, Mapping[str, str | None]] = {}

    def find(self, alias: str) -> str | None:
        """URI of the version that holds the alias in MLflow and in the ledger, None if nobody does.

        Raises `SignatureError` when the ledger is not whole, `RegistryError` when somebody moved the alias in MLflow
        itself, or when it is none that the ledger keeps.
        """
        name = self._store.params.model_name
        if alias not in ledger.ALIASES:
            raise RegistryError(
                f"models:/{name}@{alias}: the ledger keeps no such alias, so no line records its version; expected "
                f"one of {', '.join(ledger.ALIASES)}."
            )
        aliases = self._verified(name)
        self._require_agreed(name, alias)
        return f"models:/{name}/{aliases[alias]}" if alias in aliases else None

    def _verified(self, name: str) -> Mapping[str, str]:
        aliases, tags = registered(self._store, name) or ({}, {})
        head = tags.get(ledger.HEAD_TAG)
        seen = (rows_of(self._engine, name), aliases, head)
        if seen != self._seen:
            problems = ledger.verify_chain(self._engine, self._store)
            if problems:
                raise SignatureError(f"ledger of {name}: {' '.join(problems)} No alias can be followed.")
            self._strange = ledger.moved_outside(self._engine, self._store)
            self._seen = seen
        return aliases

    def _require_agreed(self, name: str, alias: str) -> None:
        found = self._strange.get(alias)
        if found is not None:
            raise RegistryRefused(
                f"models:/{name}@{alias}: moved outside the ledger: the ledger says version "
                f"{found['ledger'] or 'none'}, MLflow says {found['mlflow'] or 'none'}. It is not followed. "
                f"`plumbline rollback --to MODEL --reason WHY` settles it, on record."
            )
