"""Feedback that was withdrawn is set aside by its name, and counts for nothing else."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pytest

from plumbline.data_contracts.errors import ArtifactError
from plumbline.tasks.data.feedback.batches import BatchChoices, store_batch
from plumbline.tasks.data.feedback.validate import raw_batches, validate
from plumbline.tasks.data.feedback.withdrawals import Kind, Withdrawal, keep_withdrawal, load_withdrawals
from plumbline.tasks.params.feedback import FeedbackParams


def row(number: int, **more: object) -> dict[str, object]:
    return {"id": f"r{number}", "prompt": f"p{number}", "response_a": "x", "response_b": "y", "label": "a", **more}


def store(tmp_path: Path, rows: list[Any], senders: tuple[str, ...] = ()) -> str:
    path = tmp_path / "given.jsonl"
    path.write_bytes(b"".join(each if isinstance(each, bytes) else orjson.dumps(each) + b"\n" for each in rows))
    return (
        store_batch(path, "human_pairs", tmp_path / "raw", intake=BatchChoices(senders=senders))
        .path.relative_to(tmp_path)
        .as_posix()
    )


def withdraw(tmp_path: Path, kind: Kind, name: str, *, undone: bool = False) -> Path:
    entry = Withdrawal(kind, name, "paid for", "ops", "2026-11-29T18:00:00+00:00", undone)
    return keep_withdrawal(tmp_path / "raw", entry)


def books(tmp_path: Path) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    """The report, accepted and quarantined rows of a validation of the store."""
    folder = tmp_path / "validated"
    folder.mkdir(exist_ok=True)
    batches = raw_batches(tmp_path / "raw", within=tmp_path)
    report = validate(batches, FeedbackParams(), folder, withdrawn=load_withdrawals(tmp_path / "raw"))
    assert report["read"] == report["accepted"] + report["merged"] + report["quarantined"]
    found = [
        [orjson.loads(line) for line in (folder / name).open("rb")] for name in ("accepted.jsonl", "quarantine.jsonl")
    ]
    return report, found[0], found[1]


def test_each_kind_takes_out_its_own_rows(tmp_path: Path) -> None:
    """Of eight rows: three of the bot, two of ann (one of hers through the bot), two in the bad batch, two others."""
    sent = [row(1), row(2, annotator="ann"), row(3), row(4, label="b"), row(5, annotator="ann")]
    store(tmp_path, sent, ("bot", "bot", "bot", "app", "app"))
    bad = store(tmp_path, [row(6), row(7)])
    store(tmp_path, [row(8, label="b")])
    assert books(tmp_path)[0]["accepted"] == 8
    withdraw(tmp_path, "batch", bad)
    assert {each["id"] for each in books(tmp_path)[1]} == {"r1", "r2", "r3", "r4", "r5", "r8"}
    withdraw(tmp_path, "token", "bot")
    assert {each["id"] for each in books(tmp_path)[1]} == {"r4", "r5", "r8"}
    withdraw(tmp_path, "annotator", "ann")
    report, accepted, aside = books(tmp_path)
    assert {each["id"] for each in accepted} == {"r4", "r8"}
    assert report["reasons"] == {"withdrawn": 6}
    words = Counter(each["found"].partition(",")[0] for each in aside)
    assert words == {f"batch {bad}": 2, "token bot": 3, "annotator ann": 1}
    assert "by ops: paid for" in aside[0]["found"]


def test_withdrawn_rows_stop_no_run_and_hold_no_id(tmp_path: Path) -> None:
    """Nine of ten rows are broken, all labels are a, and an id is taken: reasons to stop, were it not withdrawn."""
    bad = store(tmp_path, [row(1), *[b"not json\n"] * 9, *[row(n) for n in range(20, 60)]])
    store(tmp_path, [row(1, prompt="another question"), row(2, label="b")])
    withdraw(tmp_path, "batch", bad)
    report, accepted, _ = books(tmp_path)
    assert {each["id"] for each in accepted} == {"r1", "r2"}
    assert report["reasons"] == {"withdrawn": 50}
    assert report["single_label"] == []


def test_a_broken_row_of_a_withdrawn_annotator_is_withdrawn_too(tmp_path: Path) -> None:
    store(tmp_path, [row(1, annotator="ann", label=7), row(2, annotator="ben"), row(3, label="b")])
    withdraw(tmp_path, "annotator", "ann")
    assert books(tmp_path)[0]["reasons"] == {"withdrawn": 1}


def test_what_another_sent_too_stays(tmp_path: Path) -> None:
    rows = [row(1), row(2, label="b")]
    store(tmp_path, rows, ("bot", "bot"))
    store(tmp_path, rows, ("app", "app"))
    withdraw(tmp_path, "token", "bot")
    assert books(tmp_path)[0]["accepted"] == 2
    withdraw(tmp_path, "token", "app")
    store(tmp_path, [row(3), row(4, label="b")])
    assert books(tmp_path)[0]["reasons"] == {"withdrawn": 2}


def test_a_withdrawal_is_taken_back_by_another_line(tmp_path: Path) -> None:
    store(tmp_path, [row(1, annotator="ann"), row(2, label="b")])
    withdraw(tmp_path, "annotator", "ann")
    withdraw(tmp_path, "annotator", "ann", undone=True)
    assert books(tmp_path)[0]["accepted"] == 2
    assert [entry.undone for entry in load_withdrawals(tmp_path / "raw").entries] == [False, True]
    withdraw(tmp_path, "annotator", "ann")
    assert books(tmp_path)[0]["accepted"] == 1


@pytest.mark.parametrize("change", [(b"ann", b"ben"), (b'"undone": false', b'"undone": true'), (b"{", b"")])
def test_a_changed_withdrawal_is_refused(tmp_path: Path, change: tuple[bytes, bytes]) -> None:
    store(tmp_path, [row(1, annotator="ann")])
    path = withdraw(tmp_path, "annotator", "ann")
    path.chmod(0o600)
    path.write_bytes(path.read_bytes().replace(*change))
    with pytest.raises(ArtifactError, match="this file was changed"):
        load_withdrawals(tmp_path / "raw")
