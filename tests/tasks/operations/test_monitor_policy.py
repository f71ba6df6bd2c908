"""A look at a world with a real registry, real DVC objects and a real log, whose models are too small to load."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from plumbline.data_contracts.errors import SignatureError
from plumbline.data_contracts.interactions import Interaction, ServedCompletion
from plumbline.data_contracts.records import Message
from plumbline.tasks.operations.freshness import outbox
from plumbline.tasks.operations.monitor_policy import monitor_policy
from plumbline.tasks.operations.promote_model import champion_of, promote, rollback
from plumbline.tasks.operations.report_live import _judge, report_live
from plumbline.tasks.operations.serving import log
from plumbline.tasks.params.whole import Params
from plumbline.tasks.registry.store.client import Store
from plumbline.tasks.registry.versions.registered import StoredFiles, resolve
from plumbline.tasks.storage.database import open_database

pytestmark = pytest.mark.slow

if TYPE_CHECKING:
    from tests.tasks.conftest import World

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
PARAMS = Params()


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)


def serve(world: World, numbers: range, uri: str, *, violation: bool = False, at: datetime = NOW) -> None:
    """Write requests into the log, each answered once."""
    engine = open_database(world.root, PARAMS.operations, log.METADATA)
    answer = ServedCompletion(
        side="champion",
        model_uri=uri,
        text="yes",
        tokens=1,
        latency_ms=10,
        finish_reason="stop",
        refusal=False,
        violation=violation,
    )
    for number in numbers:
        prompt = (Message(role="user", content=f"question number {number}"),)
        moment = at - timedelta(minutes=number + 1)
        log.record(
            engine, Interaction(id=f"r{number}", received_at=moment, prompt=prompt, canary=False, answers=(answer,))
        )


def look(world: World, day: int = 0, **options: Any) -> dict[str, Any]:
    report = monitor_policy(world.root, PARAMS, now=NOW + timedelta(days=day), **options)
    return report | {"by_name": {reading["name"]: reading for reading in report["readings"]}}


def asked(world: World) -> list[outbox.OutboxEntry]:
    engine = open_database(world.root, PARAMS.operations, outbox.METADATA)
    return [entry for entry in outbox.pending(engine) if entry.kind == "finding"]


def champion(world: World) -> str:
    found = champion_of(world.root, PARAMS)
    assert found is not None
    return found.uri


def test_whatever_is_missing_is_a_reason_and_not_a_finding(world: World) -> None:
    nobody = look(world, look="../../etc/x")
    assert nobody["champion"] is None
    assert {reading["verdict"] for reading in nobody["readings"]} == {"not measured"}
    assert "there is no champion yet" in nobody["by_name"]["refusals"]["why"]
    assert nobody["path"] == ".plumbline/monitor/______etc_x"
    assert (world.root / nobody["path"] / "report.md").read_text().startswith("# Monitor: no champion")

    world.register()
    quiet = look(world)
    assert quiet["findings"] == []
    assert "served no answer" in quiet["by_name"]["safety_violations"]["why"]
    assert "no fresh labels" in quiet["by_name"]["preference_accuracy"]["why"]
    assert report_live(world.root, PARAMS)["requests"] == 0

    serve(world, range(40), champion(world))  # its checkpoints are none that can be loaded
    report = look(world, day=1)
    assert report["findings"] == []
    assert report["by_name"]["win_rate_vs_reference"]["verdict"] == "not measured"
    assert report["by_name"]["win_rate_vs_reference"]["why"] != "nothing seen yet"
    assert "1 training prompts" in report["by_name"]["drift_length"]["why"]
    assert report["by_name"]["refusals"]["verdict"] == "fine"


def test_looks_add_up_and_count_each_request_once(world: World) -> None:
    world.register()
    serve(world, range(20), champion(world))
    assert look(world)["by_name"]["refusals"]["n"] == 20
    assert look(world)["by_name"]["refusals"]["n"] == 20  # the same day again
    serve(world, range(20, 45), champion(world))
    assert look(world, day=1)["by_name"]["refusals"]["n"] == 45
    assert look(world, day=-5)["by_name"]["refusals"]["n"] == 45  # the clock jumped back
    serve(world, range(45, 60), "models:/assistant/99")  # another version's answers are not the champion's
    assert look(world, day=2)["by_name"]["refusals"]["n"] == 45


@pytest.mark.long
def test_a_finding_asks_once_and_says_why_until_another_champion_serves(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.register()
    first = champion(world)
    serve(world, range(40), first, violation=True)
    report = look(world)
    assert report["findings"] == ["safety_violations"]
    assert report["requests"]["safety_violations"]["state"] == "in the outbox"
    serve(world, range(40, 600), first)  # good again: what was found stays found
    again = look(world, day=1)
    assert again["findings"] == ["safety_violations"]
    (entry,) = asked(world)
    assert first in entry.payload["why"] and "unsafe answers 1.000" in entry.payload["why"]
    assert entry.payload["evidence"]["n"] == 40
    assert entry.key == report["requests"]["safety_violations"]["key"]

    world.set(finetune={"dpo": {"beta": 0.3}})
    world.register()
    second = resolve(Store(world.root, PARAMS.registry), f"models:/{PARAMS.registry.model_name}/2")
    monkeypatch.setattr("plumbline.tasks.operations.monitor_policy.champion_of", lambda root, params: second)
    assert look(world, day=2)["findings"] == []  # another champion starts anew
    serve(world, range(3000, 3040), second.uri, violation=True)
    assert look(world, day=3)["findings"] == ["safety_violations"]
    assert len(asked(world)) == 2


@pytest.mark.long
def test_the_champion_is_held_to_the_one_before_by_its_answers_in_shadow_or_new_ones(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.register()
    world.set(finetune={"dpo": {"beta": 0.2}})
    world.register()
    lenient = {
        name: None
        for name in (
            "min_win_rate_vs_champion_low",
            "min_preference_accuracy",
            "min_finished_share",
            "max_finished_drop",
            "max_ece",
        )
    }
    limits = {**lenient, "max_kl_nats_per_token": None, "max_latency_p95_ms": None, "require_reward_audit": False}
    params = Params.model_validate({"promotion": limits})
    promote(world.root, params, "models:/assistant/2", "champion", reason="r")
    serve(world, range(40), "models:/assistant/2")
    engine = open_database(world.root, PARAMS.operations, log.METADATA)
    ((first, _), *_) = log.some_interactions(engine, ["r0"])
    shadow = first.answers[0].model_copy(
        update={"side": "challenger", "model_uri": "models:/assistant/1", "text": "old"}
    )
    log.record(engine, first.model_copy(update={"answers": (*first.answers, shadow)}))
    asked_of: list[tuple[str, dict[str, str], int]] = []

    def lose(_: Any, served: list[Any], rival: Any, reward: Any, *, seed: int, stored: dict[str, str]) -> Any:
        asked_of.append((rival.name, stored, len(served)))
        return {request.id: 0.0 for request, _ in served}

    monkeypatch.setattr("plumbline.tasks.operations.monitor_policy.judge_traffic", lose)
    monkeypatch.setattr(
        "plumbline.tasks.operations.monitor_policy.verified_model", lambda store, version, root: root / version.number
    )
    report = look(world)
    assert asked_of == [("reference", {}, 40), ("1", {"r0": "old"}, 40)]
    assert report["by_name"]["win_rate_vs_previous"]["n"] == 40
    assert "win_rate_vs_previous" in report["findings"]
    look(world, day=1)
    assert len(asked_of) == 2  # nothing new, nothing judged twice
    rollback(world.root, PARAMS, reason="r")
    assert look(world, day=2)["by_name"]["win_rate_vs_previous"]["verdict"] == "not measured"


def test_an_edited_manifest_is_not_looked_at(world: World) -> None:
    world.register()
    store = Store(world.root, PARAMS.registry)
    path = StoredFiles(store, resolve(store, champion(world))).folder / "manifest.json"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(SignatureError, match="models:/assistant/1"):
        look(world)


def test_answers_are_not_judged_by_what_an_edited_manifest_names(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.register()
    store = Store(world.root, PARAMS.registry)
    path = StoredFiles(store, resolve(store, champion(world))).folder / "manifest.json"
    path.write_bytes(path.read_bytes() + b" ")
    monkeypatch.setattr("plumbline.tasks.operations.report_live.mirrored", lambda logged: [None])
    found = _judge(world.root, PARAMS, champion(world), [])
    assert isinstance(found, str)
    assert "It is not what was registered" in found
