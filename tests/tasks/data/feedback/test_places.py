"""Folders, patterns and saved datasets stand for their files; standard input for itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from plumbline.data_contracts.errors import UsageError
from plumbline.tasks.data.feedback.places import expand


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_a_folder_stands_for_its_files_of_feedback(tmp_path: Path) -> None:
    touch(tmp_path, "b.jsonl", "a.csv.gz", "in/c.PARQUET", "README.md", ".git/x.json", ".b.jsonl", "dataset_info.json")
    assert expand([tmp_path]) == [tmp_path / "a.csv.gz", tmp_path / "b.jsonl", tmp_path / "in/c.PARQUET"]


def test_a_pattern_stands_for_what_it_matches(tmp_path: Path) -> None:
    touch(tmp_path, "b.jsonl", "a.jsonl", "in/c.jsonl", "[1].jsonl")
    assert expand([str(tmp_path / "?.jsonl")]) == [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    assert len(expand([str(tmp_path / "**/*.jsonl")])) == 4
    assert expand([str(tmp_path / "[1].jsonl")]) == [str(tmp_path / "[1].jsonl")]
    with pytest.raises(UsageError, match=r"\*\.csv: no file is named so"):
        expand([str(tmp_path / "*.csv")])


def test_a_saved_dataset_stands_for_its_splits(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_list([{"prompt": "p", "chosen": "yes", "rejected": "no"}])
    DatasetDict(train=rows, test=rows).save_to_disk(tmp_path / "two")
    assert expand([tmp_path / "two"]) == [tmp_path / "two/train", tmp_path / "two/test"]
    assert expand([tmp_path / "two/test"]) == [tmp_path / "two/test"]
    (tmp_path / "two/dataset_dict.json").write_text("{}")
    with pytest.raises(UsageError, match="expected the splits of a dataset"):
        expand([tmp_path / "two"])


def test_everything_else_stands_for_itself(tmp_path: Path) -> None:
    assert expand(["-", "owner/name:split", "nope.jsonl"]) == ["/dev/stdin", "owner/name:split", "nope.jsonl"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="found a folder without either"):
        expand([tmp_path / "empty"])
