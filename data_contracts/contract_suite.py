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
from plumbline.data_contracts.records import Feedback

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

Fields = Mapping[str, Any]
"""The fields of a record, as in JSON."""

_DIGEST = 16  # bytes
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
        self._files: list[str] = []
        self._first: dict[str, bytes] = {}  # id -> digest, number of its file (4 bytes), line (8 bytes)
        self._own: dict[str, bytes] = {}  # of the present file

    def settle(self, record: Feedback) -> Feedback:
        """The record, under its content's id where an earlier file gave its id to other content."""
        content = record.content_id()
        if not self.is_taken(record.id, digest_of(content), record.origin.file, record.origin.line):
            return record
        return record.model_copy(update={"id": content, "given_id": record.id})

    def conflict(self, record: Feedback) -> str:
        """The place at which the id was given to other content, else an empty string. The id is known from now on."""
        digest, origin = digest_of(record.content_id()), record.origin
        return self.conflict_of(record.id, record.given_id, digest, origin.file, origin.line)

    def is_taken(self, name: str, digest: bytes, file: str, line: int) -> bool:
        """True if an earlier file gave the id to other content."""
        mine = self._packed(digest, file, line)
        known = self._first.setdefault(name, mine)
        return known[:_DIGEST] != digest and self._place(known)[0] != file

    def conflict_of(self, name: str, given: str | None, digest: bytes, file: str, line: int) -> str:
        """`conflict`, of the ids, digest and place of a record."""
        mine, given = self._packed(digest, file, line), given or name
        for known in (self._own.setdefault(given, mine), self._first.setdefault(name, mine)):
            if known is not mine and known[:_DIGEST] != digest:
                where, at = self._place(known)
                return f"{shorten(given)} has other content in {where} line {at}"
        return ""

    def _packed(self, digest: bytes, file: str, line: int) -> bytes:
        if not self._files or self._files[-1] != file:
            self._files.append(file)
            self._own = {}
        return digest + (len(self._files) - 1).to_bytes(4, "big") + line.to_bytes(8, "big")

    def _place(self, packed: bytes) -> tuple[str, int]:
        file = int.from_bytes(packed[_DIGEST : _DIGEST + 4], "big")
        return self._files[file], int.from_bytes(packed[_DIGEST + 4 :], "big")


def digest_of(content: str) -> bytes:
    """The digest of a content's id, 16 bytes."""
    return hashlib.blake2b(content.encode(), digest_size=_DIGEST).digest()


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


def feedback_columns(records: Sequence[Fields], conflicts: Sequence[str]) -> dict[str, list[Any]]:
    """The columns that every contract of feedback checks; `conflicts` says where each id has other content."""
    return {
        "id": [record["id"] for record in records],
        "prompt_roles": [" ".join([turn["role"] for turn in record["prompt"]]) for record in records],
        "prompt_blank_turns": [blank_turns(record["prompt"]) for record in records],
        "timestamp": [record["timestamp"] for record in records],
        "id_conflicts_with": list(conflicts),
    }


def fields_of(records: Sequence[Feedback]) -> list[Fields]:
    """The fields of records, as in JSON."""
    return [record.model_dump(mode="json") for record in records]


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


def blank_turns(prompt: Sequence[Mapping[str, str]]) -> str:
    """The turns without a visible character, `turn 2 (assistant)`; empty if there is none."""
    if not prompt:
        return "no turns"
    blank = [(n, turn) for n, turn in enumerate(prompt, 1) if not turn["content"] or turn["content"].isspace()]
    return ", ".join([f"turn {n} ({turn['role']})" for n, turn in blank])


def _run_suite(definition: Mapping[str, Any], columns: Columns) -> list[dict[str, Any]]:
    """Validate a data frame against a suite; returns one result (as JSON) an expectation."""
    from plumbline.data_contracts import expectations  # noqa: F401, I001  (registers the custom expectations; keep first)
    import great_expectations as gx
    from great_expectations.core import ExpectationSuite
    from great_expectations.data_context.types.base import ProgressBarsConfig

    logging.getLogger("great_expectations").setLevel(logging.ERROR)
    # A context of its own for each call: the data source keeps every batch it has seen.
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    asset = context.data_sources.add_pandas("records").add_dataframe_asset("records")
    frame = _frame(columns)
    batch = asset.add_batch_definition_whole_dataframe("records").get_batch({"dataframe": frame})
    suite = ExpectationSuite(
        name=definition["name"], expectations=list(definition["expectations"]), meta=dict(definition["meta"])
    )
    validation = batch.validate(suite, result_format={"result_format": "COMPLETE"})
    return [result.to_json_dict() for result in validation.results]


def _frame(columns: Columns) -> Any:
    import pandas as pd

    # texts in Arrow's memory: with Python objects every expectation copies them anew
    return pd.DataFrame({name: pd.array(values, dtype="str") for name, values in columns.items()})


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
