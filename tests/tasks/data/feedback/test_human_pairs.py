"""Rows of the source `human_pairs` become records with id, origin and metadata, or name their defect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from plumbline.data_contracts.records import Origin, PreferencePair, Quarantined, content_id
from plumbline.tasks.data.feedback import SOURCES
from plumbline.tasks.data.feedback.human_pairs import ReadRow, read
from plumbline.tasks.params.feedback_limits import Limits

ROW = {"prompt": "p", "chosen": "yes", "rejected": "no"}


def read_lines(tmp_path: Path, *lines: bytes | dict[str, Any]) -> list[ReadRow]:
    (tmp_path / "f").write_bytes(b"\n".join(line if isinstance(line, bytes) else orjson.dumps(line) for line in lines))
    return list(read(tmp_path / "f", "raw/f.jsonl"))


def read_pair(tmp_path: Path, row: dict[str, Any]) -> PreferencePair:
    (found,) = read_lines(tmp_path, row)
    assert isinstance(found.outcome, PreferencePair), found
    return found.outcome


def read_defect(tmp_path: Path, line: bytes | dict[str, Any]) -> Quarantined:
    (found,) = read_lines(tmp_path, line)
    assert isinstance(found.outcome, Quarantined), found
    return found.outcome


def test_a_bare_row_gets_an_id_from_its_content(tmp_path: Path) -> None:
    pair = read_pair(tmp_path, ROW)
    assert pair.id == content_id(pair.prompt, "yes", "no")
    assert (pair.source, pair.annotator, pair.timestamp, pair.metadata) == ("human_pairs", None, None, {})
    assert pair.origin == Origin(file="raw/f.jsonl", line=1)


def test_what_a_row_says_of_itself_is_kept(tmp_path: Path) -> None:
    row = {
        **ROW,
        "id": "r-1",
        "source": "web",
        "annotator": "n1",
        "timestamp": "2025-01-01",
        "meta": {"a": 1, "b": 1},
        "metadata": {"b": 2},
        "votes": ["a", "b"],
        "label_kind": "human",
    }
    pair = read_pair(tmp_path, row)
    assert (pair.id, pair.source, pair.annotator, pair.timestamp) == ("r-1", "web", "n1", "2025-01-01")
    assert pair.metadata == {"a": 1, "b": 2, "votes": ["a", "b"], "label_kind": "human"}


def test_numbers_are_ids_and_nulls_are_absent(tmp_path: Path) -> None:
    pair = read_pair(tmp_path, {**ROW, "id": 7, "annotator": 3, "timestamp": None, "other": None})
    assert (pair.id, pair.annotator, pair.timestamp) == ("7", "3", None)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", True),
        ("id", 1.5),
        ("id", ["x"]),
        ("annotator", ["a", "b"]),
        ("source", 1),
        ("timestamp", 17),
        ("timestamp", [1743413400]),
        ("meta", "x"),
        ("metadata", [1]),
    ],
)
def test_wrong_types_of_optional_fields(tmp_path: Path, field: str, value: object) -> None:
    found = read_defect(tmp_path, {**ROW, field: value})
    assert (found.reason, found.field) == ("wrong_type", field)


@pytest.mark.parametrize(
    ("line", "reason", "found"),
    [
        (b'{"prompt": "p", "chos', "broken_json", "column 22"),
        (b'{"prompt": NaN, "chos', "broken_json", "column 12"),
        (b'{"prompt": "\xe9"}', "bad_encoding", "byte 0xe9 at position 13"),
        (b'"text"', "wrong_type", '"text"'),
        (b"3", "wrong_type", "3"),
        (b"null", "wrong_type", "null"),
    ],
)
def test_lines_that_are_no_object(tmp_path: Path, line: bytes, reason: str, found: str) -> None:
    defect = read_defect(tmp_path, line)
    assert (defect.reason, defect.field, defect.record_id) == (reason, None, None)
    assert found in defect.found
    assert defect.raw == line.decode("utf-8", errors="backslashreplace")


def test_a_defect_knows_its_place_and_its_row(tmp_path: Path) -> None:
    bad = {**ROW, "id": "r-2", "chosen": 7}
    rows = read_lines(tmp_path, ROW, b"", bad)
    defect = rows[1].outcome
    assert isinstance(defect, Quarantined)
    assert (defect.file, defect.line, defect.field, defect.record_id) == ("raw/f.jsonl", 3, "chosen", "r-2")
    assert (defect.expected, defect.found) == ("a string, as the row's other texts are", "number 7")
    assert orjson.loads(defect.raw) == bad
    assert [row.format for row in rows] == ["trl_standard", "trl_standard"]


def test_labels_and_formats_are_reported(tmp_path: Path) -> None:
    row = {"prompt": "p", "response_a": "x", "response_b": "y"}
    rows = read_lines(tmp_path, {**row, "label": "b"}, {**row, "label": "tie"}, {**row, "label": "c"}, {"text": "x"})
    assert [found.label for found in rows] == ["b", "tie", None, None]
    assert [found.format for found in rows] == ["response_label"] * 3 + ["unrecognised"]


def test_a_number_that_is_none_costs_its_field_alone(tmp_path: Path) -> None:
    """NaN and infinities, as pandas and Python write them, where the format needs nothing; texts that say so stay."""
    line = (
        b'{"id": NaN, "prompt": "is NaN a number? \\"NaN\\"", "chosen": "Infinity", "rejected": "no", '
        b'"annotator": NaN, "margin": -Infinity, "meta": {"score": NaN, "page": 3, "all": [1, NaN]}}'
    )
    (found,) = read_lines(tmp_path, line)
    pair = found.outcome
    assert isinstance(pair, PreferencePair)
    assert (pair.id, pair.annotator, pair.chosen) == (pair.content_id(), None, "Infinity")
    assert pair.prompt[0].content == 'is NaN a number? "NaN"'
    assert pair.metadata == {"score": None, "page": 3, "all": [1, None]}
    assert [(note.kind, note.field) for note in found.notes] == [
        ("not_a_number", name) for name in ("id", "annotator", "margin", "meta")
    ]


@pytest.mark.parametrize(("field", "reason"), [("chosen", "wrong_type"), ("prompt", "wrong_type")])
def test_a_text_that_is_no_number_is_named(tmp_path: Path, field: str, reason: str) -> None:
    line = orjson.dumps({**ROW, field: "?"}).replace(b'"?"', b"NaN")
    defect = read_defect(tmp_path, line)
    assert (defect.reason, defect.field, defect.found) == (reason, field, "number NaN")


def test_every_unknown_field_is_named_at_once(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a", "name": "Bo", "weight": 1}, {"role": "user", "content": "b", "tool": {}}]
    first, second = read_lines(tmp_path, {**ROW, "mood": 1, "age": 2}, {**ROW, "prompt": turns})
    assert first.unknown == ("age", "mood")
    assert isinstance(first.outcome, Quarantined) and first.outcome.found == "age: 2; mood: 1"
    assert second.unknown == ("prompt[].name", "prompt[].tool", "prompt[].weight")


def test_a_row_over_the_limit_is_set_aside_by_its_beginning(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(orjson.dumps(ROW) + b"\n" + orjson.dumps({**ROW, "chosen": "x" * 5000}) + b"\n")
    first, second = read(tmp_path / "f", "raw/f.jsonl", Limits(max_row_bytes=1000))
    assert isinstance(first.outcome, PreferencePair) and isinstance(second.outcome, Quarantined)
    assert (second.outcome.reason, second.outcome.line, len(second.outcome.raw)) == ("too_long", 2, 501)
    assert second.outcome.expected == "at most 1,000 bytes (feedback.max_row_bytes)"


def test_the_source_is_listed() -> None:
    assert set(SOURCES) == {"human_pairs", "judged_pairs", "unpaired_responses"}
    assert SOURCES["human_pairs"] is read
