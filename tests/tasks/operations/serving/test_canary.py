"""Sticky shares, and the return of a challenger that is shown to be worse: at once, once, and for good."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from sqlalchemy import Engine, delete

from plumbline.data_contracts.errors import RegistryError
from plumbline.data_contracts.interactions import Interaction, InteractionFeedback, ServedCompletion
from plumbline.data_contracts.records import Message
from plumbline.tasks.operations.serving import evidence, log
from plumbline.tasks.operations.serving.canary import Canary, canaries, sticky_key, worse
from plumbline.tasks.operations.serving.chat import ChatRequest
from plumbline.tasks.operations.serving.collect import LEFT
from plumbline.tasks.params.serving import CanaryParams
from plumbline.tasks.statistics.anytime import rate_difference_sequence
from plumbline.tasks.storage.database import writing
from tests.tasks.operations.serving.conftest import Clock, Registry, Scripted

pytestmark = pytest.mark.slow

ONE, TWO = "models:/a/1", "models:/a/2"
PARAMS = CanaryParams(share=0.5)


class Told(list[tuple[str, Mapping[str, Any]]]):
    def __call__(self, reason: str, evidence: Mapping[str, Any]) -> None:
        self.append((reason, evidence))


def make(engine: Engine, told: Told, clock: Clock, challenger: str = TWO) -> Canary:
    registry = Registry({"champion": ONE, "challenger": challenger}, {ONE: Scripted(), challenger: Scripted()})
    slots = registry.slot("canary", "challenger"), registry.slot("champion", "champion")
    return Canary(engine, *slots, PARAMS, told, clock)


def write(
    engine: Engine,
    clock: Clock,
    count: int,
    *,
    canary: bool,
    bad: int = 0,
    uri: str | None = None,
    user: str | None = None,
    **changed: Any,
) -> None:
    """`count` answers (to one user, where named), the first `bad` of them with the changed fields."""
    uri = uri or (TWO if canary else ONE)
    good: dict[str, Any] = {
        "side": "challenger" if canary else "champion", "model_uri": uri, "text": "x", "tokens": 1,
        "latency_ms": 10.0, "finish_reason": "stop", "refusal": False, "violation": False,
    }  # fmt: skip
    batch = [
        Interaction(
            id=f"{uri}-{clock().timestamp()}",
            received_at=clock(),
            prompt=(Message(role="user", content="x"),),
            canary=canary,
            user=user,
            answers=(ServedCompletion(**{**good, **(changed if number < bad else {})}),),
        )
        for number in range(count)
    ]
    log.record_all(engine, batch)


def users(canary: Canary) -> set[int]:
    chosen = set()
    for number in range(200):
        if served := canary.choose(ChatRequest((Message(role="user", content="x"),), user=f"u{number}")):
            served.end()
            chosen.add(number)
    return chosen


def test_a_user_stays_on_one_side_and_a_conversation_by_how_it_began(engine: Engine) -> None:
    canary = make(engine, Told(), Clock())
    assert users(canary) == set()  # before the first look nobody is answered by the challenger
    canary.check()
    chosen = users(canary)
    assert 60 < len(chosen) < 140
    assert users(canary) == chosen
    first = (Message(role="system", content="s"), Message(role="user", content="q"))
    later = (*first, Message(role="assistant", content="a"), Message(role="user", content="r"))
    assert sticky_key(ChatRequest(first)) == sticky_key(ChatRequest(later))
    assert sticky_key(ChatRequest(first)) != sticky_key(ChatRequest(first[:1] + later[3:]))


def test_each_figure_sends_a_worse_challenger_back(engine: Engine) -> None:
    for figure, changed in {
        "violation": {"violation": True},
        "refusal": {"refusal": True},
        "slow": {"latency_ms": 6000.0},
        "error": {"finish_reason": "error", "error": "broken"},
    }.items():
        fresh, clock, told = engine, Clock(), Told()
        _clear(fresh)
        canary = make(fresh, told, clock)
        assert not canary.check()
        write(fresh, clock, 150, canary=False)
        write(fresh, clock, 150, canary=True, bad=60, **changed)
        assert canary.check(), figure
        assert users(canary) == set()
        ((reason, evidence),) = told
        assert set(evidence["figures"]) == {figure}
        assert evidence["figures"][figure]["challenger"] == 0.4
        assert reason == canary.returned


def test_the_figures_share_alpha_and_a_difference_is_held_to_its_margin() -> None:
    """Each of five intervals is at a fifth of alpha. One whose end is at the margin, no further, shows nothing yet."""
    figures = ("violation", "refusal", "error", "slow", "thumb_down")
    assert tuple(sorted(PARAMS.margins.model_dump())) == tuple(sorted(figures))
    good = dict.fromkeys(figures, (0, 150))
    interval = rate_difference_sequence(60, 150, 0, 150, alpha=PARAMS.alpha / 5)
    found = worse({**good, "violation": (60, 150)}, good, PARAMS)
    assert found["violation"] == {
        "challenger": 0.4,
        "challenger_n": 150,
        "champion": 0.0,
        "champion_n": 150,
        "difference": pytest.approx(0.4),
        "low": interval.low,
        "high": interval.high,
        "margin": PARAMS.margins.violation,
    }
    at_margin = PARAMS.model_copy(update={"margins": PARAMS.margins.model_copy(update={"violation": interval.low})})
    assert set(found) == {"violation"}
    assert worse({**good, "violation": (60, 150)}, good, at_margin) == {}
    assert worse({**good, "violation": (0, 0)}, good, PARAMS) == {}  # nobody was answered yet


def test_a_champion_is_no_challenger_of_itself(engine: Engine) -> None:
    clock, told = Clock(), Told()
    canary = make(engine, told, clock, challenger=ONE)
    write(engine, clock, 150, canary=False)
    write(engine, clock, 150, canary=True, uri=ONE, bad=100, violation=True)
    assert not canary.check()
    assert (users(canary), canaries(engine), told) == (set(), [], [])
    assert canary.state() == {"challenger": ONE, "serving": False, "returned": None}


def test_a_return_that_the_ledger_refuses_holds_all_the_same_and_says_so(engine: Engine) -> None:
    def refuse(*_: object) -> None:
        raise RegistryError("the ledger is not whole")

    clock = Clock()
    registry = Registry({"champion": ONE, "challenger": TWO}, {ONE: Scripted(), TWO: Scripted()})
    slots = registry.slot("canary", "challenger"), registry.slot("champion", "champion")
    canary = Canary(engine, *slots, PARAMS, refuse, clock)
    canary.check()
    write(engine, clock, 150, canary=False)
    write(engine, clock, 150, canary=True, bad=100, violation=True)
    assert canary.check()
    assert canary.returned is not None
    assert canary.returned.endswith("It could not be put on the ledger: the ledger is not whole")
    assert users(canary) == set() and canary.state()["serving"] is False


def test_thumbs_count_once_each(engine: Engine) -> None:
    clock, told = Clock(), Told()
    canary = make(engine, told, clock)
    canary.check()
    for side in (False, True):
        write(engine, clock, 150, canary=side)
    for interaction, _ in list(log.interactions(engine)):
        kind: Any = "thumb_down" if interaction.canary else "thumb_up"
        assert log.add_feedback(engine, InteractionFeedback(request_id=interaction.id, kind=kind, at=clock()))
    assert canary.check()
    assert set(told[0][1]["figures"]) == {"thumb_down"}


def test_a_request_has_one_vote_under_however_many_names(engine: Engine) -> None:
    clock, told = Clock(), Told()
    canary = make(engine, told, clock)
    canary.check()
    for side in (False, True):
        write(engine, clock, 150, canary=side)
    for interaction, _ in list(log.interactions(engine)):
        log.add_feedback(engine, InteractionFeedback(request_id=interaction.id, kind="thumb_up", at=clock()))
    victim = next(interaction.id for interaction, _ in log.interactions(engine) if interaction.canary)
    for number in range(300):
        given = InteractionFeedback(request_id=victim, kind="thumb_down", at=clock(), annotator=f"sybil {number}")
        assert log.add_feedback(engine, given)
    assert not canary.check()
    assert told == []


def test_a_user_who_asks_and_votes_all_day_has_one_vote_in_each_figure(engine: Engine) -> None:
    """One user: 300 canary answers, 200 refused and all voted down; beside them 20 good ones of nobody."""
    clock, told = Clock(), Told()
    canary = make(engine, told, clock)
    canary.check()
    write(engine, clock, 150, canary=False)
    write(engine, clock, 300, canary=True, bad=200, user="ab" * 16, refusal=True)
    for interaction, _ in list(log.interactions(engine)):
        kind: Any = "thumb_down" if interaction.canary else "thumb_up"
        log.add_feedback(engine, InteractionFeedback(request_id=interaction.id, kind=kind, at=clock()))
    write(engine, clock, 20, canary=True)
    assert not canary.check()
    figures = evidence.Tally(engine, TWO, True, "", 5000.0).figures()
    assert figures["refusal"] == (pytest.approx(200 / 300), 21)
    assert figures["thumb_down"] == (1, 1)
    for number in range(60):  # as many users as refused are believed
        write(engine, clock, 2, canary=True, bad=2, user=f"{number:032x}", refusal=True)
    assert canary.check()
    assert set(told[0][1]["figures"]) == {"refusal"}


def test_readers_who_left_a_slow_answer_count_as_slow(engine: Engine) -> None:
    clock, told = Clock(), Told()
    canary = make(engine, told, clock)
    canary.check()
    write(engine, clock, 150, canary=False)
    write(engine, clock, 150, canary=True, bad=60, finish_reason="error", error=LEFT, latency_ms=30_000.0)
    assert canary.check()
    assert set(told[0][1]["figures"]) == {"slow"}
    assert told[0][1]["figures"]["slow"]["challenger"] == 0.4


def test_counting_on_gives_what_counting_anew_gives_and_reads_no_old_row_again(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "TAIL", 3)
    clock = Clock()
    running = evidence.Tally(engine, TWO, True, "", 5000.0)
    for bad in (4, 0, 7):
        write(engine, clock, 10, canary=True, bad=bad, refusal=True)
        for number in range(3):
            write(engine, clock, 2 + number, canary=True, bad=1, user=f"{number:032x}", violation=True)
        for interaction, _ in list(log.interactions(engine)):
            log.add_feedback(engine, InteractionFeedback(request_id=interaction.id, kind="thumb_down", at=clock()))
        assert running.figures() == evidence.Tally(engine, TWO, True, "", 5000.0).figures()
    before = running.figures()
    assert before["refusal"] == (11, 33)  # three users with 6, 9 and 12 answers, none refused
    assert before["violation"] == (pytest.approx(3 / 6 + 3 / 9 + 3 / 12), 33)
    assert before["thumb_down"] == (33, 33)
    with writing(engine) as connection:
        connection.execute(delete(log.ANSWERS).where(log.ANSWERS.c.seq <= 50))
    assert running.figures()["refusal"] == (11, 33)


def test_equal_challengers_stay_and_readers_who_left_count_for_nothing(engine: Engine) -> None:
    clock, told = Clock(), Told()
    canary = make(engine, told, clock)
    canary.check()
    write(engine, clock, 300, canary=False, bad=15, refusal=True)
    write(engine, clock, 300, canary=True, bad=15, refusal=True)
    write(engine, clock, 200, canary=True, bad=200, finish_reason="error", error=LEFT)
    assert not canary.check()
    assert users(canary)
    assert told == []


def test_what_was_answered_before_the_canary_began_is_no_evidence(engine: Engine) -> None:
    clock, told = Clock(), Told()
    write(engine, clock, 200, canary=True, bad=200, refusal=True)
    write(engine, clock, 200, canary=False)
    canary = make(engine, told, clock)
    assert not canary.check()
    assert not canary.check()


def test_a_return_survives_a_restart_is_told_once_and_holds_for_this_version_alone(engine: Engine) -> None:
    clock, told = Clock(), Told()
    one, other = make(engine, told, clock), make(engine, told, clock)
    one.check()
    other.check()
    write(engine, clock, 150, canary=False)
    write(engine, clock, 150, canary=True, bad=100, violation=True)
    assert one.check()
    assert not other.check()  # another server finds it done
    restarted = make(engine, told, clock)
    restarted.check()
    assert (users(other), users(restarted), len(told)) == (set(), set(), 1)
    assert restarted.returned is not None and "violation 0.667 against 0.000" in restarted.returned
    next_version = make(engine, told, clock, challenger="models:/a/3")
    assert not next_version.check()
    assert users(next_version)
    assert not one.check() and not restarted.check()  # it ended at an earlier look
    first, second = canaries(engine)
    assert (first.challenger, first.reason, first.started_at < str(first.returned_at)) == (TWO, one.returned, True)
    assert first.evidence is not None and set(first.evidence["figures"]) == {"violation"}
    assert (second.challenger, second.returned_at, second.reason, second.evidence) == ("models:/a/3", None, None, None)


def _clear(engine: Engine) -> None:
    log.METADATA.drop_all(engine)
    log.METADATA.create_all(engine)
