"""What is no file of JSON lines is named once, with the cure; a file whose first row is broken stays one."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from plumbline.data_contracts.errors import UnreadableFile
from plumbline.tasks.data.feedback.containers import read_lines

ROWS = [{"prompt": f"p {n}", "chosen": "yes", "rejected": "no"} for n in range(3)]
LINES = "\n".join(map(json.dumps, ROWS)).encode()


def zipped(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in names:
            file.writestr(name, "x")
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
    "csv": (
        b'prompt,chosen,rejected\n"a, b",c,d\n',
        r"found CSV with the columns prompt, chosen, .*read_csv",
    ),
    "csv of other columns": (b"question,good,bad\na,b,c\n", "found CSV with the columns question, good, bad"),
    "csv in another encoding": (b"prompt,chosen,rejected\na,caf\xe9,c\n", "found CSV"),
    "csv with semicolons": (b"id;prompt;chosen\n1;a;b\n", "found CSV \\(with semicolons\\)"),
    "tsv": (b"prompt\tchosen\trejected\na\tb\tc\n", r"found TSV with .*sep='\\t'"),
    "csv in gzip": (gzip.compress(b"prompt,chosen\na,b\n"), "found CSV"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", "Git LFS pointer.*git lfs pull"),
    "annex": (b"../.git/annex/objects/aa/bb/MD5-s1\n", "git-annex pointer.*git annex get"),
    "dvc": (b"outs:\n- md5: 00\n  path: rows.jsonl\n", "a .dvc file.*dvc pull"),
    "zip": (zipped("rows.jsonl"), "a zip archive.*unzip"),
    "xlsx": (zipped("[Content_Types].xml", "xl/workbook.xml"), "an Excel"),
    "torch": (zipped("archive/data.pkl"), "a torch checkpoint"),
    "pickle": (pickle.dumps(ROWS), "a Python pickle"),
    "old pickle": (pickle.dumps(ROWS, protocol=0), "a Python pickle"),
    "tar": (tarred(), "a tar archive.*tar -xf"),
    "tar in gzip": (gzip.compress(tarred()), "a tar archive in jsonl.gz"),
    "bzip2": (b"BZh91AY", "bzip2 file.*bunzip2"),
    "arrow": (b"ARROW1\x00\x00", "Arrow or Feather"),
    "sqlite": (b"SQLite format 3\x00", "SQLite database"),
    "html": (b"<!DOCTYPE html>\n<html><body>Sign in</body></html>", "HTML page.*login or error page"),
    "xml": (b"<?xml version='1.0'?><rows/>", "found XML"),
    "yaml": (b"- prompt: a\n  chosen: b\n", "found YAML"),
    "python": (repr(ROWS[0]).encode() + b"\n" + repr(ROWS[1]).encode(), "Python dictionaries, not JSON"),
    "utf-16": (LINES.decode().encode("utf-16"), "UTF-16 text.*iconv"),
    "utf-16 without a mark": (LINES.decode().encode("utf-16-le"), "UTF-16 text.*iconv"),
    "array": (json.dumps(ROWS).encode(), r"one JSON array.*jq -c '\.\[\]'"),
    "pretty array": (pretty(ROWS), "one JSON array"),
    "wrapped": (json.dumps({"version": 1, "data": ROWS}).encode(), r"rows in its field 'data'.*jq -c '\.data\[\]'"),
    "wrapped and pretty": (pretty({"version": 1, "data": ROWS}), r"rows in its field 'data'.*jq -c '\.data\[\]'"),
    "wrapped in rows": (json.dumps({"rows": [{"row": row} for row in ROWS]}).encode(), r"\[\"rows\"\]\[\]\.row"),
    "wrapped and large": (pretty({"my data": ROWS * 20_000}), r"rows in its field 'my data'"),
    "wrapped, large, one line": (json.dumps({"data": ROWS * 20_000}).encode(), r"rows in its field 'data'"),
    "pretty objects": (b"\n".join(map(pretty, ROWS)), "JSON objects over several lines.*jq -c '\\.'"),
    "one pretty object": (pretty({"prompt": "p", "chosen": [{"role": "assistant", "content": "x"}]}), "several lines"),
    "on one line": (LINES.replace(b"\n", b" "), "several JSON objects on one line"),
    "with commas": (LINES.replace(b"\n", b",\n"), "JSON objects with commas between them"),
    "columns": (json.dumps({"prompt": ["a", "b"], "chosen": ["c", "d"]}).encode(), "a column in each field.*read_json"),
    "pandas": (json.dumps({"prompt": {"0": "a"}, "chosen": {"0": "c"}}).encode(), "a column in each field"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_a_file_is(tmp_path: Path, name: str) -> None:
    content, message = FOREIGN[name]
    (tmp_path / "given.file").write_bytes(content)
    with pytest.raises(UnreadableFile, match=message) as refused:
        list(read_lines(tmp_path / "given.file"))
    assert "expected JSON lines (plain, gzip or zstd) or Parquet, found" in str(refused.value)


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
