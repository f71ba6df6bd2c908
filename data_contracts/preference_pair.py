"""Contract `preference_pair` v1: what a pair must satisfy beyond its types, and the reasons for refusing one.

The checks are a Great Expectations suite, `suites/preference_pair.v1.json`. It runs over a data
frame with one row a pair and these columns:

| column               | content                                                                 |
|----------------------|-------------------------------------------------------------------------|
| `id`                 | the record's id                                                         |
| `prompt_roles`       | roles of the prompt's turns, separated by spaces: `system user`           |
| `prompt_blank_turns` | the turns without a visible character: `turn 2 (assistant)`; empty if none |
| `chosen`, `rejected` | the two responses                                                       |
| `timestamp`          | as given, or null                                                       |
| `id_conflicts_with`  | where this id was first given to other content; empty if nowhere          |

Each expectation's `meta` holds the quarantine reason, the field to blame and what was expected.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from data_contracts.errors import StageError
from data_contracts.records import PreferencePair, content_id

CONTRACT = "preference_pair"
VERSION = 1
SUITE = Path(__file__).parent / "suites" / f"{CONTRACT}.v{VERSION}.json"

REASONS: Mapping[str, str] = {
    "bad_encoding": "the line is not UTF-8",
    "broken_json": "the line is not JSON",
    "wrong_type": "a field, or the row, has another type than the format allows",
    "missing_field": "a field that the format needs is absent or null",
    "unknown_field": "a field that no format knows",
    "unknown_role": "a message's role is not system, user, assistant or tool",
    "bad_label": "the label is not a, b or tie",
    "tie": "the annotator preferred neither: sound, but it holds no preference",
    "empty_text": "a text is empty or blank",
    "no_shared_prompt": "chosen and rejected do not start with one prompt",
    "turn_order": "the turns of the conversation do not follow one another sensibly",
    "last_turn_not_user": "the prompt does not end with the user's turn",
    "identical_responses": "chosen and rejected are the same but for white space",
    "bad_timestamp": "the timestamp is not ISO 8601",
    "id_conflict": "an earlier row gave the same id to other content",
}
"""Every quarantine reason and its meaning, the first that applies being the one a row is counted under."""

NO_PREFERENCE = frozenset({"tie"})
"""Reasons that are no defect of the data, and do not count against the quarantine threshold."""

Columns = Mapping[str, Sequence[str | None]]

_EXCERPT = 80  # characters of a value shown in a report


@dataclass(frozen=True, slots=True)
class Violation:
    """One way in which the pair at `index` breaks the contract."""

    index: int
    record_id: str
    reason: str
    field: str
    expected: str
    found: str


@dataclass(slots=True)
class KnownIds:
    """The ids met so far, in this call and earlier ones: a digest of the content, and where it stood."""

    first: MutableMapping[str, tuple[bytes, str]] = field(default_factory=dict)

    def conflict(self, pair: PreferencePair) -> str:
        """Where the id first stood, if with other content; else an empty string, and the id is now known."""
        place = f"{pair.origin.file} line {pair.origin.line}"
        digest = hashlib.blake2b(content_id(pair.prompt, pair.chosen, pair.rejected).encode(), digest_size=16).digest()
        known, where = self.first.setdefault(pair.id, (digest, place))
        return "" if known == digest else f"{shorten(pair.id)} has other content in {where}"


def excerpt(value: object) -> str:
    """A value as JSON of at most 80 characters, for messages."""
    return shorten(json.dumps(value, ensure_ascii=False, default=str))


def shorten(text: str) -> str:
    """The text, cut to at most 80 characters."""
    return text if len(text) <= _EXCERPT else f"{text[: _EXCERPT - 1]}…"


def check_pairs(
    pairs: Sequence[PreferencePair], known: KnownIds | None = None, suite: Mapping[str, Any] | None = None
) -> list[Violation]:
    """Run the contract over pairs; a pair without a violation satisfies it.

    `known` carries the ids of earlier calls, so that a file read in pieces is checked as one.
    `suite` is the suite as read from JSON, by default the contract's. Violations come in the order
    of the pairs and, for one pair, of `REASONS`.

    Raises `StageError` when an expectation itself fails to run: Great Expectations reports that as
    a mere lack of success, with no row to blame.
    """
    if not pairs:
        return []
    definition = suite if suite is not None else load_suite()
    columns = _columns(pairs, known if known is not None else KnownIds())
    results = _run_suite(definition, columns)
    rank = {reason: position for position, reason in enumerate(REASONS)}
    violations = [violation for result in results for violation in _violations(result, columns)]
    return sorted(violations, key=lambda violation: (violation.index, rank[violation.reason]))


@cache
def load_suite() -> Mapping[str, Any]:
    """The contract's suite as read from its JSON file."""
    suite: dict[str, Any] = json.loads(SUITE.read_text(encoding="utf-8"))
    return suite


def _columns(pairs: Sequence[PreferencePair], known: KnownIds) -> Columns:
    return {
        "id": [pair.id for pair in pairs],
        "prompt_roles": [" ".join(turn.role for turn in pair.prompt) for pair in pairs],
        "prompt_blank_turns": [_blank_turns(pair) for pair in pairs],
        "chosen": [pair.chosen for pair in pairs],
        "rejected": [pair.rejected for pair in pairs],
        "timestamp": [pair.timestamp for pair in pairs],
        "id_conflicts_with": [known.conflict(pair) for pair in pairs],
    }


def _blank_turns(pair: PreferencePair) -> str:
    if not pair.prompt:
        return "no turns"
    blank = (f"turn {n} ({turn.role})" for n, turn in enumerate(pair.prompt, 1) if not turn.content.strip())
    return ", ".join(blank)


def _run_suite(definition: Mapping[str, Any], columns: Columns) -> list[dict[str, Any]]:
    """Validate a data frame against a suite; returns one result (as JSON) an expectation."""
    from data_contracts import expectations  # noqa: F401, I001  (registers the custom expectations; keep first)
    import great_expectations as gx
    import pandas as pd
    from great_expectations.core import ExpectationSuite
    from great_expectations.data_context.types.base import ProgressBarsConfig

    logging.getLogger("great_expectations").setLevel(logging.ERROR)
    # A context of its own for each call: the data source keeps every batch it has seen.
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    asset = context.data_sources.add_pandas("pairs").add_dataframe_asset("pairs")
    frame = pd.DataFrame(columns, dtype=object)
    batch = asset.add_batch_definition_whole_dataframe("pairs").get_batch({"dataframe": frame})
    suite = ExpectationSuite(
        name=definition["name"], expectations=list(definition["expectations"]), meta=dict(definition["meta"])
    )
    validation = batch.validate(suite, result_format={"result_format": "COMPLETE"})
    return [result.to_json_dict() for result in validation.results]


def _violations(result: Mapping[str, Any], columns: Columns) -> Iterator[Violation]:
    """The pairs that one expectation blames."""
    config = result["expectation_config"]
    message = _raised(result["exception_info"])
    if message is None and not result["success"] and not result["result"].get("unexpected_index_list"):
        message = "no success, and no row to blame"
    if message is not None:
        raise StageError(
            f"contract {CONTRACT} v{VERSION}: expectation {config['type']} {config['kwargs']} could not be run: "
            f"{message}. Nothing was accepted. Compare {SUITE.name} and the installed great-expectations with the "
            f"tested version."
        )
    meta, kwargs = config["meta"], config["kwargs"]
    column = kwargs.get("column_B") or kwargs["column"]
    show = excerpt if column in PreferencePair.model_fields else str
    for index in result["result"].get("unexpected_index_list") or ():
        record_id, found = str(columns["id"][index]), show(columns[column][index])
        yield Violation(index, record_id, meta["quarantine_reason"], meta["field"], meta["expected"], found)


def _raised(info: Mapping[str, Any]) -> str | None:
    """The message of an exception inside an expectation: flat, or one a metric."""
    if info.get("raised_exception"):
        return str(info.get("exception_message"))
    nested = (_raised(value) for value in info.values() if isinstance(value, Mapping))
    return next((message for message in nested if message is not None), None)
