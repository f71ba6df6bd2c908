"""Contract `preference_pair` v1: what a pair must satisfy beyond its types, and the reasons for refusing one.

The checks are a Great Expectations suite, `suites/preference_pair.v1.json`. It runs over a data
frame with one row per pair and these columns:

| column               | content                                                                 |
|----------------------|-------------------------------------------------------------------------|
| `id`                 | the record's id                                                         |
| `prompt_roles`       | roles of the prompt's turns, separated by spaces: `system user`           |
| `prompt_blank_turns` | the turns without a visible character: `turn 2 (assistant)`; empty if none |
| `chosen`, `rejected` | the two responses                                                       |
| `timestamp`          | as given, or null                                                       |
| `id_conflicts_with`  | where this file gave the id to other content before; empty if nowhere     |

Each expectation's `meta` holds the quarantine reason, the field to blame and what was expected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from plumbline.data_contracts.contract_suite import (
    READING_REASONS,
    Contract,
    Fields,
    check,
    feedback_columns,
    fields_of,
)
from plumbline.data_contracts.contract_suite import KnownIds as KnownIds
from plumbline.data_contracts.contract_suite import Violation as Violation
from plumbline.data_contracts.contract_suite import excerpt as excerpt
from plumbline.data_contracts.contract_suite import shorten as shorten
from plumbline.data_contracts.plain_checks import Columns
from plumbline.data_contracts.records import PreferencePair

CONTRACT = "preference_pair"
VERSION = 1

REASONS: Mapping[str, str] = {
    **READING_REASONS,
    "bad_label": "the label is not a, b or tie",
    "tie": "the annotator preferred neither: sound, but it holds no preference",
    "no_pair": "there is no other response that it would be compared with: sound, but it holds no preference",
    "empty_text": "a text is empty or blank",
    "no_shared_prompt": "chosen and rejected do not start with one prompt",
    "turn_order": "the turns of the conversation do not follow one another sensibly",
    "last_turn_not_user": "the prompt does not end with the user's turn or a tool's result",
    "identical_responses": "chosen and rejected are the same but for white space",
    "bad_timestamp": "the timestamp is not ISO 8601",
    "id_conflict": "an earlier row of the file gave the same id to other content",
}
"""Every quarantine reason and its meaning, the first that applies being the one that counts a row."""

NO_PREFERENCE = frozenset({"tie", "no_pair"})
"""Reasons that are no defect of the data, and do not count against the quarantine threshold."""

_CONTRACT = Contract(CONTRACT, VERSION, REASONS, frozenset(PreferencePair.model_fields))
SUITE = _CONTRACT.suite


def check_pairs(
    pairs: Sequence[PreferencePair],
    known: KnownIds | None = None,
    suite: Mapping[str, Any] | None = None,
    *,
    plainly: bool = False,
) -> list[Violation]:
    """Run the contract over pairs; a pair without a violation satisfies it.

    `known` carries the ids of earlier calls, so that a file read in pieces is checked as one.
    `suite` is the suite as read from JSON, by default the contract's. Violations come in the order
    of the pairs and, for one pair, of `REASONS`. `plainly`: without Great Expectations, see `contract_suite.check`.

    Raises `StageError` when an expectation itself fails to run: Great Expectations reports that as
    a mere lack of success, with no row to blame.
    """
    known = KnownIds() if known is None else known
    return check_pair_fields(fields_of(pairs), [known.conflict(pair) for pair in pairs], suite, plainly=plainly)


def check_pair_fields(
    pairs: Sequence[Fields],
    conflicts: Sequence[str],
    suite: Mapping[str, Any] | None = None,
    *,
    plainly: bool = False,
) -> list[Violation]:
    """`check_pairs` of pairs as in JSON, and where the id of each has other content (empty: nowhere)."""
    return check(_CONTRACT, _columns(pairs, conflicts), suite, plainly=plainly) if pairs else []


def _columns(pairs: Sequence[Fields], conflicts: Sequence[str]) -> Columns:
    return feedback_columns(pairs, conflicts) | {
        name: [pair[name] for pair in pairs] for name in ("chosen", "rejected")
    }
