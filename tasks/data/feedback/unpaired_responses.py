"""Source `unpaired_responses`: single responses that people liked or did not, from files in any known format.

The formats are those of kind `opinion` (a thumb or a label) and `rating` (a number on a scale) in the table of readers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from plumbline.data_contracts.records import Feedback, Origin, UnpairedResponse
from plumbline.tasks.data.feedback.defects import Defect
from plumbline.tasks.data.feedback.formats import READER, SINGLES, recognise
from plumbline.tasks.data.feedback.opinion_words import known_opinion
from plumbline.tasks.data.feedback.opinions import single
from plumbline.tasks.data.feedback.rows import ReadRow, Rows, about, identifier, read_rows
from plumbline.tasks.params.feedback_limits import LIMITS, Limits
from plumbline.tasks.params.feedback_rules import RULES, Rules

SOURCE = "unpaired_responses"


def read(rows: Rows, origin: str, limits: Limits = LIMITS, rules: Rules = RULES) -> Iterator[ReadRow]:
    """Read every row of a file, or of the texts given, in order; `origin` names the file in records and quarantine.

    Raises `UsageError` when the file itself cannot be read.
    """
    return read_rows(rows, origin, lambda _: _SingleReading(rules), limits)


class _SingleReading:
    def __init__(self, rules: Rules) -> None:
        self._rules = rules

    def recognise(self, row: Mapping[str, Any]) -> str:
        return recognise(row, SINGLES)

    def outcomes(self, row: Mapping[str, Any], form: str, origin: Origin) -> Iterable[Feedback | Defect]:
        found = single(READER[form], row, self._rules)
        told = about(row, SOURCE)
        told["metadata"] = {**told["metadata"], **found.facts}
        record = UnpairedResponse(
            id="", prompt=found.prompt, response=found.response, desirable=found.desirable, origin=origin, **told
        )
        return [record.model_copy(update={"id": identifier(row, "id") or record.content_id()})]

    def label(self, row: Mapping[str, Any], form: str) -> str | None:
        return known_opinion(row)

    def rest(self) -> Iterator[ReadRow]:
        return iter(())
