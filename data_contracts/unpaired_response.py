"""Contract `unpaired_response` v1: what a single judged response must satisfy, and the reasons for refusing one.

The checks are a Great Expectations suite, `suites/unpaired_response.v1.json`. It runs over a data frame with one row a
response and the columns of `preference_pair` that apply: `id`, `prompt_roles`, `prompt_blank_turns`, `response`,
`timestamp` and `id_conflicts_with`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from plumbline.data_contracts.contract_suite import (
    READING_REASONS,
    Contract,
    Fields,
    KnownIds,
    Violation,
    check,
    feedback_columns,
    fields_of,
)
from plumbline.data_contracts.plain_checks import Columns
from plumbline.data_contracts.records import UnpairedResponse

CONTRACT = "unpaired_response"
VERSION = 1

REASONS: Mapping[str, str] = {
    **READING_REASONS,
    "bad_label": "the label or thumb is none of the values that say yes or no",
    "no_opinion": "nobody gave a thumb, or a neutral one: sound, but it holds no preference",
    "empty_text": "a text is empty or blank",
    "turn_order": "the turns of the conversation do not follow one another sensibly",
    "last_turn_not_user": "the prompt does not end with the user's turn or a tool's result",
    "bad_timestamp": "the timestamp is not ISO 8601",
    "id_conflict": "an earlier row of the file gave the same id to other content",
}
"""Every quarantine reason and its meaning, the first that applies being the one that counts a row."""

NO_PREFERENCE = frozenset({"no_opinion"})
"""Reasons that are no defect of the data, and do not count against the quarantine threshold."""

_CONTRACT = Contract(CONTRACT, VERSION, REASONS, frozenset(UnpairedResponse.model_fields))
SUITE = _CONTRACT.suite


def check_unpaired(
    responses: Sequence[UnpairedResponse],
    known: KnownIds | None = None,
    suite: Mapping[str, Any] | None = None,
    *,
    plainly: bool = False,
) -> list[Violation]:
    """Run the contract over responses, as `preference_pair.check_pairs` does over pairs."""
    known = KnownIds() if known is None else known
    conflicts = [known.conflict(each) for each in responses]
    return check_response_fields(fields_of(responses), conflicts, suite, plainly=plainly)


def check_response_fields(
    responses: Sequence[Fields],
    conflicts: Sequence[str],
    suite: Mapping[str, Any] | None = None,
    *,
    plainly: bool = False,
) -> list[Violation]:
    """`check_unpaired` of responses as in JSON, and where the id of each has other content (empty: nowhere)."""
    return check(_CONTRACT, _columns(responses, conflicts), suite, plainly=plainly) if responses else []


def _columns(responses: Sequence[Fields], conflicts: Sequence[str]) -> Columns:
    return feedback_columns(responses, conflicts) | {"response": [each["response"] for each in responses]}
