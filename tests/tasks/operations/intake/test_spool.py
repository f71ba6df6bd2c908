"""The spool by itself: whose a key is, what a seal holds, how long rows have waited."""

from __future__ import annotations

import math
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Engine

from plumbline.tasks.operations.intake import spool
from plumbline.tasks.operations.intake.spool import IntakeReply, Seal, Taken


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return spool.open_spool(tmp_path)


def request(*rows: bytes, client: str = "ann", source: str = "pairs", key: str = "k", status: int = 202) -> Taken:
    return Taken(client, source, key, f"digest of {rows}", rows, IntakeReply(status, {"accepted": len(rows)}))


def test_a_key_belongs_to_one_client_and_one_kind(engine: Engine) -> None:
    """One key of two clients, of two kinds and of both: none is answered with another's, and each is remembered."""
    owners = [("ann", "pairs"), ("bob", "pairs"), ("ann", "thumbs"), ("bob", "thumbs")]
    for number, (client, source) in enumerate(owners):
        assert spool.known(engine, [(client, source, "k")]) == [None]
        ((digest, answer),) = spool.keep(engine, [request(b"%d" % number, client=client, source=source)])
        assert (digest, answer.replayed) == (f"digest of {(b'%d' % number,)}", False)
    found = spool.known(engine, [(client, source, "k") for client, source in owners])
    assert [item and item[0] for item in found] == [f"digest of {(b'%d' % number,)}" for number in range(4)]


def test_a_key_keeps_its_first_request_within_a_list_and_after(engine: Engine) -> None:
    first, second = spool.keep(engine, [request(b"1"), request(b"2")])
    later = spool.keep(engine, [request(b"3")])[0]
    assert first == ("digest of (b'1',)", IntakeReply(202, {"accepted": 1}))
    assert second == later == ("digest of (b'1',)", IntakeReply(202, {"accepted": 1}, replayed=True))
    assert [(item.source, item.rows) for item in spool.waiting(engine)] == [("pairs", 1)]


def test_a_seal_holds_what_was_loose_in_order_and_is_written_alike_each_time(engine: Engine, tmp_path: Path) -> None:
    assert spool.freeze(engine, "pairs") is None
    spool.keep(engine, [request(b"2", b"1"), request(b"other", source="thumbs"), request(b"3", key="l")])
    first = spool.freeze(engine, "pairs")
    assert first == Seal(1, "pairs", 3) and spool.freeze(engine, "pairs") is None
    spool.keep(engine, [request(b"4", key="m")])
    second = spool.freeze(engine, "pairs")
    assert second == Seal(2, "pairs", 1)  # one row is a batch too
    for _ in range(2):
        spool.write_seal(engine, first, tmp_path / "first")
        assert (tmp_path / "first").read_bytes() == b"2\n1\n3\n"
    assert spool.unfinished(engine) == [first, second]
    spool.done(engine, first, "batch", keep_s=60.0, keep=0)
    assert spool.unfinished(engine) == [second]
    spool.write_seal(engine, first, tmp_path / "first")
    spool.write_seal(engine, second, tmp_path / "second")
    assert ((tmp_path / "first").read_bytes(), (tmp_path / "second").read_bytes()) == (b"", b"4\n")
    assert [(item.source, item.rows) for item in spool.waiting(engine)] == [("thumbs", 1)]


def test_a_seal_knows_who_sent_each_row(engine: Engine) -> None:
    spool.keep(engine, [request(b"1", b"2"), request(b"3", client="bob"), request(b"4", key="l")])
    seal = spool.freeze(engine, "pairs")
    assert seal is not None
    assert spool.senders(engine, seal) == ["ann", "ann", "bob", "ann"]


def test_rows_of_a_spool_of_an_earlier_version_have_no_sender(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "spool.db")) as old, old:
        columns = "id INTEGER PRIMARY KEY, source TEXT NOT NULL, seal INTEGER, text BLOB NOT NULL, at FLOAT NOT NULL"
        old.execute(f"CREATE TABLE rows ({columns})")
        old.execute("INSERT INTO rows (source, text, at) VALUES ('pairs', '1', 0)")
    engine = spool.open_spool(tmp_path)
    spool.keep(engine, [request(b"2")])
    seal = spool.freeze(engine, "pairs")
    assert seal is not None
    assert spool.senders(engine, seal) == [None, "ann"]


@pytest.mark.parametrize(("passed", "age"), [(0.0, 0.0), (0.5, 0.5), (30.0, 30.0), (-0.5, math.inf)])
def test_rows_wait_since_the_oldest_and_for_ever_where_the_clock_went_back(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, passed: float, age: float
) -> None:
    monkeypatch.setattr(spool, "_now", lambda: 1000.0)
    spool.keep(engine, [request(b"1")])
    monkeypatch.setattr(spool, "_now", lambda: 1000.0 + max(passed, 0.0))
    spool.keep(engine, [request(b"2", key="l")])
    monkeypatch.setattr(spool, "_now", lambda: 1000.0 + passed)
    (waiting,) = spool.waiting(engine)
    assert (waiting.rows, waiting.age_s) == (2, age)
