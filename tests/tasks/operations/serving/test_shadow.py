"""Mirroring never waits, never harms, and picks the same requests everywhere."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from typing import Any

import httpx

from plumbline.data_contracts.interactions import Interaction, ServedCompletion
from plumbline.data_contracts.records import Message
from plumbline.tasks.operations.serving.chat import BackendError, ChatRequest
from plumbline.tasks.operations.serving.shadow import Mirror, falls_into, first_held
from plumbline.tasks.operations.serving.slots import Slot
from tests.tasks.operations.serving.conftest import Clock, Registry, Running, Scripted, wait_for
from tests.tasks.operations.serving.test_app import post

Start = Callable[..., Running]


def _health(running: Running) -> Any:
    return httpx.get(f"{running.url}/healthz").json()


def test_a_share_is_about_its_size_and_lies_within_every_larger_one() -> None:
    keys = [f"request-{number}" for number in range(4000)]
    tenth = {key for key in keys if falls_into(0.1, "shadow", key)}
    third = {key for key in keys if falls_into(0.3, "shadow", key)}
    # 400 expected with a standard deviation of 19
    assert 300 < len(tenth) < 500
    assert tenth < third
    assert not any(falls_into(0.0, "shadow", key) for key in keys)
    assert all(falls_into(1.0, "shadow", key) for key in keys)


REQUEST = ChatRequest((Message(role="user", content="hi"),))


def answered(name: str, uri: str = "models:/a/1") -> Interaction:
    """A request that a version answered."""
    answer = ServedCompletion(
        side="champion", model_uri=uri, text="yes", tokens=1, latency_ms=1.0, finish_reason="stop", refusal=False,
        violation=False,
    )  # fmt: skip
    return Interaction(id=name, received_at=Clock()(), prompt=REQUEST.messages, canary=False, answers=(answer,))


def shadow_slot(backend: Scripted | None) -> Slot:
    """A slot with version 2 in it, or empty."""
    held = {"shadow": "models:/a/2"} if backend else {}
    return Registry({**held}, {"models:/a/2": backend}).slot("shadow", "shadow")


def test_a_share_of_requests_is_mirrored_chosen_by_their_ids() -> None:
    """The first 8 bytes of the digest of "shadow", a new line and the id, as a part of 2^64, lie below the share."""
    names = [f"r{number}" for number in range(60)]
    places = {name: int(hashlib.sha256(f"shadow\n{name}".encode()).hexdigest()[:16], 16) / 2**64 for name in names}
    seen: list[str] = []
    mirror = Mirror(shadow_slot(Scripted()), 0.3, 100, lambda item, *_: seen.append(item.id))
    offered = [name for name in names if mirror.offer(REQUEST, answered(name)) is True]
    assert mirror.wait_idle(30)
    mirror.close()
    assert seen == offered == [name for name in names if places[name] < 0.3]
    assert (mirror.answered, mirror.dropped, mirror.failed) == (len(offered), 0, 0)


def test_nothing_is_mirrored_to_nobody_or_to_the_version_that_answered() -> None:
    for slot, uri in ((shadow_slot(None), "models:/a/1"), (shadow_slot(Scripted()), "models:/a/2")):
        mirror = Mirror(slot, 1.0, 10, lambda *_: None)
        assert mirror.offer(REQUEST, answered("r", uri)) is False
        assert mirror.wait_idle(30)
        mirror.close()
        assert (mirror.answered, mirror.dropped) == (0, 0)


def test_a_version_closes_after_its_last_mirrored_answer_and_what_finds_the_slot_empty_is_dropped() -> None:
    """One is being answered, one waits, a third finds the queue full; then the slot is emptied."""
    gate, seen = threading.Event(), list[str]()
    backend = Scripted(gate=gate)
    slot = shadow_slot(backend)
    mirror = Mirror(slot, 1.0, 1, lambda item, *_: seen.append(item.id))
    assert mirror.offer(REQUEST, answered("first"))
    wait_for(lambda: len(backend.asked) == 1, "the first answer to begin")
    assert mirror.offer(REQUEST, answered("second"))
    assert mirror.offer(REQUEST, answered("third")) is False
    assert not mirror.wait_idle(0.02)
    slot.clear()
    assert not backend.closed
    gate.set()
    assert mirror.wait_idle(30)
    mirror.close()
    assert (seen, mirror.answered, mirror.dropped) == (["first"], 1, 2)
    assert backend.closed


def test_a_version_whose_mirrored_answer_failed_closes_as_well() -> None:
    backend, errors = Scripted(fails=BackendError("out of memory")), list[str | None]()
    slot = shadow_slot(backend)
    mirror = Mirror(slot, 1.0, 10, lambda _, answer, __: errors.append(answer.error))
    mirror.offer(REQUEST, answered("r"))
    assert mirror.wait_idle(30)
    mirror.close()
    slot.clear()
    assert (errors, backend.closed) == (["out of memory"], True)


def test_both_answers_are_logged_under_one_id(serving: Start) -> None:
    running = serving(Scripted(words=["one"]), Scripted(words=["two"]))
    body = {"messages": [{"role": "user", "content": "hi"}], "user": "ann@example.org"}
    name = post(running, body).headers["x-request-id"]
    wait_for(lambda: running.service.mirror.answered == 1, "the mirrored answer")
    ((interaction, _),) = running.logged()
    assert interaction.id == name
    assert interaction.user == hashlib.sha256(b"ann@example.org").hexdigest()[:32]
    assert "ann" not in interaction.model_dump_json()
    assert [(item.side, item.model_uri, item.text) for item in interaction.answers] == [
        ("champion", "models:/assistant/1", "one"),
        ("challenger", "models:/assistant/2", "two"),
    ]


def test_a_full_queue_drops_and_counts_and_no_user_waits(serving: Start) -> None:
    gate = threading.Event()
    running = serving(Scripted(), Scripted(gate=gate), shadow={"share": 1.0, "queue": 1})
    for _ in range(5):
        assert post(running).status_code == 200
    running.service._after.submit(int).result()
    assert running.service.mirror.dropped >= 3  # one is being answered, one waits
    gate.set()
    wait_for(lambda: running.service.mirror.wait_idle(1), "the mirror")
    assert running.service.mirror.answered + running.service.mirror.dropped == 5


def test_a_mirrored_answer_that_fails_is_its_own_error_alone(serving: Start) -> None:
    running = serving(Scripted(), Scripted(fails=BackendError("out of memory")))
    assert post(running).status_code == 200
    wait_for(lambda: running.service.mirror.answered == 1, "the mirrored answer")
    ((interaction, _),) = running.logged()
    assert [item.error for item in interaction.answers] == [None, "out of memory"]


def test_with_no_challenger_nothing_is_mirrored(serving: Start) -> None:
    running = serving()
    post(running)
    ((interaction, _),) = running.logged()
    assert (len(interaction.answers), running.service.mirror.waiting) == (1, 0)


def test_health_says_in_a_word_what_the_shadow_is_at(serving: Start) -> None:
    running = serving(Scripted())
    wait_for(lambda: _health(running)["shadow"]["state"] == "empty", "the first look")
    gate = threading.Event()

    def wait(uri: str) -> None:
        gate.wait(30)

    running.registry.verify = wait
    running.registry.backends["models:/assistant/2"] = Scripted()
    running.registry.aliases["challenger"] = "models:/assistant/2"
    wait_for(lambda: _health(running)["shadow"]["state"] == "loading", "the loading")
    assert _health(running)["versions"] == {"shadow": None}
    gate.set()
    wait_for(lambda: _health(running)["shadow"]["state"] == "ready", "the shadow")
    assert _health(running)["versions"] == {"shadow": "models:/assistant/2"}


def test_a_mirrored_answer_that_cannot_be_kept_is_told_and_the_next_is_mirrored(serving: Start) -> None:
    running = serving(Scripted(), Scripted())
    mirror = running.service.mirror
    keep = mirror._done

    def broken(*_: object) -> None:
        raise ValueError("no such signal")

    mirror._done = broken
    post(running)
    wait_for(lambda: mirror.failed == 1, "the failure")
    assert any("no such signal" in alert for alert in running.service.health()["alerts"])
    mirror._done = keep
    post(running)
    wait_for(lambda: any(len(item.answers) == 2 for item, _ in running.logged()), "the next mirrored answer")


def test_an_alias_that_nobody_holds_falls_back() -> None:
    held: dict[str, str] = {"challenger": "models:/a/2"}
    find = first_held(held.get, "challenger")
    assert find("shadow") == "models:/a/2"
    held["shadow"] = "models:/a/3"
    assert find("shadow") == "models:/a/3"
    assert first_held({}.get, None)("shadow") is None
