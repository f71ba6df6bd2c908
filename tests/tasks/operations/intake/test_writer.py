"""The writer and its spool: requests that wait together, and the keys that are remembered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from plumbline.tasks.operations.intake import spool
from plumbline.tasks.operations.intake import writer as writer_module
from plumbline.tasks.operations.intake.bodies import BodyRefusal, BodyRow
from plumbline.tasks.operations.intake.writer import SpoolWriter, Submission

DAY_S = 86_400.0


def submission(key: str, text: bytes = b"{}") -> Submission:
    return Submission("tester", "human_pairs", key, f"digest of {text!r}", [BodyRow(1, text)])


def judge(source: str, rows: Sequence[bytes]) -> list[Mapping[str, Any]]:
    if b"poison" in rows:
        raise RecursionError("too deep for the judge")
    return [{"status": "quarantined" if row == b"bad" else "accepted", "id": None} for row in rows]


def answered(writer: SpoolWriter, group: Sequence[Submission]) -> list[Any]:
    """What each of a group handed in at once is answered: status, whether replayed; or the error."""
    waiting = [writer.submit(item) for item in group]
    errors = [answer.exception(30) for answer in waiting]
    return [
        error or (answer.result().status, answer.result().replayed)
        for answer, error in zip(waiting, errors, strict=True)
    ]


def test_a_request_that_cannot_be_judged_spoils_no_other(tmp_path: Path) -> None:
    engine = spool.open_spool(tmp_path)
    writer = SpoolWriter(engine, judge)
    group = [submission("a"), submission("b", b"poison"), submission("c"), submission("a")]
    answers = [writer.submit(item) for item in group]  # before it works, so that they are one group
    writer.start()
    writer.stop()
    assert [answer.exception() is None for answer in answers] == [True, False, True, True]
    assert isinstance(answers[1].exception(), RecursionError)
    assert [answers[number].result().replayed for number in (0, 2, 3)] == [False, False, True]
    assert [(item.source, item.rows) for item in spool.waiting(engine)] == [("human_pairs", 2)]


@pytest.mark.parametrize(
    ("requests", "rows", "groups"), [(4, 99, [4, 4, 1]), (99, 8, [4, 4, 1]), (99, 7, [4, 4, 1]), (99, 6, [3, 3, 3])]
)
def test_a_group_ends_at_its_bound_of_requests_or_of_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, requests: int, rows: int, groups: list[int]
) -> None:
    """Nine requests of two rows wait: the one that reaches a bound (8 rows) or passes it (7 rows) is the last."""
    monkeypatch.setattr(writer_module, "_GROUP_REQUESTS", requests)
    monkeypatch.setattr(writer_module, "_GROUP_ROWS", rows)
    kept, keep = list[int](), spool.keep
    monkeypatch.setattr(spool, "keep", lambda engine, taken: kept.append(len(taken)) or keep(engine, taken))
    writer = SpoolWriter(spool.open_spool(tmp_path), judge)
    for number in range(9):
        writer.submit(
            Submission("tester", "human_pairs", f"{number}", "digest", [BodyRow(1, b"{}"), BodyRow(2, b"{}")])
        )
    writer.start()
    writer.stop()
    assert kept == groups


def test_a_key_answers_its_body_again_and_no_other(tmp_path: Path) -> None:
    """Where nothing was accepted the key stays free, beside others of its group too."""
    writer = SpoolWriter(spool.open_spool(tmp_path), judge)
    writer.start()
    assert answered(writer, [submission("a", b"bad"), submission("b")]) == [(422, False), (202, False)]
    assert answered(writer, [submission("a"), submission("b")]) == [(202, False), (202, True)]
    refused = answered(writer, [submission("a", b"other"), submission("b", b"other")])
    assert [(error.status, error.code) for error in refused if isinstance(error, BodyRefusal)] == [
        (409, "key_reused")
    ] * 2
    writer.stop()


def test_a_spool_that_fails_is_told_to_all_that_wait_and_the_next_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("the disk is gone")

    writer = SpoolWriter(spool.open_spool(tmp_path), judge)
    for item in (known := [submission("a")]):
        writer.submit(item)
    waiting = [writer.submit(item) for item in [submission("a", b"bad"), submission("b")]]
    with monkeypatch.context() as patch:
        patch.setattr(spool, "keep", fail)
        writer.start()
        assert [type(answer.exception(30)) for answer in [known[0].answer, *waiting]] == [OSError] * 3
    assert answered(writer, [submission("a"), submission("b")]) == [(202, False), (202, False)]
    with monkeypatch.context() as patch:  # one of the group was answered before: it keeps that answer
        patch.setattr(spool, "keep", fail)
        again = answered(writer, [submission("a"), submission("c")])
    assert again[0] == (202, True) and isinstance(again[1], OSError)
    assert answered(writer, [submission("c")]) == [(202, False)]
    writer.stop()


@pytest.mark.parametrize(("keep", "remembered"), [(0, []), (2, ["c", "d"]), (9, ["a", "b", "c", "d"])])
def test_a_clock_that_jumps_forgets_no_recent_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: int, remembered: list[str]
) -> None:
    """Four keys, then a month within a moment: the newest `keep` stay. Without the jump all would."""
    engine = spool.open_spool(tmp_path)
    writer = SpoolWriter(engine, judge)
    writer.start()
    for key in "abcd":
        writer.submit(submission(key)).result(30)
    writer.stop()
    seal = spool.freeze(engine, "human_pairs")
    assert seal is not None
    spool.done(engine, seal, "batch", keep_s=30 * DAY_S, keep=0)
    assert all(spool.known(engine, [("tester", "human_pairs", key) for key in "abcd"]))
    now = spool._now()
    monkeypatch.setattr(spool, "_now", lambda: now + 31 * DAY_S)
    spool.done(engine, seal, "batch", keep_s=30 * DAY_S, keep=keep)
    found = spool.known(engine, [("tester", "human_pairs", key) for key in "abcd"])
    assert [key for key, answer in zip("abcd", found, strict=True) if answer] == remembered
