"""Containers are told apart by their bytes, streamed with line numbers, and damage is an error, not an end."""

from __future__ import annotations

import bz2
import datetime
import decimal
import errno
import gzip
import io
import lzma
import random
import time
import tracemalloc
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from plumbline.data_contracts.errors import UnreadableFile, UsageError
from plumbline.tasks.data.feedback import containers
from plumbline.tasks.data.feedback.containers import read_lines, recognise_container
from plumbline.tasks.data.feedback.json_values import dump_row
from plumbline.tasks.params.feedback_limits import Limits

PACK = {
    "jsonl": bytes,
    "jsonl.gz": gzip.compress,
    "jsonl.zst": zstandard.ZstdCompressor().compress,
    "jsonl.bz2": bz2.compress,
    "jsonl.xz": lzma.compress,
}
TEXT = b'{"a": 1}\n\n{"a": 2}\r\n  \n{"a": 3}'


@pytest.mark.parametrize("container", PACK)
@pytest.mark.parametrize("name", ["data.jsonl", "data.jsonl.gz", "data"])
def test_text_containers_are_recognised_by_content(tmp_path: Path, container: str, name: str) -> None:
    """Blank lines are no rows but count as lines: the rows stand in lines 1, 3 and 5. A name means nothing."""
    (tmp_path / name).write_bytes(PACK[container](TEXT))
    assert recognise_container(tmp_path / name) == container
    assert list(read_lines(tmp_path / name)) == [(1, b'{"a": 1}'), (3, b'{"a": 2}'), (5, b'{"a": 3}')]


def test_parquet_rows_become_json(tmp_path: Path) -> None:
    rows = [{"b": [{"role": "user", "content": "x"}], "a": None}, {"b": [], "a": "é"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data.bin")
    assert recognise_container(tmp_path / "data.bin") == "parquet"
    assert list(read_lines(tmp_path / "data.bin")) == [
        (1, b'{"a":null,"b":[{"content":"x","role":"user"}]}'),
        (2, '{"a":"é","b":[]}'.encode()),
    ]


def test_arrow_values_that_json_lacks() -> None:
    row = {
        "when": datetime.datetime(2025, 1, 2, 3, 4, 5, tzinfo=datetime.UTC),
        "day": datetime.date(2025, 1, 2),
        "price": decimal.Decimal("1.50"),
        "bytes": b"ok\xff",
        "nan": float("nan"),
        1: "number as key",
    }
    assert orjson.loads(dump_row(row)) == {
        "when": "2025-01-02T03:04:05+00:00",
        "day": "2025-01-02",
        "price": "1.50",
        "bytes": "ok\\xff",
        "nan": None,
        "1": "number as key",
    }


def test_byte_order_mark_is_no_part_of_the_first_row(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"\xef\xbb\xbf" + TEXT)
    assert next(read_lines(tmp_path / "f")) == (1, b'{"a": 1}')


@given(st.lists(st.binary(max_size=9).map(lambda b: b.replace(b"\n", b"") or b"x"), max_size=8), st.integers(1, 5))
def test_lines_are_whole_whatever_the_chunks(lines: list[bytes], size: int) -> None:
    """Compared with bytes.split on the text as a whole."""
    text = b"\n".join(lines)
    chunks = iter([text[start : start + size] for start in range(0, len(text), size)])
    expected = text.split(b"\n") if text else []
    expected = [line for n, line in enumerate(expected) if line or n < len(expected) - 1]
    assert list(containers._split_lines(chunks)) == expected
    chunks = iter([text[start : start + size] for start in range(0, len(text), size)])
    assert list(containers._split_lines(chunks, 3)) == [line[:4] for line in expected]


def test_concatenated_members_are_read_to_the_end(tmp_path: Path) -> None:
    for container, pack in PACK.items():
        (tmp_path / container).write_bytes(pack(b'{"a": 1}\n') + pack(b'{"a": 2}\n'))
        assert [line for line, _ in read_lines(tmp_path / container)] == [1, 2]


@pytest.mark.parametrize("container", ["jsonl.gz", "jsonl.zst", "jsonl.bz2", "jsonl.xz", "parquet", "arrow"])
@pytest.mark.parametrize("keep", [0.5, 0.99])
def test_a_file_that_was_cut_off_is_an_error(tmp_path: Path, container: str, keep: float) -> None:
    path = tmp_path / "f"
    rows = [{"a": f"{n} {n * 7919 % 1009}"} for n in range(2000)]
    if container == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif container == "arrow":
        feather.write_feather(pa.Table.from_pylist(rows), path)
    else:
        path.write_bytes(PACK[container](b"\n".join(map(orjson.dumps, rows))))
    whole = path.read_bytes()
    assert len(list(read_lines(path))) == 2000
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(UsageError, match=f"f: expected {container} to be readable to its end, found: .*cut off"):
        list(read_lines(path))


@pytest.mark.parametrize(
    "magic",
    [b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1", b"ARROW1", b"\xff\xff\xff\xff", b"BZh91AY&SY", b"\xfd7zXZ\x00"],
)
def test_magic_bytes_before_rubbish(tmp_path: Path, magic: bytes) -> None:
    (tmp_path / "f").write_bytes(magic + b"rubbish" * 10)
    with pytest.raises(UsageError, match="to be readable to its end"):
        list(read_lines(tmp_path / "f"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "found an empty file"),
        (b"\x00\x01\x02", "found binary data that starts with"),
        ('{"a": 1}'.encode("utf-16-le"), "iconv -f UTF-16"),
    ],
)
def test_what_is_no_feedback_file(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(UsageError, match=message):
        list(read_lines(tmp_path / "f"))


def test_a_list_in_the_first_line_may_be_a_bad_row(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b'[1, 2]\n{"a": 1}')
    assert [line for line, _ in read_lines(tmp_path / "f")] == [1, 2]


def test_missing_and_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"nope: no such file\. Check the path"):
        list(read_lines(tmp_path / "nope"))

    def refuse(self: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UsageError, match="expected a readable file, found: Permission denied"):
        recognise_container(tmp_path / "secret")


ROW = b'{"a": 1}'


@pytest.mark.slow
@pytest.mark.parametrize("container", PACK)
def test_a_huge_line_costs_a_second_and_no_memory(tmp_path: Path, container: str) -> None:
    """100 MB in one line, between rows that come as ever. Splitting chunk after chunk anew took minutes."""
    size = 100_000_000 if container != "jsonl" else 30_000_000
    text = ROW + b'\n{"a": "' + b"x" * size + b'"}\n' + ROW
    (tmp_path / "f").write_bytes(PACK[container](text))
    tracemalloc.start()
    began = time.monotonic()
    rows = list(read_lines(tmp_path / "f", limits=Limits(max_row_bytes=1000)))
    assert time.monotonic() - began < 20
    assert tracemalloc.get_traced_memory()[1] < 90_000_000
    tracemalloc.stop()
    assert [(line, len(row)) for line, row in rows] == [(1, 8), (2, 1001), (3, 8)]


@pytest.mark.slow
@pytest.mark.parametrize("container", ["jsonl.gz", "jsonl.zst", "jsonl.bz2", "jsonl.xz"])
def test_a_file_that_grows_without_bound_is_refused(tmp_path: Path, container: str) -> None:
    (tmp_path / "f").write_bytes(PACK[container]((ROW + b"\n") * 400_000))
    with pytest.raises(UsageError, match=r"f: expected at most 1,000,000 bytes once it is decompressed"):
        list(read_lines(tmp_path / "f", limits=Limits(max_decoded_bytes=1_000_000)))
    assert len(list(read_lines(tmp_path / "f", limits=Limits().of_stored()))) == 400_000


@pytest.mark.slow
def test_a_large_value_that_parquet_stores_once(tmp_path: Path) -> None:
    """2,000 rows that share one text of 10 MB, flat and in messages: 20 GB, were each row to hold it."""
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), pa.array(["x" * 10_000_000]))
    message = pa.StructArray.from_arrays([text], ["content"])
    nested = pa.ListArray.from_arrays(pa.array(range(2001), pa.int32()), message)
    few = pa.array([f"row {n}" for n in range(2000)])
    for name, column in (("flat", text), ("nested", nested)):
        pq.write_table(pa.table({"a": column, "b": few}), tmp_path / name)
        limits = Limits(max_row_bytes=1000)
        began = time.monotonic()
        rows = list(read_lines(tmp_path / name, limits=limits))
        assert time.monotonic() - began < 30
        assert [line for line, _ in rows] == list(range(1, 2001))
        assert {len(row) for _, row in rows} == {1001}
        with pytest.raises(UsageError, match="expected at most"):
            list(read_lines(tmp_path / name, limits=Limits(max_row_bytes=1000, max_decoded_bytes=1_000_000)))


def test_one_row_of_parquet_may_hold_a_text_very_often(tmp_path: Path) -> None:
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 100_000, pa.int32()), pa.array(["x" * 1_000_000]))
    lists = pa.ListArray.from_arrays(pa.array([0, 99_999, 100_000], pa.int32()), text)
    pq.write_table(pa.table({"a": lists}), tmp_path / "f")
    (_, first), (_, second) = read_lines(tmp_path / "f")
    assert first.startswith(b"a row of about 99,999,000,000 bytes") and len(first) == Limits().max_row_bytes + 1
    assert len(second) == len('{"a":[""]}') + 1_000_000


def test_a_disk_that_fails_is_not_the_fault_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / "f").write_bytes(ROW)
    monkeypatch.setattr(containers, "_chunks", refuse)
    with pytest.raises(UsageError, match="found: Input/output error") as failed:
        list(read_lines(tmp_path / "f"))
    assert not isinstance(failed.value, UnreadableFile)


MESSAGES = pa.table(
    {
        "prompt": pa.array(["p", "q", "p"]).dictionary_encode(),
        "chosen": [[{"role": "assistant", "content": "x"}]] * 3,
        "id": pa.array([1, None, 3], pa.int64()),
        "when": pa.array([0, 1, None], pa.timestamp("s")),
    }
)
EXPECTED = [
    {"chosen": [{"content": "x", "role": "assistant"}], "id": 1, "prompt": "p", "when": "1970-01-01T00:00:00"},
    {"chosen": [{"content": "x", "role": "assistant"}], "id": None, "prompt": "q", "when": "1970-01-01T00:00:01"},
    {"chosen": [{"content": "x", "role": "assistant"}], "id": 3, "prompt": "p", "when": None},
]


def arrow(table: pa.Table, compression: str | None = None, *, stream: bool = False) -> bytes:
    buffer = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with make(buffer, table.schema, options=options) as writer:
        writer.write_table(table)
    return buffer.getvalue()


@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_arrow_rows_become_json(tmp_path: Path, compression: str | None, stream: bool, pack: Any) -> None:
    (tmp_path / "f").write_bytes(pack(arrow(MESSAGES, compression, stream=stream)))
    assert recognise_container(tmp_path / "f") == ("arrow" if pack is bytes else "arrow.gz")
    assert [orjson.loads(row) for _, row in read_lines(tmp_path / "f")] == EXPECTED


def test_a_compressed_parquet_file_is_read_from_disk(tmp_path: Path) -> None:
    pq.write_table(MESSAGES, tmp_path / "plain")
    (tmp_path / "f").write_bytes(bz2.compress((tmp_path / "plain").read_bytes()))
    assert recognise_container(tmp_path / "f") == "parquet.bz2"
    assert [orjson.loads(row) for _, row in read_lines(tmp_path / "f")] == EXPECTED


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_arrow_that_grows_without_bound_is_refused_before_it_does(tmp_path: Path, compression: str) -> None:
    """200 MB of one letter in a file of a few hundred kilobytes; nothing of it may be decompressed."""
    table = pa.table({"prompt": ["x" * 1_000_000] * 200})
    (tmp_path / "f").write_bytes(arrow(table, compression))
    assert (tmp_path / "f").stat().st_size < 2_000_000
    limits, before = Limits(max_row_bytes=1000, max_decoded_bytes=1_000_000), pa.total_allocated_bytes()
    peak = pa.default_memory_pool().max_memory()
    with pytest.raises(UsageError, match="expected at most 1,000,000 bytes once it is decompressed"):
        list(read_lines(tmp_path / "f", limits=limits))
    assert pa.default_memory_pool().max_memory() - max(peak, before) < 50_000_000
    assert sum(1 for _ in read_lines(tmp_path / "f", limits=limits.of_stored())) == 200


@pytest.mark.parametrize("compression", [None, "lz4"])
def test_a_damaged_arrow_file_is_refused_and_never_a_crash(tmp_path: Path, compression: str | None) -> None:
    """Bits turned at random: offsets and sizes that lie point anywhere."""
    whole, rng = arrow(MESSAGES, compression), random.Random(5)
    for _ in range(60):
        broken = bytearray(whole)
        for _ in range(3):
            broken[rng.randrange(8, len(broken))] ^= 1 << rng.randrange(8)
        (tmp_path / "f").write_bytes(broken)
        try:
            rows = list(read_lines(tmp_path / "f"))
        except UsageError:
            continue
        assert len(rows) <= 3
