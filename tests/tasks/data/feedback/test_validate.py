"""Every row read is accepted or quarantined with a reason; too much breakage stops the run with an account."""

from __future__ import annotations

import errno
import gzip
import random
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plumbline.data_contracts.errors import ContractViolation, StageError, UsageError
from plumbline.data_contracts.preference_pair import REASONS
from plumbline.data_contracts.records import PreferencePair, Quarantined, load_jsonl
from plumbline.tasks.data.feedback import validate as module
from plumbline.tasks.data.feedback.accounts import describe
from plumbline.tasks.data.feedback.validate import raw_batches, validate
from plumbline.tasks.params.feedback import FeedbackParams

LENIENT = FeedbackParams(quarantine_threshold=1.0, max_row_bytes=2_000)


def row(number: int, **changes: Any) -> dict[str, Any]:
    return {"prompt": f"question {number}", "chosen": f"yes {number}", "rejected": "no", **changes}


def labelled(number: int, label: str) -> dict[str, Any]:
    return {"prompt": f"question {number}", "response_a": "yes", "response_b": "no", "label": label}


def run(
    tmp_path: Path, *files: list[Any], params: FeedbackParams = LENIENT, report_to: Path | None = None
) -> tuple[dict[str, Any], list[PreferencePair], list[Quarantined], dict[str, Any]]:
    """Validate files of rows (objects or raw lines); returns facts, accepted, quarantined and the report."""
    batches, folder = [], tmp_path / "out"
    folder.mkdir(exist_ok=True)
    for number, lines in enumerate(files, 1):
        path = tmp_path / f"{number}.jsonl"
        path.write_bytes(b"\n".join(line if isinstance(line, bytes) else orjson.dumps(line) for line in lines))
        batches.append(("human_pairs", f"raw/{number}.jsonl", path))
    facts = validate(batches, params, folder, report_to=report_to)
    accepted = list(load_jsonl(folder / "accepted.jsonl", PreferencePair))
    quarantined = list(load_jsonl(folder / "quarantine.jsonl", Quarantined))
    return facts, accepted, quarantined, orjson.loads((folder / "report.json").read_bytes())


LONG = b'{"prompt": "' + b"x" * 2_000 + b'"}'
DEEP = b'{"metadata":' + b"[" * 200 + b"]" * 200 + b"}"

# One line for every reason: (the line, reason, field).
DEFECTS: list[tuple[Any, str, str | None]] = [
    (b'{"prompt": "cut o', "broken_json", None),
    (LONG, "too_long", None),
    (DEEP, "too_deep", None),
    (b'{"prompt": "\xff"}', "bad_encoding", None),
    (row(2, chosen=3), "wrong_type", "chosen"),
    ({"prompt": "p", "chosen": "c"}, "missing_field", "rejected"),
    (row(3, mood="good"), "unknown_field", "mood"),
    (row(4, prompt=[{"role": "bot", "content": "x"}]), "unknown_role", "prompt[0].role"),
    (row(4, tools=[{"type": "function"}]), "tool_calls", "tools"),
    (labelled(5, "c"), "bad_label", "label"),
    (labelled(6, "tie"), "tie", "label"),
    ({"prompt": "p", "answers": [{"answer": "r", "rank": 1}]}, "no_pair", "answers"),
    (row(7, chosen=" \n"), "empty_text", "chosen"),
    ({"chosen": "one", "rejected": "two"}, "no_shared_prompt", "rejected"),
    (row(8, prompt=[{"role": "user", "content": "x"}] * 2), "turn_order", "prompt"),
    (
        row(9, prompt=[{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]),
        "last_turn_not_user",
        "prompt",
    ),
    (row(10, chosen="no "), "identical_responses", "rejected"),
    (row(11, timestamp="31/03/2025"), "bad_timestamp", "timestamp"),
    (row(12, id="taken"), "id_conflict", "id"),
]


def test_the_defects_of_this_test_are_all_there_are() -> None:
    assert sorted(reason for _, reason, _ in DEFECTS) == sorted(REASONS)


def test_the_deepest_row_that_is_let_in_is_written_whole(tmp_path: Path) -> None:
    """The row, its metadata and 198 lists in it are 200 levels."""
    nested = orjson.loads(b"[" * 198 + b"]" * 198)
    _, (accepted,), quarantined, _ = run(tmp_path, [row(1, metadata={"a": nested})])
    assert accepted.metadata == {"a": nested} and not quarantined


def test_every_defect_is_quarantined_with_reason_place_and_row(tmp_path: Path) -> None:
    lines = [row(1, id="taken"), *(line for line, _, _ in DEFECTS), row(99)]
    facts, accepted, quarantined, report = run(tmp_path, lines)
    assert [(found.reason, found.field) for found in quarantined] == [(reason, field) for _, reason, field in DEFECTS]
    assert [found.line for found in quarantined] == list(range(2, 2 + len(DEFECTS)))
    assert {found.file for found in quarantined} == {"raw/1.jsonl"}
    raw = [line if isinstance(line, bytes) else orjson.dumps(line) for line, _, _ in DEFECTS]
    whole = [line.decode("utf-8", "backslashreplace") for line in raw]
    assert [found.raw for found in quarantined] == [f"{row[:500]}…" if len(row) > 2_000 else row for row in whole]
    assert [pair.origin.line for pair in accepted] == [1, len(DEFECTS) + 2]
    assert (facts["read"], facts["accepted"], facts["merged"], facts["quarantined"]) == (21, 2, 0, 19)
    assert facts["reasons"] == dict.fromkeys(REASONS, 1)
    assert report["formats"] == {
        "trl_standard": 10,
        "trl_conversational": 3,
        "response_label": 2,
        "ranked_answers": 1,
        "implicit_prompt": 1,
        "unrecognised": 4,
    }


def test_rows_without_a_file_are_judged_as_those_of_a_file(tmp_path: Path) -> None:
    lines = [row(1, id="taken"), *(line for line, _, _ in DEFECTS), row(99)]
    _, accepted, quarantined, _ = run(tmp_path, lines)
    texts = [line if isinstance(line, bytes) else orjson.dumps(line) for line in lines]
    outcomes = module.check_rows("human_pairs", texts, "raw/1.jsonl", LENIENT.limits())
    assert [each for each in outcomes if isinstance(each, PreferencePair)] == accepted
    assert [each for each in outcomes if isinstance(each, Quarantined)] == quarantined


def test_a_row_with_several_defects_counts_once(tmp_path: Path) -> None:
    facts, _, (found,), _ = run(tmp_path, [row(1), row(2, chosen="", timestamp="x")])
    assert facts["reasons"] == {"empty_text": 1}
    assert found.found == '""; also timestamp: bad_timestamp'


def test_ids_conflict_within_a_file_over_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With pieces of two rows the conflict is found between pieces as within one."""
    monkeypatch.setattr(module, "_PIECE", 2)
    first = [row(1, id="x"), row(2), row(3, id="x"), row(1, id="x")]
    facts, accepted, quarantined, report = run(tmp_path, first, [row(4)])
    assert [(found.file, found.line) for found in quarantined] == [("raw/1.jsonl", 3)]
    assert quarantined[0].found == "x has other content in raw/1.jsonl line 1"
    assert [(pair.origin.file[4], pair.origin.line) for pair in accepted] == [("1", 1), ("1", 2), ("1", 4), ("2", 1)]
    assert [(batch["read"], batch["accepted"], batch["quarantined"]) for batch in report["batches"]] == [
        (4, 3, 1),
        (1, 1, 0),
    ]
    assert facts["read"] == 5


@pytest.mark.slow
def test_ids_that_each_export_starts_anew_are_those_of_their_file(tmp_path: Path) -> None:
    """Files 1 and 2 number other rows alike; file 3 repeats a row of each, one under the same id."""
    weeks = [[row(week * 100 + n, id=str(n)) for n in range(3)] for week in (1, 2)]
    again = [row(100, id="0"), row(201, id="1"), row(300, id="2"), row(301, id="2")]
    facts, accepted, quarantined, report = run(tmp_path, *weeks, again, params=FeedbackParams(max_row_bytes=2_000))
    assert facts["reasons"] == {"id_conflict": 1}
    assert (quarantined[0].record_id, quarantined[0].found) == ("2", "2 has other content in raw/3.jsonl line 3")
    ids = [(pair.id if pair.given_id is None else "content", pair.given_id) for pair in accepted]
    assert ids == [
        *((str(n), None) for n in range(3)),
        *(("content", str(n)) for n in range(3)),
        ("0", None),
        ("content", "1"),
        ("content", "2"),
    ]
    assert all(pair.id == pair.content_id() for pair in accepted if pair.given_id is not None)
    assert accepted[4].id == accepted[7].id  # the same content under one id, to be merged
    (note,) = report["notes"]
    assert (note["field"], note["note"], note["rows"]) == ("id", "id_reused", 6)
    assert note["examples"][0] == {"file": "raw/2.jsonl", "line": 1, "found": "0"}
    assert "given to other content by another file" in describe(report)


def test_a_file_that_cannot_be_read_is_skipped_where_it_cannot_be_taken_away(tmp_path: Path) -> None:
    """An empty batch, one that was cut off and a page, as older versions let them into the raw store."""
    rows = [orjson.dumps(row(n)) for n in range(3)]
    texts = {
        "empty": b"",
        "page": b"<html></html>",
        "cut": gzip.compress(b"\n".join(rows))[:-4],
        "sound": b"\n".join(rows),
    }
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text)
    batches = [("human_pairs", f"raw/{name}", tmp_path / name) for name in texts]
    strict = FeedbackParams(quarantine_threshold=0.0)
    facts = validate(batches, strict, tmp_path, skip_unreadable=True)
    assert (facts["read"], facts["accepted"], facts["quarantined"]) == (3, 3, 0)
    assert [skipped["file"] for skipped in facts["skipped"]] == ["raw/empty", "raw/page", "raw/cut"]
    assert "skipped raw/empty: raw/empty: expected JSON lines" in facts["warnings"][0]
    assert str(tmp_path) not in str(facts)


def test_unknown_fields_of_a_file_are_named_at_once(tmp_path: Path) -> None:
    lines = [row(1, mood=1, age=2), row(2, mood=1), row(3, zeal=3), row(4)]
    *_, report = run(tmp_path, lines)
    assert report["unknown_fields"] == report["batches"][0]["unknown_fields"] == {"mood": 2, "age": 1, "zeal": 1}
    assert "all unknown fields, with their rows: mood 2, age 1, zeal 1" in describe(report)


@pytest.mark.slow
def test_the_result_does_not_depend_on_the_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [row(n, **({"chosen": ""} if n % 3 == 0 else {})) for n in range(20)]
    outputs = []
    for size in (7, 10, 100):
        monkeypatch.setattr(module, "_PIECE", size)
        run(tmp_path, lines)
        outputs.append(
            [(tmp_path / "out" / name).read_bytes() for name in ("accepted.jsonl", "quarantine.jsonl", "report.json")]
        )
    assert outputs[0] == outputs[1] == outputs[2]


def test_the_threshold_is_a_fraction_of_rows_read(tmp_path: Path) -> None:
    """2 bad rows of 20 are 10 %: allowed at 0.1, too many at 0.09."""
    lines = [row(n, **({"chosen": ""} if n < 2 else {})) for n in range(20)]
    assert run(tmp_path, lines, params=FeedbackParams(quarantine_threshold=0.1))[0]["quarantined"] == 2
    with pytest.raises(ContractViolation) as stopped:
        run(tmp_path, lines, params=FeedbackParams(quarantine_threshold=0.09))
    message = str(stopped.value)
    assert "expected at most 9.0% of the rows in quarantine" in message
    assert "found 2 of 20 = 10.0%" in message
    assert "read 20 = accepted 18 + merged 0 + quarantined 2" in message
    assert (
        'chosen: empty_text — 2 cases (e.g. raw/1.jsonl line 1: expected a text with a visible character, found "")'
        in message
    )


def test_ties_are_set_aside_but_are_no_defect(tmp_path: Path) -> None:
    lines = [labelled(n, "tie") for n in range(6)] + [labelled(6, "a"), labelled(7, "b")]
    facts, *_ = run(tmp_path, lines, params=FeedbackParams(quarantine_threshold=0.0))
    assert (facts["reasons"], facts["label_counts"]) == ({"tie": 6}, {"tie": 6, "a": 1, "b": 1})


@pytest.mark.parametrize("lines", [[b"rubbish", b"{"], [labelled(1, "tie")], [{"question": "x"}]])
def test_no_valid_row_stops_whatever_the_threshold(tmp_path: Path, lines: list[Any]) -> None:
    with pytest.raises(ContractViolation, match=f"no valid row: .*found {len(lines)} rows, none of them valid"):
        run(tmp_path, lines)


def test_no_batches_say_how_to_get_some(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Set feedback\.path, run `plumbline ingest"):
        validate([], LENIENT, tmp_path)


def test_the_report_outlives_the_draft(tmp_path: Path) -> None:
    kept = tmp_path / "work" / "contract"
    with pytest.raises(ContractViolation) as stopped:
        run(tmp_path, [row(1), row(2, chosen="")], params=FeedbackParams(), report_to=kept)
    assert f"{kept / 'quarantine.jsonl'}" in str(stopped.value)
    assert [found.line for found in load_jsonl(kept / "quarantine.jsonl", Quarantined)] == [2]
    assert orjson.loads((kept / "report.json").read_bytes())["quarantined"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("label", ["a", "b"])
def test_one_class_only_stops(tmp_path: Path, label: str) -> None:
    lines = [labelled(n, label) for n in range(8)]
    with pytest.raises(ContractViolation) as stopped:
        run(tmp_path, lines, params=FeedbackParams())
    assert f"found one in raw/1.jsonl ({label} 8)" in str(stopped.value)
    assert "set feedback.on_single_label=warn" in str(stopped.value)
    facts, *_, report = run(tmp_path, lines, params=FeedbackParams(on_single_label="warn"))
    assert facts["accepted"] == 8
    assert facts["warnings"] == report["warnings"]
    assert "one class only" in report["warnings"][0]


@pytest.mark.slow
def test_one_class_is_judged_file_by_file_and_not_on_a_handful(tmp_path: Path) -> None:
    only_a = [labelled(n, "a") for n in range(7)]
    mixed = [labelled(n, "ab"[n % 2]) for n in range(20)]
    assert run(tmp_path, only_a, mixed, params=FeedbackParams())[3]["single_label"] == []
    with pytest.raises(ContractViolation, match=r"raw/1\.jsonl \(a 7\)"):
        run(tmp_path, only_a, mixed, params=FeedbackParams(single_label_rows=7))
    assert run(tmp_path, [row(n) for n in range(20)], params=FeedbackParams())[0]["label_counts"] == {}


def test_progress_is_told(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(orjson.dumps(row(1)))
    told: list[tuple[int, int, str]] = []
    batches = [("human_pairs", name, tmp_path / "f") for name in ("one", "two")]
    validate(batches, LENIENT, tmp_path, progress=lambda *step: told.append(step))
    assert told[-1] == (2, 2, "2 rows read")


def test_raw_batches_of_a_store_and_of_a_world(tmp_path: Path) -> None:
    for name in ("raw/human_pairs/b.jsonl.gz", "raw/human_pairs/a.jsonl", "raw/human_pairs/.incoming-1"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "world").mkdir()
    (tmp_path / "world" / "human_pairs.jsonl").touch()
    assert [batch[:2] for batch in raw_batches(tmp_path / "raw", tmp_path)] == [
        ("human_pairs", "raw/human_pairs/a.jsonl"),
        ("human_pairs", "raw/human_pairs/b.jsonl.gz"),
    ]
    assert [batch[:2] for batch in raw_batches(tmp_path / "world", tmp_path)] == [
        ("human_pairs", "world/human_pairs.jsonl")
    ]
    assert raw_batches(tmp_path / "absent", tmp_path) == []


def test_unknown_kinds_of_feedback(tmp_path: Path) -> None:
    (tmp_path / "smoke_signals").mkdir()
    (tmp_path / "smoke_signals" / "a.jsonl").touch()
    with pytest.raises(
        UsageError, match=r"of a known kind \(human_pairs, judged_pairs, unpaired_responses\), found 'smoke_signals'"
    ):
        raw_batches(tmp_path, tmp_path)


def test_a_damaged_batch_is_named(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(gzip.compress(orjson.dumps(row(1)))[:-4])
    with pytest.raises(UsageError, match="cut off"):
        validate([("human_pairs", "f", tmp_path / "f")], LENIENT, tmp_path)


def test_a_full_disk_is_a_stage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(record: object) -> bytes:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_line", refuse)
    with pytest.raises(StageError, match="No space left on device"):
        run(tmp_path, [row(1)])


def corrupt(lines: list[bytes], seed: int, damage: int) -> bytes:
    """Lines joined, then damaged: bytes overwritten, deleted or doubled at random."""
    rng = random.Random(seed)
    text = bytearray(b"\n".join(lines))
    for _ in range(damage):
        position = rng.randrange(len(text))
        how = rng.randrange(3)
        if how == 0:
            text[position] = rng.choice(b'{}[]",:\\\n\xff0a')
        elif how == 1:
            del text[position : position + rng.randrange(1, 6)]
        else:
            text[position:position] = text[position : position + 8]
    return bytes(text)


@pytest.mark.slow
@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32), damage=st.integers(0, 30), blank=st.integers(0, 2))
def test_accounting_identity_on_corrupted_files(
    tmp_path_factory: pytest.TempPathFactory, seed: int, damage: int, blank: int
) -> None:
    """Whatever happens to the bytes, every line that is not blank is accepted or quarantined, once."""
    tmp_path = tmp_path_factory.mktemp("corrupt")
    rows = [orjson.dumps(value) for n in range(4) for value in (row(n, id=str(n)), labelled(n, "ab"[n % 2]))]
    text = corrupt(rows + [b"", b" "] * blank, seed, damage)
    (tmp_path / "f").write_bytes(b"{}\n" + text)
    expected = {n for n, line in enumerate((b"{}\n" + text).split(b"\n"), 1) if line.strip(b" \t\r\n")}
    folder = tmp_path / "out"
    folder.mkdir()
    try:
        facts = validate([("human_pairs", "f", tmp_path / "f")], LENIENT, folder)
    except ContractViolation as stopped:
        assert "no valid row" in str(stopped)
        facts = orjson.loads((folder / "report.json").read_bytes())
    accepted = [pair.origin.line for pair in load_jsonl(folder / "accepted.jsonl", PreferencePair)]
    quarantined = [found.line for found in load_jsonl(folder / "quarantine.jsonl", Quarantined)]
    assert len(accepted) + len(quarantined) == len(expected)
    assert set(accepted) | set(quarantined) == expected
    assert facts["read"] == facts["accepted"] + facts["merged"] + facts["quarantined"] == len(expected)
    assert (facts["accepted"], facts["quarantined"]) == (len(accepted), len(quarantined))
    assert sum(facts["reasons"].values()) == len(quarantined)
    assert sum(facts["formats"].values()) == len(expected)
    assert describe(orjson.loads((folder / "report.json").read_bytes())).count(" — ") <= len(quarantined)
