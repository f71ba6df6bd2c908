"""The log keeps what was answered, once, and gives it back under its contract; its writer loses nothing it took."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, insert

from plumbline.data_contracts.errors import OperationsError
from plumbline.data_contracts.interactions import Interaction, InteractionFeedback, ServedCompletion
from plumbline.data_contracts.records import Message
from plumbline.tasks.operations.serving import log
from plumbline.tasks.operations.serving.log_writer import LogWriter
from plumbline.tasks.params.operations import OperationsParams
from plumbline.tasks.storage.database import open_database, writing
from tests.tasks.operations.serving.conftest import wait_for

START = datetime(2026, 1, 1, tzinfo=UTC)


def answer(text: str = "yes", side: Any = "champion", **changed: Any) -> ServedCompletion:
    number = 1 if side == "champion" else 2
    fields = {"tokens": 2, "latency_ms": 3.5, "finish_reason": "stop", "refusal": False, "violation": False, **changed}
    return ServedCompletion(side=side, model_uri=f"models:/a/{number}", text=text, **fields)


def interaction(name: str, at: datetime = START, *answers: ServedCompletion) -> Interaction:
    turns = (Message(role="system", content="be kind"), Message(role="user", content="q \N{SNOWMAN}"))
    return Interaction(id=name, received_at=at, prompt=turns, canary=False, answers=answers or (answer(),))


def test_an_interaction_comes_back_as_it_was_and_once(engine: Engine) -> None:
    given = interaction("r", START, answer(first_token_ms=1.5, error=None))
    log.record(engine, given)
    log.record(engine, given)
    assert list(log.interactions(engine)) == [(given, ())]


def test_a_user_is_kept_by_pseudonym_and_a_log_without_users_is_read_on(tmp_path: Path) -> None:
    """The table as contract v1 had it, with a row: opening the database adds the column."""
    (tmp_path / ".plumbline").mkdir()
    with sqlite3.connect(tmp_path / ".plumbline/operations.db") as old:
        old.execute(
            "CREATE TABLE serving_interactions (id VARCHAR(200) PRIMARY KEY, received_at VARCHAR(32) NOT NULL, "
            "prompt TEXT NOT NULL, canary BOOLEAN NOT NULL)"
        )
        turns = '[["user", "old"]]'
        old.execute("INSERT INTO serving_interactions VALUES (?, ?, ?, 0)", ("old", log.stamp(START), turns))
    for _ in range(2):
        engine = open_database(tmp_path, OperationsParams(), log.METADATA)
    with writing(engine) as connection:
        connection.execute(insert(log.ANSWERS).values(request_id="old", position=0, **answer().model_dump()))
    named = interaction("new", START + timedelta(seconds=1)).model_copy(update={"user": "ab" * 16})
    log.record_all(engine, [named, named])
    found = [item for item, _ in log.interactions(engine)]
    assert [(item.id, item.user) for item in found] == [("old", None), ("new", "ab" * 16)]
    assert [item.voter for item in found] == ["old", "user " + "ab" * 16]


def test_a_second_answer_is_added_later(engine: Engine) -> None:
    one, both = interaction("r"), interaction("r", START, answer(), answer("no", "challenger"))
    log.record(engine, one)
    log.record(engine, both)
    log.record(engine, one)
    assert [item for item, _ in log.interactions(engine)] == [both]


def test_an_id_that_another_interaction_had_is_kept_beside_it(engine: Engine) -> None:
    later = interaction("r", START + timedelta(seconds=1))
    assert log.record_all(engine, [interaction("r"), later, later]) == 2
    names = [item.id for item, _ in log.interactions(engine)]
    assert (len(names), names[0], names[1][:2]) == (2, "r", "r.")


@pytest.mark.slow
def test_times_bound_what_is_read_in_order_over_pages_and_zones(engine: Engine) -> None:
    batch = [interaction(f"r{number:04}", START + timedelta(seconds=number)) for number in range(1201)]
    log.record_all(engine, batch[::-1])
    assert [item.id for item, _ in log.interactions(engine)] == [item.id for item in batch]
    east = timezone(timedelta(hours=2))
    since, until = (START + timedelta(seconds=number) for number in (10, 13))
    found = log.interactions(engine, since=since.astimezone(east), until=until.astimezone(east))
    assert [item.id for item, _ in found] == ["r0010", "r0011", "r0012"]


def test_feedback_counts_once_a_kind_and_annotator(engine: Engine) -> None:
    log.record(engine, interaction("r"))
    given = InteractionFeedback(request_id="r", kind="click", at=START, annotator="ann")
    assert [log.add_feedback(engine, given) for _ in range(2)] == [True, True]
    assert log.add_feedback(engine, given.model_copy(update={"annotator": None}))
    assert not log.add_feedback(engine, given.model_copy(update={"request_id": "nobody"}))
    ((_, feedback),) = log.interactions(engine)
    assert [(item.kind, item.annotator) for item in feedback] == [("click", "ann"), ("click", None)]


@pytest.mark.slow
def test_a_writer_writes_all_it_took_before_it_ends(engine: Engine) -> None:
    writer = LogWriter(lambda batch: log.record_all(engine, batch), 1000)
    for number in range(500):
        assert writer.put(interaction(f"r{number}"))
    assert writer.close(30) == 0
    assert len(list(log.interactions(engine))) == 500
    assert not writer.put(interaction("late"))


def test_a_database_that_refuses_is_tried_again_and_a_full_queue_counts(engine: Engine) -> None:
    down = threading.Event()
    down.set()

    def sink(batch: Sequence[Interaction]) -> int:
        if down.is_set():
            raise OperationsError("disk full")
        return log.record_all(engine, batch)

    writer = LogWriter(sink, 2)
    assert [writer.put(interaction(f"r{number}")) for number in range(4)] == [True, True, False, False]
    wait_for(lambda: writer.trouble is not None, "the refusal")
    assert (writer.dropped, writer.waiting, writer.full, writer.trouble) == (2, 2, True, "disk full")
    down.clear()
    assert writer.flush(30)
    assert (writer.trouble, writer.waiting, writer.full, len(list(log.interactions(engine)))) == (None, 0, False, 2)
    writer.close(1)


def test_what_would_be_refused_for_ever_is_set_aside_and_the_rest_is_written(engine: Engine) -> None:
    def sink(batch: Sequence[Interaction]) -> int:
        if any(item.id == "poison" for item in batch):
            raise ValueError("A string literal cannot contain NUL (0x00) characters.")
        return log.record_all(engine, batch)

    writer = LogWriter(sink, 100)
    for name in ("a", "poison", "b"):
        writer.put(interaction(name))
    assert writer.flush(30)
    assert (writer.set_aside, writer.trouble) == (1, None)
    assert writer.refused is not None and "poison: ValueError: A string" in writer.refused
    assert [item.id for item, _ in log.interactions(engine)] == ["a", "b"]
    assert writer.put(interaction("c")) and writer.flush(30)
    assert writer.put(interaction("poison")) and writer.flush(5)  # the last one in the queue leaves it too
    assert (writer.set_aside, writer.waiting) == (2, 0)
    writer.close(1)


def test_nul_is_replaced_because_postgres_refuses_it(engine: Engine) -> None:
    log.record(engine, interaction("r", START, answer("a\0b", error="c\0d")))
    given = InteractionFeedback(request_id="r", kind="click", at=START, annotator="e\0f")
    assert log.add_feedback(engine, given)
    ((found, (feedback,)),) = log.interactions(engine)
    assert (found.answers[0].text, found.answers[0].error, feedback.annotator) == ("a\ufffdb", "c\ufffdd", "e\ufffdf")
