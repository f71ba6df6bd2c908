"""Defects of a row: a named reason, a field, the expected and the found value.

What costs a row no more than one of its fields, or its id, is a note.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from plumbline.data_contracts import preference_pair, unpaired_response

NOT_A_NUMBER, ID_REUSED = "not_a_number", "id_reused"

NOTES: Mapping[str, str] = {
    NOT_A_NUMBER: "left out of the record, because it is no number",
    ID_REUSED: "given to other content by another file, so that the record goes by its content's id",
}
"""Kinds of notes and their meaning."""


@dataclass(frozen=True, slots=True)
class Note:
    """A change to one field of a row that was read all the same."""

    kind: str
    field: str
    found: str


class Defect(Exception):
    """One row cannot be read as feedback. Caught where rows are read, and turned into a quarantine record."""

    def __init__(
        self, reason: str, field: str | None, expected: str, found: str, unknown: tuple[str, ...] = ()
    ) -> None:
        assert reason in preference_pair.REASONS or reason in unpaired_response.REASONS, reason
        super().__init__(f"{field or 'row'}: {reason}: expected {expected}, found {found}")
        self.reason = reason
        self.field = field
        self.expected = expected
        self.found = found
        self.unknown = unknown  # every field of the row that no format knows
