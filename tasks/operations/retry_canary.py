"""Verb: let a version that its canary sent back try again, on record.

The ledger's line comes first, with who, why and what ended the last try; then the canary is opened, which every server
on the database finds at its next look. A crash between the two is mended by asking again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from plumbline.data_contracts.errors import OperationsError, UsageError
from plumbline.tasks.operations.promote_model import Override, Promotion, promote
from plumbline.tasks.operations.promotion.gates import require_answering
from plumbline.tasks.operations.serving import log
from plumbline.tasks.operations.serving.canary import CanaryRecord, canaries, reopen
from plumbline.tasks.params.whole import Params
from plumbline.tasks.registry.ledger import ledger as books
from plumbline.tasks.registry.store.client import Store
from plumbline.tasks.storage.database import open_database, read_database


@dataclass(frozen=True, slots=True)
class CanaryList:
    """Every canary, the last one at the end, and who holds the canary's alias by the ledger."""

    canaries: list[CanaryRecord]
    alias: str
    holder: str | None


def list_canaries(root: Path, params: Params) -> CanaryList:
    """List each try with its outcome, and what may be tried now."""
    name, alias = params.registry.model_name, params.serving.canary.alias
    state = books.alias_state(books.history(books.read_ledger(root, params.operations), name))
    number = state[alias].version if alias in state else None
    found = canaries(read_database(root, params.operations, log.METADATA))
    return CanaryList(found, alias, None if number is None else f"models:/{name}/{number}")


def retry_canary(
    root: Path,
    params: Params,
    model: str | None = None,
    *,
    reason: str,
    override: Override | None = None,
    actor: str | None = None,
) -> Promotion:
    """Give the canary's alias back to a version that was sent back (the last one by default), and open its canary.

    The gates before the alias are asked again; where one says no without an override, nothing is changed. Raises
    `UsageError` for a version that was not sent back or an alias without those gates, and as `promote`.
    """
    require_answering(params.serving.canary.alias, "serving.canary.alias")
    engine = open_database(root, params.operations, log.METADATA)
    ended = _sent_back(root, params, model, canaries(engine))
    last: Mapping[str, Any] = {"returned_at": ended.returned_at, "reason": ended.reason, "evidence": ended.evidence}
    given = promote(
        root,
        params,
        ended.challenger,
        params.serving.canary.alias,
        reason=reason,
        override=override,
        actor=actor,
        retry_of=last,
    )
    if given.promoted and not reopen(engine, ended, datetime.now(UTC)):
        raise OperationsError(
            f"{ended.challenger}: somebody else opened its canary meanwhile. See `plumbline history`."
        )
    return given


def _sent_back(root: Path, params: Params, model: str | None, found: list[CanaryRecord]) -> CanaryRecord:
    ended = {item.challenger: item for item in found if item.returned_at is not None}
    if model is None:
        if not ended:
            raise UsageError("no canary was sent back: there is nothing to try again. See `plumbline canary list`.")
        return max(ended.values(), key=lambda item: str(item.returned_at))
    from plumbline.tasks.registry.versions.registered import resolve

    uri = resolve(Store(root, params.registry), model).uri
    if uri not in ended:
        raise UsageError(
            f"{uri}: expected a version whose canary was sent back, found {', '.join(sorted(ended)) or 'none'}. "
            f"A first try begins with `plumbline promote {uri} --alias {params.serving.canary.alias}`."
        )
    return ended[uri]
