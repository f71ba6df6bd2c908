"""Which checks of `evaluation.measures.gate` stand before an alias, and which aliases may answer people."""

from __future__ import annotations

from plumbline.data_contracts.errors import UsageError
from plumbline.tasks.evaluation.measures.gate import ALIASES, CHECKS

GATES_OF: dict[str, tuple[str, ...]] = {
    alias: tuple(check.name for check in CHECKS if alias in check.before) for alias in ALIASES
}

# Aliases whose versions may answer people: none that is given on less than a challenger shows.
ANSWERING = tuple(alias for alias, names in GATES_OF.items() if {*GATES_OF["challenger"]} <= {*names})


def require_answering(alias: str, named_by: str) -> None:
    """Raise `UsageError` if `alias` is given without the gates of a version that answers people."""
    if alias not in ANSWERING:
        raise UsageError(
            f"{named_by} {alias[:40]!r}: expected an alias behind the gates of versions that answer people "
            f"({', '.join(ANSWERING)}), found one that is given without them. `plumbline promote` gives those."
        )
