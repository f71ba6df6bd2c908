"""Versions are swapped while answers are under way, and one that cannot be verified never answers."""

from __future__ import annotations

import threading
from collections.abc import Callable

import httpx
import pytest

from plumbline.data_contracts.errors import SignatureError
from plumbline.tasks.operations.serving.slots import Slot, Watcher
from tests.tasks.operations.serving.conftest import Registry, Running, Scripted, wait_for
from tests.tasks.operations.serving.test_app import post


def refuse(uri: str) -> None:
    if uri.endswith("/9"):
        raise SignatureError(f"{uri}: not what was signed.")


def test_answers_under_way_finish_on_the_old_version_which_then_closes(serving: Callable[..., Running]) -> None:
    gate = threading.Event()
    old, new = Scripted(gate=gate), Scripted(words=["new"])
    running = serving(old)
    running.registry.backends["models:/assistant/2"] = new
    answers = []
    asking = threading.Thread(target=lambda: answers.append(post(running).json()))
    asking.start()
    wait_for(lambda: len(old.asked) == 1, "the first request")
    running.registry.aliases["champion"] = "models:/assistant/2"
    wait_for(lambda: running.service.parts.champion.uri == "models:/assistant/2", "the swap")
    assert post(running).json()["choices"][0]["message"]["content"] == "new"
    assert not old.closed
    gate.set()
    asking.join()
    assert (answers[0]["model"], answers[0]["choices"][0]["message"]["content"]) == (
        "models:/assistant/1",
        "Hello there.",
    )
    wait_for(lambda: old.closed, "the old version to close")


def test_a_version_that_fails_its_verification_is_an_alert_and_the_old_one_stays(
    serving: Callable[..., Running],
) -> None:
    running = serving()
    running.registry.verify = refuse
    running.registry.aliases["champion"] = "models:/assistant/9"
    wait_for(lambda: httpx.get(f"{running.url}/healthz").json()["status"] == "alert", "the alert")
    health = httpx.get(f"{running.url}/healthz").json()
    assert health["champion"] == "models:/assistant/1"
    assert "not what was signed" in health["alerts"][0]
    assert post(running).status_code == 200
    running.registry.aliases["champion"] = "models:/assistant/1"
    wait_for(lambda: httpx.get(f"{running.url}/healthz").json()["alerts"] == [], "the alert to end")


def test_a_failed_version_is_not_tried_at_every_look() -> None:
    tried: list[str] = []

    def load(uri: str) -> Scripted:
        tried.append(uri)
        raise SignatureError("no")

    registry = Registry({"champion": "models:/assistant/9"}, {})
    registry.load = load  # type: ignore[method-assign]
    slot = registry.slot("champion", "champion")
    slot._retry_s = 60
    slot.refresh()
    slot.refresh()
    assert len(tried) == 2
    assert slot.alert == "champion: no"


def test_an_alias_that_is_gone_empties_all_but_the_champion() -> None:
    registry = Registry({"champion": "models:/a/1"}, {"models:/a/1": Scripted()})
    champion, shadow = registry.slot("champion", "champion"), registry.slot("shadow", "champion")
    registry.aliases.clear()
    assert not champion.refresh()
    assert shadow.refresh()
    assert (champion.uri, shadow.uri) == ("models:/a/1", None)
    assert champion.alert is not None and "nobody holds" in champion.alert


def test_a_slot_says_what_it_is_at() -> None:
    """Loading is seen from another thread, as /healthz is asked; a bug while loading is a failure too."""
    gate, begun = threading.Event(), threading.Event()
    registry = Registry({}, {"models:/a/1": Scripted()})
    slot = Slot("shadow", "shadow", registry.resolve, registry.load, retry_s=0.0)
    states = [slot.state]
    slot.refresh()
    states.append(slot.state)

    def wait(uri: str) -> None:
        begun.set()
        gate.wait(30)

    registry.verify, registry.aliases["shadow"] = wait, "models:/a/1"
    loading = threading.Thread(target=slot.refresh)
    loading.start()
    begun.wait(30)
    states.append(slot.state)
    gate.set()
    loading.join()
    states.append(slot.state)
    slot.clear()
    registry.verify, registry.aliases["shadow"] = refuse, "models:/a/9"
    slot.refresh()
    states.append(slot.state)
    assert states == ["starting", "empty", "loading", "ready", "failed"]
    registry.verify = lambda uri: None
    with pytest.raises(KeyError):
        slot.refresh()
    assert slot.state == "failed"


def test_a_version_is_not_loaded_beside_itself(caplog: pytest.LogCaptureFixture) -> None:
    """The shadow's alias names 1, the champion's moves 1 -> 2 -> 1: two remarks, however often it is looked at."""
    registry = Registry({"champion": "models:/a/1", "shadow": "models:/a/1"}, {})
    registry.backends = {"models:/a/1": Scripted(), "models:/a/2": Scripted()}
    champion = registry.slot("champion", "champion")
    shadow = Slot("shadow", "shadow", registry.resolve, registry.load, retry_s=0.0, beside=champion)
    seen = []
    for number in (1, 1, 2, 2, 1, 1):
        registry.aliases["champion"] = f"models:/a/{number}"
        champion.refresh()
        shadow.refresh()
        seen.append((shadow.state, shadow.uri))
    idle, ready = ("idle", None), ("ready", "models:/a/1")
    assert seen == [idle, idle, ready, ready, idle, idle]
    assert len([record for record in caplog.records if "would be models:/a/1" in record.getMessage()]) == 2


def test_a_backend_that_died_is_loaded_anew() -> None:
    first, second = Scripted(), Scripted()
    registry = Registry({"champion": "models:/a/1"}, {"models:/a/1": first})
    slot = registry.slot("shadow", "champion")
    first.closed, registry.backends["models:/a/1"] = True, second
    assert slot.refresh()
    served = slot.begin()
    assert served is not None and served.backend is second


def test_a_duty_that_fails_is_an_alert_until_it_succeeds_and_the_others_go_on() -> None:
    mended, done = threading.Event(), list[int]()

    def fail() -> None:
        if not mended.is_set():
            raise ValueError("the registry is away")

    watcher = Watcher({"champion": (0.005, fail), "shadow": (0.005, lambda: done.append(1))})
    assert watcher.alerts() == []
    watcher.start()
    wait_for(lambda: watcher.alerts() == ["champion: ValueError: the registry is away"], "the alert")
    before = len(done)
    wait_for(lambda: len(done) > before + 3, "the other duty")
    mended.set()
    wait_for(lambda: watcher.alerts() == [], "the alert to end")
    watcher.stop()
    after = len(done)
    assert not any(thread.is_alive() for thread in watcher._threads) and len(done) == after
