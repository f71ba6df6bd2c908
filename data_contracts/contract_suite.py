"""Contracts as Great Expectations suites: one way to run any of them over records of feedback.

A contract checks a data frame with one row per record. Each expectation's `meta` holds the quarantine reason, the field
to blame and what was expected.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from plumbline.data_contracts.errors import StageError
from plumbline.data_contracts.plain_checks import Blamed, Columns, blame_plainly
from plumbline.data_contracts.records import Feedback, Message, Origin

SUITES = Path(__file__).parent / "suites"

# Reasons that contracts of feedback share, the first to apply.
READING_REASONS = {
    "bad_encoding": "the line is not UTF-8",
    "too_long": "the row has more bytes than feedback.max_row_bytes allows",
    "broken_json": "the line is not JSON",
    "too_deep": "lists and objects are nested deeper than can be written",
    "wrong_type": "a field, or the row, has another type than the format allows",
    "missing_field": "a field that the format needs is absent or null",
    "unknown_field": "a field that no format knows",
    "unknown_role": "a message's role is not system, user, assistant or tool",
    "tool_calls": "the row calls tools, or offers some, for which a record has no place",
}

_EXCERPT = 80  # characters of a value shown in a report


@dataclass(frozen=True, slots=True)
class Violation:
    """One way in which the record at `index` breaks its contract."""

    index: int
    record_id: str
    reason: str
    field: str
    expected: str
    found: str


class KnownIds:
    """The ids met so far, in this call and earlier ones, file by file: a digest of the content, and where it stood.

    An id is its file's: exports that start again at 0 each time give the same ids to other content. `settle` puts
    such a record under its content's id. Two contents under one id in one file are a conflict.
    """

    def __init__(self) -> None:
        self._first: dict[str, tuple[bytes, Origin]] = {}
        self._file = ""
        self._own: dict[str, tuple[bytes, Origin]] = {}  # of the present file

    def settle(self, record: Feedback) -> Feedback:
        """The record, under its content's id where an earlier file gave its id to other content."""
        known, where = self._first.setdefault(record.id, (_digest(record), record.origin))
        if known == _digest(record) or where.file == record.origin.file:
            return record
        return record.model_copy(update={"id": record.content_id(), "given_id": record.id})

    def conflict(self, record: Feedback) -> str:
        """The place at which the id was given to other content, else an empty string. The id is known from now on."""
        if record.origin.file != self._file:
            self._file, self._own = record.origin.file, {}
        given, mine = record.given_id or record.id, (_digest(record), record.origin)
        for known, where in (self._own.setdefault(given, mine), self._first.setdefault(record.id, mine)):
            if known != mine[0]:
                return f"{shorten(given)} has other content in {where.file} line {where.line}"
        return ""


def _digest(record: Feedback) -> bytes:
    return hashlib.blake2b(record.content_id().encode(), digest_size=16).digest()


def excerpt(value: object) -> str:
    """A value as JSON of at most 80 characters, for messages."""
    return shorten(json.dumps(value, ensure_ascii=False, default=str))


def shorten(text: str) -> str:
    """The text, cut to at most 80 characters."""
    return text if len(text) <= _EXCERPT else f"{text[: _EXCERPT - 1]}…"


@dataclass(frozen=True, slots=True)
class Contract:
    """A contract: its quarantine reasons with their meanings, in order of precedence, and the fields of its record."""

    name: str
    version: int
    reasons: Mapping[str, str]
    fields: frozenset[str]

    @property
    def suite(self) -> Path:
        """The suite's JSON file."""
        return SUITES / f"{self.name}.v{self.version}.json"


def feedback_columns(records: Sequence[Feedback], known: KnownIds) -> dict[str, list[Any]]:
    """The columns that every contract of feedback checks. `known` carries the ids of earlier calls."""
    return {
        "id": [record.id for record in records],
        "prompt_roles": [" ".join(turn.role for turn in record.prompt) for record in records],
        "prompt_blank_turns": [blank_turns(record.prompt) for record in records],
        "timestamp": [record.timestamp for record in records],
        "id_conflicts_with": [known.conflict(record) for record in records],
    }


def check(
    contract: Contract, columns: Columns, suite: Mapping[str, Any] | None = None, *, plainly: bool = False
) -> list[Violation]:
    """Run a contract over columns of records, `id` among them; a record without a violation satisfies it.

    `plainly`: by the plain equivalents of its expectations (`plain_checks`), which find the same in a few rows for a
    thousandth of the cost. Violations come in the order of the records and, for one record, of the contract's
    reasons. Raises `StageError` when an expectation itself fails to run: Great Expectations reports that as a mere lack
    of success, with no row to blame.
    """
    chosen = suite if suite is not None else read_suite(contract.suite)
    blamed = blame_plainly(chosen, columns) if plainly else _blame(contract, chosen, columns)
    rank = {reason: position for position, reason in enumerate(contract.reasons)}
    violations = [each for config, rows in blamed for each in _violations(config, rows, columns, contract)]
    return sorted(violations, key=lambda violation: (violation.index, rank[violation.reason]))


@cache
def read_suite(file: Path) -> Mapping[str, Any]:
    """A suite as read from its JSON file."""
    suite: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return suite


def blank_turns(prompt: Sequence[Message]) -> str:
    """The turns without a visible character, `turn 2 (assistant)`; empty if there is none."""
    if not prompt:
        return "no turns"
    blank = (f"turn {n} ({turn.role})" for n, turn in enumerate(prompt, 1) if not turn.content.strip())
    return ", ".join(blank)


def _run_suite(definition: Mapping[str, Any], columns: Columns) -> list[dict[str, Any]]:
    """Validate a data frame against a suite; returns one result (as JSON) an expectation."""
    from plumbline.data_contracts import expectations  # noqa: F401, I001  (registers the custom expectations; keep first)
    import great_expectations as gx
    import pandas as pd
    from great_expectations.core import ExpectationSuite
    from great_expectations.data_context.types.base import ProgressBarsConfig

    logging.getLogger("great_expectations").setLevel(logging.ERROR)
    # A context of its own for each call: the data source keeps every batch it has seen.
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    asset = context.data_sources.add_pandas("records").add_dataframe_asset("records")
    frame = pd.DataFrame(columns, dtype=object)
    batch = asset.add_batch_definition_whole_dataframe("records").get_batch({"dataframe": frame})
    suite = ExpectationSuite(
        name=definition["name"], expectations=list(definition["expectations"]), meta=dict(definition["meta"])
    )
    validation = batch.validate(suite, result_format={"result_format": "COMPLETE"})
    return [result.to_json_dict() for result in validation.results]


def _blame(contract: Contract, suite: Mapping[str, Any], columns: Columns) -> Iterator[Blamed]:
    """Each expectation and the rows that Great Expectations blames. Raises `StageError` if one could not be run."""
    for result in _run_suite(suite, columns):
        config = result["expectation_config"]
        rows = result["result"].get("unexpected_index_list") or ()
        message = _raised(result["exception_info"])
        if message is None and not result["success"] and not rows:
            message = "no success, and no row to blame"
        if message is not None:
            raise StageError(
                f"contract {contract.name} v{contract.version}: expectation {config['type']} {config['kwargs']} could "
                f"not be run: {message}. Nothing was accepted. Compare {contract.suite.name} and the installed "
                f"great-expectations with the tested version."
            )
        yield config, rows


def _violations(
    config: Mapping[str, Any], rows: Sequence[int], columns: Columns, contract: Contract
) -> Iterator[Violation]:
    """The records that one expectation blames."""
    meta, kwargs = config["meta"], config["kwargs"]
    column = kwargs.get("column_B") or kwargs["column"]
    show = excerpt if column in contract.fields else str
    for index in rows:
        record_id, found = str(columns["id"][index]), show(columns[column][index])
        yield Violation(index, record_id, meta["quarantine_reason"], meta["field"], meta["expected"], found)


def _raised(info: Mapping[str, Any]) -> str | None:
    """The message of an exception inside an expectation: flat, or one a metric."""
    if info.get("raised_exception"):
        return str(info.get("exception_message"))
    nested = (_raised(value) for value in info.values() if isinstance(value, Mapping))
    return next((message for message in nested if message is not None), None)
