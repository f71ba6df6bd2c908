"""A canary sent back on a real ledger and a real MLflow, and let try again, on record."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from sqlalchemy import Engine

from plumbline.data_contracts.errors import UsageError
from plumbline.tasks.operations import retry_canary as verb
from plumbline.tasks.operations.promote_model import promote, promotion_history
from plumbline.tasks.operations.retry_canary import list_canaries, retry_canary
from plumbline.tasks.operations.serve_model import record_return
from plumbline.tasks.operations.serving import log
from plumbline.tasks.operations.serving.canary import Canary
from plumbline.tasks.params.promotion import PromotionParams
from plumbline.tasks.params.whole import Params
from plumbline.tasks.registry.store.client import Store
from plumbline.tasks.storage.database import open_database
from tests.tasks.conftest import World
from tests.tasks.operations.serving.conftest import Clock, Registry, Scripted
from tests.tasks.operations.serving.test_canary import PARAMS as CANARY
from tests.tasks.operations.serving.test_canary import users, write

ONE, TWO = "models:/assistant/1", "models:/assistant/2"
LENIENT = PromotionParams(
    min_win_rate_vs_champion_low=None,
    min_preference_accuracy=None,
    min_finished_share=None,
    max_finished_drop=None,
    max_ece=None,
    max_kl_nats_per_token=None,
    max_latency_p95_ms=None,
    require_reward_audit=False,
)
PARAMS = Params(promotion=LENIENT)


def canary_of(world: World, engine: Engine, clock: Clock) -> Canary:
    """A server's canary that takes the alias on the real ledger."""
    registry = Registry({"champion": ONE, "challenger": TWO}, {ONE: Scripted(), TWO: Scripted()})
    slots = registry.slot("canary", "challenger"), registry.slot("champion", "champion")
    on_return = partial(record_return, world.root, PARAMS, Store(world.root, PARAMS.registry))
    return Canary(engine, *slots, CANARY, on_return, clock)


def aliases(world: World) -> dict[str, str]:
    store = Store(world.root, PARAMS.registry)
    found = store.client.get_registered_model("assistant").aliases
    return {alias: str(number) for alias, number in found.items()}


def lines(world: World) -> list[tuple[str, str | None, str | None, str]]:
    found = promotion_history(world.root, PARAMS, "challenger")
    assert not found.problems and not found.moved_outside
    return [(line.action, line.previous, line.version, line.actor) for line in found.entries]


@pytest.mark.long
@pytest.mark.slow
def test_a_return_takes_the_alias_and_a_retry_gives_it_back_with_fresh_evidence(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.register()
    world.set(finetune={"dpo": {"beta": 0.2}})
    world.register()
    with pytest.raises(UsageError, match="no canary was sent back"):
        retry_canary(world.root, PARAMS, reason="r")
    promote(world.root, PARAMS, TWO, "challenger", reason="weekly", actor="ann")
    engine, clock = open_database(world.root, PARAMS.operations, log.METADATA), Clock()
    canary = canary_of(world, engine, clock)
    canary.check()
    write(engine, clock, 150, canary=False, uri=ONE)
    write(engine, clock, 150, canary=True, uri=TWO, bad=100, violation=True)
    assert canary.check()
    assert "challenger" not in aliases(world)
    assert lines(world) == [("promote", None, "2", "ann"), ("rollback", "2", None, "plumbline serve")]
    ended = list_canaries(world.root, PARAMS)
    assert (ended.alias, ended.holder) == ("challenger", None)
    assert ended.canaries[0].evidence is not None and ended.canaries[0].evidence["figures"]["violation"]

    with pytest.raises(UsageError, match="expected a version whose canary was sent back"):
        retry_canary(world.root, PARAMS, ONE, reason="r")
    strict = Params(promotion=LENIENT.model_copy(update={"min_preference_accuracy": 1.0}))
    refused = retry_canary(world.root, strict, reason="fixed the prompt", actor="bea")
    assert not refused.promoted
    assert not canary.check() and users(canary) == set()  # a gate said no: still sent back

    monkeypatch.setattr(verb, "reopen", _crash)
    with pytest.raises(KeyboardInterrupt):
        retry_canary(world.root, PARAMS, reason="fixed the prompt", actor="bea")
    monkeypatch.undo()
    again = retry_canary(world.root, PARAMS, "assistant/2", reason="fixed the prompt", actor="bea")
    assert [line.evidence["retry_of"]["reason"] for line in again.lines] == [canary.returned]
    assert aliases(world)["challenger"] == "2"
    assert lines(world)[2:] == [("retry", None, "2", "bea"), ("retry", "2", "2", "bea")]

    clock.now = verb.datetime.now(verb.UTC)
    assert not canary.check()  # the same server finds it open, and what it answered before is no evidence
    assert users(canary)
    write(engine, clock, 150, canary=False, uri=ONE)
    write(engine, clock, 150, canary=True, uri=TWO, bad=100, violation=True)
    assert canary.check()
    assert "challenger" not in aliases(world)


def test_a_canary_alias_without_gates_is_not_given_again(world: World) -> None:
    params = Params.model_validate({"serving": {"canary": {"alias": "candidate"}}})
    with pytest.raises(UsageError, match=r"serving\.canary\.alias 'candidate'"):
        retry_canary(world.root, params, reason="r")


def _crash(*_: Any) -> bool:
    raise KeyboardInterrupt
