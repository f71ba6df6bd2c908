"""The outbox by itself: a key is entered once, an event has one id, the first confirmation stands."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine

from plumbline.data_contracts.errors import OperationsError
from plumbline.tasks.operations.freshness import outbox
from plumbline.tasks.params.operations import OperationsParams
from plumbline.tasks.storage.database import open_database
from plumbline.tasks.storage.database.outbox_tables import METADATA

NOW = datetime(2026, 11, 24, 3, tzinfo=UTC)


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return open_database(tmp_path, OperationsParams(), METADATA)


def put(engine: Engine, key: str, at: datetime = NOW, subject: str = "pairs") -> outbox.OutboxEntry:
    return outbox.put(engine, kind="batch", subject=subject, payload={"rows": 3}, key=key, workspace="w", now=at)


def test_a_key_is_entered_once_and_found_as_it_was(engine: Engine) -> None:
    first = put(engine, "a")
    assert put(engine, "a", NOW + timedelta(days=1), "others") == first == outbox.find(engine, "a")
    assert (first.subject, first.payload, first.created_at, first.emitted_at) == ("pairs", {"rows": 3}, NOW, None)
    assert outbox.find(engine, "b") is None
    (standing,) = outbox.entry_states(engine)
    assert (standing.entry, standing.state, standing.attempts, standing.due_from) == (first, "waiting", 0, NOW)
    assert (standing.run_key, standing.note) == (None, None)


@pytest.mark.parametrize(("length", "taken"), [(0, False), (1, True), (200, True), (201, False)])
def test_a_key_has_1_to_200_characters(engine: Engine, length: int, taken: bool) -> None:
    if taken:
        assert put(engine, "k" * length).key == "k" * length
        return
    with pytest.raises(OperationsError, match=f"1 to 200 characters, found {length}"):
        put(engine, "k" * length)
    assert outbox.entry_states(engine) == []


def test_what_is_not_confirmed_is_pending_oldest_first_and_the_first_confirmation_stands(engine: Engine) -> None:
    for key, second in (("c", 2), ("a", 1), ("b", 1)):
        put(engine, key, NOW + timedelta(seconds=second))
    assert [entry.key for entry in outbox.pending(engine)] == ["a", "b", "c"]
    outbox.mark_emitted(engine, "b")
    assert [entry.key for entry in outbox.pending(engine)] == ["a", "c"]
    first = outbox.find(engine, "b")
    assert first is not None and first.emitted_at is not None
    outbox.mark_emitted(engine, "b")
    assert outbox.find(engine, "b") == first
    assert [standing.entry.key for standing in outbox.entry_states(engine)] == ["a", "b", "c"]


def test_an_event_has_the_id_of_its_workspace_and_key_for_ever(engine: Engine) -> None:
    """uuid5 of the name "w/a"; a version that made others would announce every old batch again."""
    expected = str(uuid.uuid5(uuid.UUID("6f1d4cde-58a5-5b6e-9a8d-0c6a3e0f7b41"), "w/a"))
    assert put(engine, "a").event_id == outbox.event_id("w", "a") == expected
    assert outbox.event_id("v", "a") != expected != outbox.event_id("w", "b")
