"""Champions by the lines of the ledger: those a rollback returns to without a gate, and the one before each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from plumbline.tasks.registry.ledger.chain import LedgerEntry
from plumbline.tasks.registry.versions.registered import CHAMPION


def was_champion(entries: Sequence[LedgerEntry], number: str) -> bool:
    """True if a version ever held the alias on record: it passed the gates then, or somebody answered for it."""
    return any(entry.alias == CHAMPION and entry.version == number for entry in entries)


def champion_before(entries: Sequence[LedgerEntry], number: str, is_live: Callable[[str], bool]) -> str | None:
    """The champion before `number`: a promotion is put on a stack, a rollback takes off what it leaves.

    Versions that were deleted, here or in MLflow (`is_live`), are passed over.
    """
    stack: list[str] = []
    deleted = {entry.version for entry in entries if entry.action == "delete"}
    deleted.add(number)
    for entry in entries:
        if entry.alias == CHAMPION and entry.version is not None:
            if entry.action == "rollback" and entry.version in stack:
                del stack[stack.index(entry.version) + 1 :]
            elif not stack or stack[-1] != entry.version:
                stack.append(entry.version)
    below = stack[: stack.index(number)] if number in stack else []
    return next((item for item in reversed(below) if item not in deleted and is_live(item)), None)
