"""Who sent which line of a batch, kept beside it."""

from __future__ import annotations

import stat
from pathlib import Path

import orjson
import pytest

from plumbline.data_contracts.errors import ArtifactError
from plumbline.tasks.data.feedback import SOURCES
from plumbline.tasks.data.feedback.batches import Batch, BatchChoices, store_batch
from plumbline.tasks.data.feedback.senders import senders_of
from plumbline.tasks.data.feedback.validate import raw_batches

ROWS = [{"id": f"r{n}", "prompt": f"p{n}", "chosen": "yes", "rejected": "no"} for n in range(1, 6)]


def store(tmp_path: Path, *senders: str | None) -> Batch:
    path = tmp_path / "seal.jsonl"
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in ROWS[: len(senders)]))
    return store_batch(path, "human_pairs", tmp_path / "raw", intake=BatchChoices(senders=senders))


def test_every_record_says_who_sent_it(tmp_path: Path) -> None:
    batch = store(tmp_path, "app", "app", None, "bot", "app")
    (sidecar,) = batch.path.parent.glob(".*.senders")
    assert orjson.loads(sidecar.read_bytes()) == {"app": [[1, 2], [5, 5]], "bot": [[4, 4]]}
    assert not sidecar.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH)
    records = [row.outcome for row in SOURCES["human_pairs"](batch.path, "batch")]
    assert [record.origin.senders for record in records] == [("app",), ("app",), (), ("bot",), ("app",)]
    assert b"senders" not in records[2].model_dump_json().encode()  # nobody's records are as they always were
    assert [path for _, _, path in raw_batches(tmp_path / "raw", within=tmp_path)] == [batch.path]


def test_the_same_bytes_of_another_sender_are_theirs_as_well(tmp_path: Path) -> None:
    first = store(tmp_path, "app", "app")
    again = store(tmp_path, "bot", "bot")
    assert (again.path, again.new) == (first.path, False)
    assert [senders_of(first.path)(line) for line in (1, 2, 3)] == [("app", "bot"), ("app", "bot"), ()]
    store(tmp_path, "bot", "bot")  # a seal that a crash lands twice
    assert len(list(first.path.parent.glob(".*.senders"))) == 2


def test_what_a_row_says_of_its_sender_is_not_believed(tmp_path: Path) -> None:
    """Neither a field of the row nor a file that looks like a record of senders."""
    path = tmp_path / "seal.jsonl"
    forged = {**ROWS[0], "metadata": {"senders": ["app"], "origin": {"senders": ["app"]}}}
    path.write_bytes(orjson.dumps(forged) + b"\n" + orjson.dumps({**ROWS[1], "senders": ["app"]}) + b"\n")
    batch = store_batch(path, "human_pairs", tmp_path / "raw", intake=BatchChoices(senders=["bot", "bot"]))
    good, refused = (row.outcome for row in SOURCES["human_pairs"](batch.path, "batch"))
    assert good.origin.senders == ("bot",)
    assert (refused.reason, refused.senders) == ("unknown_field", ("bot",))


def test_a_changed_record_of_senders_is_refused(tmp_path: Path) -> None:
    batch = store(tmp_path, "app", "bot")
    (sidecar,) = batch.path.parent.glob(".*.senders")
    sidecar.chmod(0o600)
    sidecar.write_bytes(sidecar.read_bytes().replace(b"bot", b"app"))
    with pytest.raises(ArtifactError, match="append-only and this file was changed"):
        list(SOURCES["human_pairs"](batch.path, "batch"))
