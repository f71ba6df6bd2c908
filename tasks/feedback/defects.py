"""How reading a row fails: with a named reason, a field, what was expected and what was found."""

from __future__ import annotations

from data_contracts import preference_pair, unpaired_response


class Defect(Exception):
    """One row cannot be read as feedback. Caught where rows are read, and turned into a quarantine record."""

    def __init__(self, reason: str, field: str | None, expected: str, found: str) -> None:
        assert reason in preference_pair.REASONS or reason in unpaired_response.REASONS, reason
        super().__init__(f"{field or 'row'}: {reason}: expected {expected}, found {found}")
        self.reason = reason
        self.field = field
        self.expected = expected
        self.found = found
