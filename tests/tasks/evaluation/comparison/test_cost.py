from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest

from plumbline.data_contracts.records import CuratedPair, Message, Origin
from plumbline.tasks.evaluation.comparison.cost import Cost, Metered, read_cost
from plumbline.tasks.models.judging import Verdicts
from plumbline.tasks.training.rewards.judges.pairwise import from_scores
from plumbline.tasks.training.rewards.judges.reliability import calibrate

TICK = 0.03  # the system counts CPU time in ticks of 10 ms, user and system apart


@dataclass(frozen=True)
class Context:
    folder: Path

    def dep(self, name: str) -> Path:
        return self.folder / name


def spin(context: Context, *, seconds: float, **facts: Any) -> dict[str, Any]:
    """Take this much CPU time, then give the facts, or fail if told to."""
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass
    if facts.get("fail"):
        raise RuntimeError("killed")
    return facts


@pytest.mark.slow
def test_the_body_runs_unchanged_and_its_seconds_are_kept_beside_it(tmp_path: Path) -> None:
    account = tmp_path / "cost" / "cost.json"
    facts = Metered(spin, account)(Context(tmp_path), seconds=0.2, tokens={"seen": 7, "generated": 3})
    assert facts == {"tokens": {"seen": 7, "generated": 3}}
    cost = read_cost(account)
    assert cost is not None
    assert cost.cpu_seconds >= 0.2 - TICK
    assert cost.wall_seconds >= 0.2
    assert (cost.sessions, cost.tokens_seen, cost.tokens_generated) == (1, 7, 3)


@pytest.mark.slow
def test_a_session_that_was_cut_short_is_paid_for_by_the_next(tmp_path: Path) -> None:
    account = tmp_path / "cost.json"
    with pytest.raises(RuntimeError):
        Metered(spin, account)(Context(tmp_path), seconds=0.3, fail=True)
    Metered(spin, account)(Context(tmp_path), seconds=0.1)
    cost = read_cost(account)
    assert cost is not None
    assert cost.cpu_seconds >= 0.4 - 2 * TICK
    assert cost.sessions == 2
    assert (cost.tokens_seen, cost.tokens_generated) == (None, None)


def test_the_account_is_written_while_the_body_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a kill loses at most one interval."""
    account = tmp_path / "cost.json"
    monkeypatch.setattr("plumbline.tasks.evaluation.comparison.cost._EVERY_S", 0.01)

    def look(context: Context) -> dict[str, Any]:
        until = time.monotonic() + 30
        while not account.exists() and time.monotonic() < until:
            time.sleep(0.01)
        return {"found": read_cost(account) is not None}

    assert Metered(look, account)(Context(tmp_path)) == {"found": True}


@pytest.mark.parametrize(
    ("facts", "tokens"),
    [
        ({"tokens": {"seen": 7}}, (7, None)),
        ({"tokens": {"seen": 7, "generated": 0}}, (7, 0)),
        ({"method": "another"}, (None, None)),
    ],
)
def test_tokens_are_as_the_method_says_and_never_guessed(
    tmp_path: Path, facts: dict[str, Any], tokens: tuple[int | None, int | None]
) -> None:
    Metered(spin, tmp_path / "cost.json")(Context(tmp_path), seconds=0.0, **facts)
    cost = read_cost(tmp_path / "cost.json")
    assert cost is not None
    assert (cost.tokens_seen, cost.tokens_generated) == tokens


class Paid:
    """A judge of which each call costs 2 requests, half a second and 0.25."""

    name, digest, noise = "llm", "llm-1", None

    def judge(self, prompts: Any, groups: Any) -> Verdicts:
        judgement = from_scores([1.0, 0.0], None)
        return Verdicts([judgement] * len(groups), {"requests": 2.0, "seconds": 0.5, "cost": 0.25, "unusable": 0})


def test_what_a_judge_was_paid_reaches_the_account_and_the_price(tmp_path: Path) -> None:
    """Two sessions, the first of which fails: a calibration each, so 0.5 in all, beside CPU hours at 0."""

    def asks(context: Context, *, fail: bool) -> dict[str, Any]:
        report = calibrate(Paid(), make_pairs(3), 3, seed=0)
        assert report["counts"] == {"unusable": 0}
        if fail:
            raise RuntimeError("killed")
        return {}

    account = tmp_path / "cost.json"
    with pytest.raises(RuntimeError):
        Metered(asks, account)(Context(tmp_path), fail=True)
    Metered(asks, account)(Context(tmp_path), fail=False)
    calibrate(Paid(), make_pairs(3), 3, seed=0)  # outside, no account is open
    cost = read_cost(account)
    assert cost is not None
    assert (cost.judge_requests, cost.judge_seconds, cost.judge_cost) == (4, 1.0, 0.5)
    assert cost.price(0, 0) == 0.5


def make_pairs(count: int) -> list[CuratedPair]:
    return [
        CuratedPair(
            id=str(number),
            prompt=(Message(role="user", content="Hello"),),
            chosen="yes",
            rejected="no",
            source="test",
            origin=Origin(file="test", line=1),
            cluster=str(number),
        )
        for number in range(count)
    ]


def test_a_price_is_that_of_core_and_gpu_hours() -> None:
    """7,200 CPU s at 0.5 an hour are 1; 1,800 s on 2 GPUs at 3 an hour are 3."""
    assert Cost(1800, 7200, 1, gpus=2).price(0.5, 3) == pytest.approx(4.0)


@pytest.mark.parametrize("content", [None, b"{", orjson.dumps({"wall_seconds": 1}), orjson.dumps([1])])
def test_an_account_that_cannot_be_read_is_none(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "cost.json").write_bytes(content)
    assert read_cost(tmp_path / "cost.json") is None
