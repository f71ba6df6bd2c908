"""Source `human_pairs`: preference pairs judged by people, from files in any known format to one record type."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from plumbline.data_contracts.records import Origin, PreferencePair, content_id
from plumbline.tasks.data.feedback.formats import Format, read_content, recognise
from plumbline.tasks.data.feedback.rows import ReadRow, RowReading, Rows, about, identifier, read_rows
from plumbline.tasks.params.feedback_limits import LIMITS, Limits


def read(rows: Rows, origin: str, limits: Limits = LIMITS, *, source: str = "human_pairs") -> Iterator[ReadRow]:
    """Read every row of a file, or of the texts given, streamed, in order.

    `origin` names the file in records and quarantine; `source` is the record's source where a row names none.
    Raises `UsageError` when the file itself cannot be read.
    """
    return read_rows(rows, origin, RowReading(recognise, partial(_build, source), _known_label), limits)


def _build(source: str, row: Mapping[str, Any], form: Format, origin: Origin) -> PreferencePair:
    content = read_content(row, form)
    return PreferencePair(
        id=identifier(row, "id") or content_id(content.prompt, content.chosen, content.rejected),
        prompt=content.prompt,
        chosen=content.chosen,
        rejected=content.rejected,
        origin=origin,
        **about(row, source),
    )


def _known_label(row: Mapping[str, Any]) -> str | None:
    label = row.get("label")
    return label if label in ("a", "b", "tie") else None
