"""Source `human_pairs`: preference pairs judged by people, from files in any known format to one record type.

A row with two responses gives one pair. A row with a list of responses gives the pairs of its list (`lists`). Rows
with one judged response are grouped by their prompt, and give the pairs of that list once the file was read (`groups`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from plumbline.data_contracts.records import Feedback, Origin, PreferencePair, Quarantined, content_id
from plumbline.tasks.data.feedback.defects import Defect
from plumbline.tasks.data.feedback.formats import READER, recognise
from plumbline.tasks.data.feedback.groups import Groups, RatedRow
from plumbline.tasks.data.feedback.lists import list_contents
from plumbline.tasks.data.feedback.pair_contents import pair_content
from plumbline.tasks.data.feedback.rated_pairs import group_contents, judged_row
from plumbline.tasks.data.feedback.readers import Reader, RowContent
from plumbline.tasks.data.feedback.rows import (
    FileHead,
    ReadRow,
    Rows,
    about,
    identifier,
    read_rows,
    set_aside,
    with_margin,
)
from plumbline.tasks.data.feedback.verdicts import Numbers
from plumbline.tasks.params.feedback_limits import LIMITS, Limits
from plumbline.tasks.params.feedback_rules import RULES, Rules


def read(
    rows: Rows, origin: str, limits: Limits = LIMITS, rules: Rules = RULES, *, source: str = "human_pairs"
) -> Iterator[ReadRow]:
    """Read every row of a file, or of the texts given, streamed, in order.

    `origin` names the file in records and quarantine; `source` is the record's source where a row names none.
    Raises `UsageError` when the file itself cannot be read.
    """
    return read_rows(rows, origin, lambda head: _PairReading(source, rules, head, origin), limits)


@dataclass
class _PairReading:
    """The reading of one file. Judged responses wait in `groups` until all rows were read."""

    source: str
    rules: Rules
    head: FileHead
    file: str
    groups: Groups = field(default_factory=Groups)

    def recognise(self, row: Mapping[str, Any]) -> str:
        return recognise(row)

    def outcomes(self, row: Mapping[str, Any], form: str, origin: Origin) -> Iterable[Feedback | Defect]:
        reader = READER[form]
        if reader.kind == "pair":
            return [pair_of(pair_content(reader, row, self.head.numbers), origin, self.source)]
        if reader.kind == "list":
            found = list_contents(reader, row, self.rules.list_pairs)
            return [each if isinstance(each, Defect) else pair_of(each, origin, self.source) for each in found]
        return self._hold(reader, row, origin)

    def label(self, row: Mapping[str, Any], form: str) -> str | None:
        return _known_label(row, form, self.head.numbers)

    def rest(self) -> Iterator[ReadRow]:
        for rows in self.groups.lists():
            yield from self._group(rows)

    def _group(self, rows: Sequence[RatedRow]) -> Iterator[ReadRow]:
        """The pairs of one prompt, its ties, and the rows that are in neither."""
        reader = READER[recognise(orjson.loads(rows[0].raw))]
        for row, found in group_contents(reader, rows, self.rules.list_pairs):
            origin = Origin(file=self.file, line=row.line, senders=row.senders)
            raw = row.raw.decode()
            if isinstance(found, Defect):
                outcome: Feedback | Quarantined = set_aside(found, origin, orjson.loads(row.raw), raw)
            else:
                outcome = pair_of(found, origin, self.source)
            yield ReadRow(row.line, raw, reader.name, outcome)

    def _hold(self, reader: Reader, row: Mapping[str, Any], origin: Origin) -> Iterable[Feedback | Defect]:
        """Keep a judged response until the others to its prompt are there; refuse one that cannot be compared."""
        held = judged_row(reader, row, origin, self.rules)
        about(row, self.source)
        if not self.head.is_file:
            expected = "a file: rated responses are paired within one (by themselves: source unpaired_responses)"
            raise Defect("no_pair", reader.response, expected, "a row by itself")
        self.groups.add(reader.name, *held)
        return ()


def pair_of(content: RowContent, origin: Origin, source: str) -> PreferencePair:
    """The record of one comparison; `source` is its source where the row names none. Raises `Defect`."""
    told = about(_plain(content.row, content.facts), source)
    told["metadata"] = with_margin({**told["metadata"], **content.facts})
    given = identifier(content.row, "id")
    if given is not None and content.part:
        given = f"{given}#{content.part}"
    return PreferencePair(
        id=given or content_id(content.prompt, content.chosen, content.rejected),
        prompt=content.prompt,
        chosen=content.chosen,
        rejected=content.rejected,
        origin=origin,
        **told,
    )


def _plain(row: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """A row without fields of the contract that hold something else in this format, as a source that is a list."""
    return {name: value for name, value in row.items() if not (name in facts and name in ("source", "annotator"))}


def _known_label(row: Mapping[str, Any], form: str, numbers: Numbers) -> str | None:
    """The verdict of a row as a, b or tie; None for formats without one, and for one that is not understood."""
    reader = READER.get(form)
    if reader is None or reader.verdict is None:
        label = row.get("label")
        return label if label in ("a", "b", "tie") else None
    try:
        return reader.verdict.side(reader.flatten(row) if reader.flatten else row, numbers)
    except (Defect, KeyError):
        return None
