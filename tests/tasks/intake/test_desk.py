"""The desk and its spool: requests that wait together, and the keys that are remembered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tasks.intake import spool
from tasks.intake.bodies import Row
from tasks.intake.desk import Desk, Submission

DAY_S = 86_400.0


def submission(key: str, text: bytes = b"{}") -> Submission:
    return Submission("tester", "human_pairs", key, f"digest of {text!r}", [Row(1, text)])


def judge(source: str, rows: Sequence[bytes]) -> list[Mapping[str, Any]]:
    if b"poison" in rows:
        raise RecursionError("too deep for the judge")
    return [{"status": "accepted", "id": None} for _ in rows]


def test_a_request_that_cannot_be_judged_spoils_no_other(tmp_path: Path) -> None:
    engine = spool.open_spool(tmp_path)
    desk = Desk(engine, judge)
    group = [submission("a"), submission("b", b"poison"), submission("c"), submission("a")]
    answers = [desk.submit(item) for item in group]  # before it works, so that they are one group
    desk.start()
    desk.stop()
    assert [answer.exception() is None for answer in answers] == [True, False, True, True]
    assert isinstance(answers[1].exception(), RecursionError)
    assert [answers[number].result().replayed for number in (0, 2, 3)] == [False, False, True]
    assert [(item.source, item.rows) for item in spool.waiting(engine)] == [("human_pairs", 2)]


@pytest.mark.parametrize(("keep", "remembered"), [(0, []), (2, ["c", "d"]), (9, ["a", "b", "c", "d"])])
def test_a_clock_that_jumps_forgets_no_recent_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: int, remembered: list[str]
) -> None:
    """Four keys, then a month within a moment: the newest `keep` stay. Without the jump all would."""
    engine = spool.open_spool(tmp_path)
    desk = Desk(engine, judge)
    desk.start()
    for key in "abcd":
        desk.submit(submission(key)).result(30)
    desk.stop()
    seal = spool.freeze(engine, "human_pairs")
    assert seal is not None
    spool.done(engine, seal, "batch", keep_s=30 * DAY_S, keep=0)
    assert all(spool.known(engine, [("tester", "human_pairs", key) for key in "abcd"]))
    now = spool._now()
    monkeypatch.setattr(spool, "_now", lambda: now + 31 * DAY_S)
    spool.done(engine, seal, "batch", keep_s=30 * DAY_S, keep=keep)
    found = spool.known(engine, [("tester", "human_pairs", key) for key in "abcd"])
    assert [key for key, answer in zip("abcd", found, strict=True) if answer] == remembered
