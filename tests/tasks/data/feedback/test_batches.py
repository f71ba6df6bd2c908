"""The raw store: immutable files named by digest, whole or absent."""

from __future__ import annotations

import errno
import gzip
import hashlib
import os
import resource
import stat
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from plumbline.data_contracts.errors import ArtifactError, StageError, UsageError
from plumbline.tasks.data.feedback import batches
from plumbline.tasks.data.feedback.batches import store_batch

ROWS = [{"rejected": "no", "prompt": "p", "chosen": "yes"}, {"prompt": "q", "chosen": "yes", "rejected": "no"}]
LINES = b'{"prompt": "p", "chosen": "yes", "rejected": "no"}\n'


def stored(raw: Path) -> list[str]:
    return sorted(path.name for path in (raw / "human_pairs").iterdir())


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        ("jsonl", LINES),
        ("jsonl.gz", gzip.compress(LINES, mtime=0)),
        ("jsonl.zst", zstandard.ZstdCompressor().compress(LINES)),
        ("parquet", None),
    ],
)
def test_a_file_is_copied_byte_for_byte_under_its_digest(tmp_path: Path, suffix: str, content: bytes | None) -> None:
    path = tmp_path / "given"
    if content is None:
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    else:
        path.write_bytes(content)
    batch = store_batch(path, "human_pairs", tmp_path / "raw")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert (batch.digest, batch.new) == (digest, True)
    assert batch.path == tmp_path / "raw" / "human_pairs" / f"{digest[:16]}.{suffix}"
    assert batch.path.read_bytes() == path.read_bytes()
    assert stat.S_IMODE(batch.path.stat().st_mode) == 0o400


def test_the_same_bytes_are_stored_once(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(LINES)
    first = store_batch(tmp_path / "one", "human_pairs", tmp_path / "raw")
    again = store_batch(str(tmp_path / "two"), "human_pairs", tmp_path / "raw")
    assert (again.path, again.digest, again.new) == (first.path, first.digest, False)
    assert stored(tmp_path / "raw") == [first.path.name]


def test_a_changed_batch_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(LINES)
    batch = store_batch(tmp_path / "f", "human_pairs", tmp_path / "raw")
    batch.path.chmod(0o644)
    batch.path.write_bytes(b"edited")
    with pytest.raises(ArtifactError, match="append-only and this batch was changed"):
        store_batch(tmp_path / "f", "human_pairs", tmp_path / "raw")
    assert batch.path.read_bytes() == b"edited"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "found an empty file"),
        (b"\n \n", "expected at least one row, found none"),
        (gzip.compress(b"", mtime=0), "expected at least one row, found none"),
        (gzip.compress(LINES * 50, mtime=0)[:-9], "cut off"),
    ],
)
def test_unusable_files_leave_nothing(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(UsageError, match=message):
        store_batch(tmp_path / "f", "human_pairs", tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


def piped(path: Path, content: bytes) -> threading.Thread:
    """A pipe at `path` that `content` is written into as soon as somebody reads it."""
    os.mkfifo(path)
    writer = threading.Thread(target=lambda: path.write_bytes(content))
    writer.start()
    return writer


@pytest.mark.parametrize("rows", [1, 30_000])
def test_a_pipe_is_read_once(tmp_path: Path, rows: int) -> None:
    writer = piped(tmp_path / "pipe", LINES * rows)
    batch = store_batch(tmp_path / "pipe", "human_pairs", tmp_path / "raw")
    writer.join()
    assert (batch.rows, batch.path.read_bytes()) == (rows, LINES * rows)
    (tmp_path / "file").write_bytes(LINES * rows)
    assert not store_batch(tmp_path / "file", "human_pairs", tmp_path / "raw").new


@pytest.mark.parametrize("content", [b"", b"prompt,chosen\n", b"\n\n", b"<html></html>"])
def test_a_pipe_without_rows_leaves_nothing(tmp_path: Path, content: bytes) -> None:
    writer = piped(tmp_path / "pipe", content)
    with pytest.raises(UsageError, match="pipe: expected"):
        store_batch(tmp_path / "pipe", "human_pairs", tmp_path / "raw")
    writer.join()
    assert not (tmp_path / "raw").exists()


@pytest.mark.slow
def test_standard_input_is_read_once(tmp_path: Path) -> None:
    script = f"""
        from pathlib import Path
        from plumbline.tasks.data.feedback.batches import store_batch
        print(store_batch("/dev/stdin", "human_pairs", Path({str(tmp_path / "raw")!r})).rows)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, input=LINES * 3, capture_output=True, check=False)
    assert done.stdout == b"3\n", done.stderr


@pytest.mark.parametrize("device", ["/dev/null", "/dev/zero"])
def test_a_device_is_refused(tmp_path: Path, device: str) -> None:
    with pytest.raises(UsageError, match="found a terminal or a device"):
        store_batch(device, "human_pairs", tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


def test_missing_files_and_folders_that_are_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nope\.jsonl: no such file"):
        store_batch(tmp_path / "nope.jsonl", "human_pairs", tmp_path / "raw")
    with pytest.raises(UsageError, match="found a folder without either"):
        store_batch(tmp_path, "human_pairs", tmp_path / "raw")


@pytest.mark.parametrize(
    ("name", "hub"),
    [
        ("owner/pairs", True),
        ("owner/pairs:test", True),
        ("owner/pairs.jsonl", False),
        ("pairs", False),
        ("a/b/c", False),
    ],
)
def test_what_names_a_hub_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, hub: bool) -> None:
    monkeypatch.chdir(tmp_path)
    assert batches._names_hub_dataset(name) is hub


def test_a_missing_file_in_a_folder_is_no_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    assert not batches._names_hub_dataset("owner/pairs")


def test_a_hub_name_offline_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def refuse(name: str, split: str) -> None:
        raise ConnectionError(f"Couldn't reach '{name}' on the Hub ({split})\nand more")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(
        UsageError, match=r"Couldn't reach 'nobody/nothing' on the Hub \(test\)\. Check the path; offline"
    ):
        store_batch("nobody/nothing:test", "human_pairs", tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


def test_a_saved_dataset_becomes_canonical_json_lines(tmp_path: Path) -> None:
    """The same rows in another column order give the same batch."""
    from datasets import Dataset, DatasetDict

    Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    Dataset.from_list(ROWS).select_columns(["chosen", "rejected", "prompt"]).save_to_disk(tmp_path / "two")
    DatasetDict(train=Dataset.from_list(ROWS)).save_to_disk(tmp_path / "single")
    batch = store_batch(tmp_path / "one", "human_pairs", tmp_path / "raw")
    assert batch.path.suffix == ".jsonl"
    assert batch.path.read_bytes() == (
        b'{"chosen":"yes","prompt":"p","rejected":"no"}\n{"chosen":"yes","prompt":"q","rejected":"no"}\n'
    )
    for name in ("two", "single"):
        assert store_batch(tmp_path / name, "human_pairs", tmp_path / "raw").digest == batch.digest


def test_datasets_of_several_splits_none_or_no_rows(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_list(ROWS)
    DatasetDict(train=rows, test=rows).save_to_disk(tmp_path / "two")
    with pytest.raises(UsageError, match=r"expected one split, found 2\. Give one of: .*two/train, .*two/test"):
        store_batch(tmp_path / "two", "human_pairs", tmp_path / "raw")
    assert store_batch(tmp_path / "two" / "test", "human_pairs", tmp_path / "raw").new
    rows.select([]).save_to_disk(tmp_path / "none")
    with pytest.raises(UsageError, match="none: expected a readable dataset with a row or more"):
        store_batch(tmp_path / "none", "human_pairs", tmp_path / "raw")
    next((tmp_path / "two" / "train").glob("*.arrow")).write_bytes(b"rubbish")
    with pytest.raises(UsageError, match=r"two/train: expected a readable dataset .*found: .*Save it again"):
        store_batch(tmp_path / "two" / "train", "human_pairs", tmp_path / "raw")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    (tmp_path / "f").write_bytes(LINES)
    earlier = store_batch(tmp_path / "f", "human_pairs", tmp_path / "raw")
    (tmp_path / "g").write_bytes(LINES * 2)

    def refuse(handle: int) -> None:
        raise OSError(code, "No space left on device")

    monkeypatch.setattr(batches.os, "fsync", refuse)
    with pytest.raises(StageError, match=r"could not be written: No space left on device.*Free disk space"):
        store_batch(tmp_path / "g", "human_pairs", tmp_path / "raw")
    assert stored(tmp_path / "raw") == [earlier.path.name]
    assert earlier.path.read_bytes() == LINES


@pytest.mark.slow
def test_a_write_that_really_fails_midway_leaves_nothing(tmp_path: Path) -> None:
    """A limit of 1 MiB on the size of a file makes the system refuse the rest of a larger batch."""
    (tmp_path / "f").write_bytes(LINES * 40_000)
    script = f"""
        import resource
        from pathlib import Path
        from plumbline.data_contracts.errors import StageError
        from plumbline.tasks.data.feedback.batches import store_batch
        resource.setrlimit(resource.RLIMIT_FSIZE, ({1 << 20}, {1 << 20}))
        try:
            store_batch({str(tmp_path / "f")!r}, "human_pairs", Path({str(tmp_path / "raw")!r}))
        except StageError as error:
            print(error)
    """
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False)
    assert "File too large" in done.stdout, done.stderr
    assert stored(tmp_path / "raw") == []


def test_what_a_killed_ingest_left_is_swept(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(LINES)
    (tmp_path / "raw" / "human_pairs").mkdir(parents=True)
    (tmp_path / "raw" / "human_pairs" / ".incoming-x1").write_bytes(LINES[:9])
    batch = store_batch(tmp_path / "f", "human_pairs", tmp_path / "raw")
    assert stored(tmp_path / "raw") == [batch.path.name]
