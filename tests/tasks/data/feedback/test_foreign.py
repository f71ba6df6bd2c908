"""A text is read in its form, or named once with the cure; JSON lines whose first row is broken stay JSON lines."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plumbline.data_contracts.errors import UnreadableFile
from plumbline.data_contracts.records import PreferencePair, Quarantined
from plumbline.tasks.data.feedback import containers
from plumbline.tasks.data.feedback.containers import read_lines, recognise_container
from plumbline.tasks.data.feedback.foreign import EXPECTED
from plumbline.tasks.data.feedback.human_pairs import read
from plumbline.tasks.data.feedback.json_documents import Layout, split_document

ROWS = [{"prompt": f"p {n}", "chosen": "yes", "rejected": "no"} for n in range(3)]
LINES = "\n".join(map(json.dumps, ROWS)).encode()


def zipped(*names: str, content: bytes = b"x") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in names:
            file.writestr(name, content)
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        info = tarfile.TarInfo("rows.jsonl")
        info.size = len(LINES)
        file.addfile(info, io.BytesIO(LINES))
    return buffer.getvalue()


def pretty(value: object) -> bytes:
    return json.dumps(value, indent=2).encode()


FOREIGN: dict[str, tuple[bytes, str]] = {
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", "Git LFS pointer.*git lfs pull"),
    "annex": (b"../.git/annex/objects/aa/bb/MD5-s1\n", "git-annex pointer.*git annex get"),
    "dvc": (b"outs:\n- md5: 00\n  path: rows.jsonl\n", "a .dvc file.*dvc pull"),
    "xlsx": (zipped("[Content_Types].xml", "xl/workbook.xml"), "an Excel"),
    "torch": (zipped("archive/data.pkl"), "a torch checkpoint"),
    "pickle": (pickle.dumps(ROWS), "a Python pickle"),
    "old pickle": (pickle.dumps(ROWS, protocol=0), "a Python pickle"),
    "tar": (tarred(), "a tar archive.*tar -xf"),
    "tar in gzip": (gzip.compress(tarred()), "a tar archive in jsonl.gz"),
    "sqlite": (b"SQLite format 3\x00", "SQLite database"),
    "html": (b"<!DOCTYPE html>\n<html><body>Sign in</body></html>", "HTML page.*login or error page"),
    "xml": (b"<?xml version='1.0'?><rows/>", "found XML"),
    "yaml": (b"- prompt: a\n  chosen: b\n", "found YAML"),
    "python": (repr(ROWS[0]).encode() + b"\n" + repr(ROWS[1]).encode(), "Python dictionaries, not JSON"),
    "utf-16 without a mark": (LINES.decode().encode("utf-16-le"), "UTF-16 text.*iconv"),
    "wrapped in rows": (json.dumps({"rows": [{"row": row} for row in ROWS]}).encode(), r"\[\"rows\"\]\[\]\.row"),
    "columns": (json.dumps({"prompt": ["a", "b"], "chosen": ["c", "d"]}).encode(), "a column in each field.*read_json"),
    "pandas": (json.dumps({"prompt": {"0": "a"}, "chosen": {"0": "c"}}).encode(), "a column in each field"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_a_file_is(tmp_path: Path, name: str) -> None:
    content, message = FOREIGN[name]
    (tmp_path / "given.file").write_bytes(content)
    with pytest.raises(UnreadableFile, match=message) as refused:
        list(read_lines(tmp_path / "given.file"))
    assert f"expected {EXPECTED}, found" in str(refused.value)


WRAPPED = {"version": 1, "data": ROWS}
CSV = b"prompt,chosen,rejected\n" + b"".join(f"p {n},yes,no\n".encode() for n in range(3))

FORMS: dict[str, tuple[bytes, str]] = {
    "json lines": (LINES, "jsonl"),
    "a mark before each line": (b"\n".join(b"\xef\xbb\xbf" + line for line in LINES.split(b"\n")), "jsonl"),
    "windows line ends": (LINES.replace(b"\n", b"\r\n"), "jsonl"),
    "utf-16": (LINES.decode().encode("utf-16"), "jsonl"),
    "utf-16, big end first": (b"\xfe\xff" + LINES.decode().encode("utf-16-be"), "jsonl"),
    "csv": (CSV, "csv"),
    "csv with a mark": (b"\xef\xbb\xbf" + CSV, "csv"),
    "csv with semicolons": (CSV.replace(b",", b";"), "csv"),
    "tsv": (CSV.replace(b",", b"\t"), "tsv"),
    "csv in utf-16": (CSV.decode().encode("utf-16"), "csv"),
    "csv with the index of a data frame": (
        b"".join(b"%d," % n + line + b"\n" for n, line in enumerate(CSV.splitlines()))[1:],
        "csv",
    ),
    "array": (json.dumps(ROWS).encode(), "json"),
    "pretty array": (pretty(ROWS), "json"),
    "array after an empty line": (b"\n " + json.dumps(ROWS).encode(), "json"),
    "wrapped": (json.dumps(WRAPPED).encode(), "json"),
    "wrapped and pretty": (pretty(WRAPPED), "json"),
    "wrapped in splits": (json.dumps({"train": ROWS[:2], "test": ROWS[2:]}).encode(), "json"),
    "wrapped beside a list of words": (json.dumps({"tags": ["a", "b"], "data": ROWS}).encode(), "json"),
    "pretty objects": (b"\n".join(map(pretty, ROWS)), "json"),
    "on one line": (LINES.replace(b"\n", b" "), "json"),
    "without anything between": (LINES.replace(b"\n", b""), "json"),
    "with commas": (LINES.replace(b"\n", b",\n"), "json"),
}


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("name", FORMS)
def test_every_form_reads_to_the_same_rows(tmp_path: Path, name: str, pack: Callable[[bytes], bytes]) -> None:
    text, form = FORMS[name]
    (tmp_path / "f").write_bytes(pack(text))
    assert recognise_container(tmp_path / "f").split(".")[0] == form
    rows = [json.loads(row) for _, row in read_lines(tmp_path / "f")]
    assert [{key: row[key] for key in ROWS[0]} for row in rows] == ROWS


@pytest.mark.parametrize("size", [60_000, 100])
@pytest.mark.parametrize("text", [pretty({"my data": ROWS * 20_000}), json.dumps({"data": ROWS * 20_000}).encode()])
def test_a_large_document_is_read_whole_whatever_the_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: bytes, size: int
) -> None:
    monkeypatch.setattr(containers, "CHUNK", size)
    (tmp_path / "f").write_bytes(text)
    assert sum(1 for _ in read_lines(tmp_path / "f")) == 60_000


def test_one_pretty_row_with_a_list_of_objects_is_a_row(tmp_path: Path) -> None:
    row = {"prompt": "p", "chosen": [{"role": "assistant", "content": "x"}], "answers": [{"answer": "a", "rank": 1}]}
    for count in (1, 3):
        (tmp_path / "f").write_bytes(b"\n".join([pretty(row)] * count))
        assert [json.loads(text) for _, text in read_lines(tmp_path / "f")] == [row] * count


@pytest.mark.parametrize("text", [b'[{"a": 1}, {"a": 2}', b'{"data": [{"prompt": "p"}, {"prom', b'[\n{"prompt": "a\n'])
def test_a_document_that_was_cut_off_is_an_error(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "f").write_bytes(text)
    with pytest.raises(UnreadableFile, match="expected json to be readable to its end, found: its last list does not"):
        list(read_lines(tmp_path / "f"))


def test_what_lies_between_the_rows_of_an_array_is_a_row(tmp_path: Path) -> None:
    """Each value counts, so that what is none is refused by name, and nothing is lost."""
    (tmp_path / "f").write_bytes(b'[{"a": "]}, {"}, 7, "x", {"b": [1, {"c": "\\\\\\""}]} oops] tail')
    texts = [b'{"a": "]}, {"}', b"7", b'"x"', b'{"b": [1, {"c": "\\\\\\""}]} oops', b"tail"]
    assert [text for _, text in read_lines(tmp_path / "f")] == texts


json_rows = st.lists(
    st.dictionaries(
        st.text('ab"\\,[]{}', max_size=4),
        st.recursive(
            st.none() | st.integers() | st.text('a"\\,[]{} \n', max_size=6),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('x"]', max_size=2), inner, max_size=2),
            max_leaves=5,
        ),
        max_size=4,
    ),
    min_size=1,
    max_size=5,
)


@given(json_rows, st.sampled_from(["array", "objects", "wrapped"]), st.integers(1, 9), st.sampled_from([None, 1]))
def test_documents_are_split_as_a_parser_would(rows: list[Any], layout: Layout, size: int, indent: int | None) -> None:
    """Compared with json.loads over the whole, for any chunks."""
    whole = {"array": rows, "wrapped": {"n": 1, "rows": rows}}.get(layout)
    text = (
        json.dumps(whole, indent=indent) if whole else " ".join(json.dumps(row, indent=indent) for row in rows)
    ).encode()
    chunks = iter([text[start : start + size] for start in range(0, len(text), size)])
    assert [json.loads(row) for row in split_document(chunks, layout, 10_000)] == rows


def test_a_quoted_cell_holds_line_ends_and_rows_keep_their_lines(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b'prompt,chosen,rejected\n"a\r\nb","say ""hi"", ok",no\n\nq,yes,no\nq,yes\n')
    (first, row), (second, _), (third, broken) = read_lines(tmp_path / "f")
    assert json.loads(row) == {"prompt": "a\r\nb", "chosen": 'say "hi", ok', "rejected": "no"}
    assert (first, second, third) == (2, 5, 6)
    assert json.loads(broken) == ["q", "yes"]


def test_cells_of_json_are_values_where_a_text_cannot_be_meant(tmp_path: Path) -> None:
    turns = json.dumps([{"role": "user", "content": "hi"}])
    with (tmp_path / "f").open("w", newline="") as file:
        csv.writer(file).writerows([["prompt", "chosen", "metadata", "id"], [turns, '{"a": 1}', '{"b": 2}', ""]])
    ((_, row),) = read_lines(tmp_path / "f")
    assert json.loads(row) == {"prompt": json.loads(turns), "chosen": '{"a": 1}', "metadata": {"b": 2}, "id": None}


def test_a_cell_of_another_encoding_costs_its_row(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"prompt,chosen,rejected\na,caf\xe9,c\nb,c,d\n")
    assert [outcome.line for outcome in read(tmp_path / "f", "f")] == [2, 3]
    first, second = (row.outcome for row in read(tmp_path / "f", "f"))
    assert isinstance(first, Quarantined) and first.reason == "bad_encoding"
    assert isinstance(second, PreferencePair)


def test_a_column_named_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"prompt,chosen,chosen\na,b,c\n")
    with pytest.raises(UnreadableFile, match="expected each column once in the first line, found chosen twice"):
        list(read_lines(tmp_path / "f"))


def test_a_zip_archive_holds_one_file(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(zipped("rows.jsonl", "__MACOSX/._rows.jsonl", content=LINES))
    assert recognise_container(tmp_path / "one") == "jsonl.zip"
    assert len(list(read_lines(tmp_path / "one"))) == 3
    (tmp_path / "two").write_bytes(zipped("a.jsonl", "b.jsonl"))
    with pytest.raises(
        UnreadableFile, match=r"a zip archive with one file, found 2: a\.jsonl, b\.jsonl.*give the folder"
    ):
        list(read_lines(tmp_path / "two"))


BROKEN: dict[str, Callable[[], bytes]] = {
    "a first row that was cut off": lambda: b'{"prompt": "p", "chosen":\n' + LINES,
    "a first row cut off inside a text": lambda: b'{"prompt": "p, q, r\n' + LINES,
    "words with commas before the rows": lambda: b"prompt, chosen, rejected\n" + LINES,
    "a row of no known field": lambda: b'{"question": "x"}',
    "a conversation": lambda: b'{"messages": [{"role": "user", "content": "<html>"}], "thumb": "up"}',
    "one row whose extra field holds objects": lambda: b'{"prompt": "p", "votes": [{"who": "a"}]}',
    "words alone": lambda: b"rubbish\n{",
    "a list": lambda: b"[1, 2]\n" + LINES,
    "two texts that are lists of words": lambda: b'{"prompt": "p", "chosen": ["a"], "rejected": ["b"]}',
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_rows_are_rows(tmp_path: Path, name: str) -> None:
    """Each line that is not blank comes, to be judged by itself."""
    text = BROKEN[name]()
    (tmp_path / "f").write_bytes(text)
    assert [line for _, line in read_lines(tmp_path / "f")] == text.split(b"\n")
