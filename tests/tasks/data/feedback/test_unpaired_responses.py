"""Every format of single judged responses and every defect; the books of both kinds of feedback balance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from plumbline.data_contracts.errors import ContractViolation
from plumbline.data_contracts.records import Message, Quarantined, UnpairedResponse, load_jsonl
from plumbline.data_contracts.unpaired_response import REASONS
from plumbline.tasks.data.feedback.unpaired_responses import read
from plumbline.tasks.data.feedback.validate import raw_batches, validate
from plumbline.tasks.params.feedback import FeedbackParams

USER = [{"role": "user", "content": "hi"}]
LENIENT = FeedbackParams(quarantine_threshold=1.0, max_row_bytes=2_000)


def read_all(tmp_path: Path, *rows: Any) -> list[Any]:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(row if isinstance(row, bytes) else orjson.dumps(row) for row in rows))
    return list(read(path, "raw/rows.jsonl"))


@pytest.mark.parametrize(
    ("row", "form", "desirable"),
    [
        ({"prompt": "hi", "completion": "yes", "label": True}, "trl_unpaired", True),
        ({"prompt": "hi", "completion": "yes", "label": 0}, "trl_unpaired", False),
        ({"prompt": "\n\nHuman: hi\n\nAssistant:", "completion": " yes", "label": "False"}, "trl_unpaired", False),
        (
            {"prompt": USER, "completion": [{"role": "assistant", "content": "yes"}], "label": False},
            "trl_unpaired_conversational",
            False,
        ),
        ({"prompt": USER, "completion": "yes", "label": True}, "trl_unpaired_conversational", True),
        ({"prompt": "hi", "response": "yes", "thumb": "up"}, "thumb", True),
        ({"prompt": USER, "response": "yes", "thumb": " Thumbs_Down "}, "thumb", False),
        ({"prompt": "hi", "response": "yes", "thumb": -1.0}, "thumb", False),
        ({"messages": [*USER, {"role": "assistant", "content": "yes"}], "thumb": 1}, "conversation_thumb", True),
    ],
)
def test_every_format(tmp_path: Path, row: dict[str, Any], form: str, desirable: bool) -> None:
    (found,) = read_all(tmp_path, row)
    assert (found.format, found.label) == (form, "up" if desirable else "down")
    record = found.outcome
    assert isinstance(record, UnpairedResponse)
    assert record.prompt == (Message(role="user", content="hi"),)
    assert (record.response, record.desirable, record.source) == ("yes", desirable, "unpaired_responses")
    assert record.id == record.content_id()


def test_what_a_row_says_of_itself_is_kept(tmp_path: Path) -> None:
    row = {"prompt": "hi", "response": "yes", "thumb": "up", "id": 7, "annotator": "u1", "source": "app"}
    (found,) = read_all(tmp_path, row | {"timestamp": "2025-03-31", "meta": {"page": 3}, "margin": None})
    record = found.outcome
    assert (record.id, record.annotator, record.source, record.timestamp) == ("7", "u1", "app", "2025-03-31")
    assert record.metadata == {"page": 3}
    assert (record.origin.file, record.origin.line) == ("raw/rows.jsonl", 1)


def test_the_id_of_the_content_tells_the_judgement(tmp_path: Path) -> None:
    up, down = read_all(tmp_path, *({"prompt": "hi", "completion": "yes", "label": label} for label in (True, False)))
    assert up.outcome.id != down.outcome.id


# One line for every reason that reading or the contract gives: (the line, reason, field).
DEFECTS: list[tuple[Any, str, str | None]] = [
    (b'{"prompt": "cut o', "broken_json", None),
    (b"[" * 201 + b"]" * 201, "too_deep", None),
    (b'{"prompt": "\xff"}', "bad_encoding", None),
    (b'"' + b"x" * LENIENT.max_row_bytes + b'"', "too_long", None),
    ([1], "wrong_type", None),
    ({"prompt": 3, "response": "b", "thumb": "up"}, "wrong_type", "prompt"),
    ({"prompt": "a", "response": "b", "thumb": ["up"]}, "wrong_type", "thumb"),
    ({"prompt": "a", "completion": "b"}, "missing_field", "label"),
    ({"prompt": "a", "label": True}, "missing_field", "completion"),
    ({"prompt": "a", "response": "b", "thumb": "up", "mood": 1}, "unknown_field", "mood"),
    ({"prompt": [{"role": "bot", "content": "x"}], "response": "b", "thumb": "up"}, "unknown_role", "prompt[0].role"),
    (
        {"prompt": [{"role": "assistant", "content": None, "tool_calls": [{}]}], "response": "b", "thumb": "up"},
        "tool_calls",
        "prompt[0].tool_calls",
    ),
    ({"prompt": "a", "completion": "b", "label": "maybe"}, "bad_label", "label"),
    ({"prompt": "a", "completion": "b", "label": -1}, "bad_label", "label"),
    ({"prompt": "a", "response": "b", "thumb": 5}, "bad_label", "thumb"),
    ({"prompt": "a", "response": "b", "thumb": None}, "no_opinion", "thumb"),
    ({"prompt": "a", "response": "b", "thumb": "neutral"}, "no_opinion", "thumb"),
    (b'{"prompt": "a", "response": "b", "thumb": NaN}', "no_opinion", "thumb"),
    ({"prompt": "a", "response": "b", "thumb": 0}, "no_opinion", "thumb"),
    ({"prompt": "a", "response": " ", "thumb": "up"}, "empty_text", "response"),
    ({"messages": [], "thumb": "up"}, "empty_text", "messages"),
    ({"messages": USER, "thumb": "up"}, "turn_order", "messages"),
    ({"prompt": [*USER, *USER], "response": "b", "thumb": "up"}, "turn_order", "prompt"),
    (
        {"prompt": [*USER, {"role": "assistant", "content": "x"}], "response": "b", "thumb": "up"},
        "last_turn_not_user",
        "prompt",
    ),
    ({"prompt": "a", "response": "b", "thumb": "up", "timestamp": "yesterday"}, "bad_timestamp", "timestamp"),
    ({"prompt": "a", "response": "c", "thumb": "up", "id": "taken"}, "id_conflict", "id"),
]


def test_every_defect_is_quarantined_with_its_reason(tmp_path: Path) -> None:
    assert {reason for _, reason, _ in DEFECTS} == set(REASONS)
    first = {"prompt": "a", "response": "b", "thumb": "up", "id": "taken"}
    lines = [first, *(line for line, _, _ in DEFECTS)]
    facts, accepted, quarantined = run(tmp_path, [{"prompt": "p", "chosen": "c", "rejected": "r"}], lines)
    assert [(each.reason, each.field) for each in quarantined] == [(reason, field) for _, reason, field in DEFECTS]
    assert [each.line for each in quarantined] == list(range(2, len(lines) + 1))
    assert [each.id for each in accepted] == ["taken"]
    assert facts["read"] == facts["accepted"] + facts["merged"] + facts["quarantined"] == 1 + len(lines)
    assert facts["unpaired"] == {
        "contract": {"name": "unpaired_response", "version": 1},
        "read": len(lines),
        "accepted": 1,
        "merged": 0,
        "quarantined": len(DEFECTS),
        "reasons": facts["reasons"],
    }


def run(
    tmp_path: Path, pairs: list[Any], thumbs: list[Any], params: FeedbackParams = LENIENT, **more: Any
) -> tuple[dict[str, Any], list[UnpairedResponse], list[Quarantined]]:
    """Validate a raw store with a file of each kind."""
    for kind, lines in (("human_pairs", pairs), ("unpaired_responses", thumbs)):
        if lines:
            (tmp_path / "raw" / kind).mkdir(parents=True)
            text = b"\n".join(line if isinstance(line, bytes) else orjson.dumps(line) for line in lines)
            (tmp_path / "raw" / kind / "1.jsonl").write_bytes(text)
    folder = tmp_path / "out"
    folder.mkdir()
    facts = validate(raw_batches(tmp_path / "raw", tmp_path), params, folder, **more)
    accepted = list(load_jsonl(folder / "unpaired.jsonl", UnpairedResponse)) if thumbs else []
    return facts, accepted, list(load_jsonl(folder / "quarantine.jsonl", Quarantined))


def pair(number: int) -> dict[str, Any]:
    return {"prompt": f"question {number}", "chosen": "yes", "rejected": "no"}


def thumb(number: int, **changes: Any) -> dict[str, Any]:
    return {"prompt": f"question {number}", "response": "yes", "thumb": "up", **changes}


def test_without_single_responses_nothing_changes(tmp_path: Path) -> None:
    facts, _, _ = run(tmp_path, [pair(1)], [])
    assert "unpaired" not in facts
    assert not (tmp_path / "out" / "unpaired.jsonl").exists()


def test_broken_thumbs_do_not_hide_among_many_pairs(tmp_path: Path) -> None:
    """2 of 4 thumbs are bad, and 2 of 44 rows: below the threshold of 10 % together, above it apart."""
    thumbs = [thumb(1), thumb(2), thumb(3, response=""), thumb(4, thumb="?")]
    with pytest.raises(ContractViolation, match=r"10.0% of the rows of single responses .* found 2 of 4 = 50.0%"):
        run(tmp_path, [pair(number) for number in range(40)], thumbs, FeedbackParams())


def test_nobodys_opinion_is_no_defect(tmp_path: Path) -> None:
    thumbs = [thumb(1), *(thumb(number, thumb=None) for number in range(2, 9))]
    facts, accepted, _ = run(tmp_path, [pair(1)], thumbs, FeedbackParams(quarantine_threshold=0.0))
    assert len(accepted) == 1
    assert facts["unpaired"]["reasons"] == {"no_opinion": 7}


def test_single_responses_alone_stop_a_run_but_not_a_dry_one(tmp_path: Path) -> None:
    with pytest.raises(ContractViolation, match=r"at least one preference pair.*leave nothing to train a reward model"):
        run(tmp_path / "run", [], [thumb(1)])
    facts, accepted, _ = run(tmp_path / "dry", [], [thumb(1)], needs_pairs=False)
    assert facts["accepted"] == len(accepted) == 1
    with pytest.raises(ContractViolation, match="no valid row"):
        run(tmp_path / "none", [], [thumb(1, response="")], needs_pairs=False)


def test_a_parquet_export_with_gaps_reads_as_it_was_written(tmp_path: Path) -> None:
    """A column of thumbs with a null comes back as floats."""
    path = tmp_path / "rows.parquet"
    pq.write_table(
        pa.table({"prompt": ["a", "b", "c"], "response": ["x", "y", "z"], "thumb": pa.array([1.0, None, -1.0])}), path
    )
    rows = list(read(path, "rows.parquet"))
    assert [row.label for row in rows] == ["up", None, "down"]
    assert rows[1].outcome.reason == "no_opinion"


def test_params_name_what_is_ingested() -> None:
    assert FeedbackParams().to_ingest() == []
    named = {"prompt": "question"}
    both = FeedbackParams(path="pairs.jsonl", source="judged_pairs", unpaired_path="thumbs.jsonl", map=named)
    assert both.to_ingest() == [("judged_pairs", "pairs.jsonl", named), ("unpaired_responses", "thumbs.jsonl", {})]
