from __future__ import annotations

import hashlib
import time
from pathlib import Path

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plumbline.tasks.registry.lineage import records_index as lineage
from plumbline.tasks.registry.lineage.records_index import FILES, Place, build_index, look_up, read_line


def _write(folder: Path, name: str, entries: list[dict[str, object]]) -> Path:
    path = folder / name
    path.write_bytes(b"".join(orjson.dumps(entry) + b"\n" for entry in entries))
    return path


def test_a_record_is_found_in_each_file_with_its_line(tmp_path: Path) -> None:
    """`{"id": "a"}` and a newline are 11 bytes, so b starts at offset 11 of train.jsonl."""
    files = {
        "train.jsonl": _write(tmp_path, "train.jsonl", [{"id": "a"}, {"id": "b"}]),
        "merged.jsonl": _write(tmp_path, "merged.jsonl", [{"record_id": "c", "into": "a"}]),
        "quarantine.jsonl": _write(tmp_path, "quarantine.jsonl", [{"record_id": None}, {"record_id": "b"}]),
    }
    assert build_index(files, tmp_path / "index.npy") == 4
    places = look_up(tmp_path / "index.npy", "b")
    assert {place.file for place in places} == {"train.jsonl", "quarantine.jsonl"}
    assert Place("train.jsonl", 11) in places
    (merged,) = look_up(tmp_path / "index.npy", "c")
    assert read_line(files["merged.jsonl"], merged, "c") == {"record_id": "c", "into": "a"}
    assert look_up(tmp_path / "index.npy", "nobody") == []


def test_a_merged_record_is_found_by_its_own_id_not_by_its_survivor(tmp_path: Path) -> None:
    files = {"merged.jsonl": _write(tmp_path, "merged.jsonl", [{"record_id": "c", "into": "a"}])}
    build_index(files, tmp_path / "index.npy")
    assert look_up(tmp_path / "index.npy", "a") == []


def test_a_collision_of_eight_bytes_is_told_from_a_hit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lineage, "_key", lambda record: 7)
    files = {"train.jsonl": _write(tmp_path, "train.jsonl", [{"id": "a"}, {"id": "b"}])}
    build_index(files, tmp_path / "index.npy")
    places = look_up(tmp_path / "index.npy", "b")
    assert len(places) == 2
    assert [read_line(files["train.jsonl"], place, "b") for place in places] == [None, {"id": "b"}]


def test_an_empty_dataset_can_be_asked(tmp_path: Path) -> None:
    assert build_index({"train.jsonl": _write(tmp_path, "train.jsonl", [])}, tmp_path / "index.npy") == 0
    assert look_up(tmp_path / "index.npy", "a") == []


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(st.sampled_from(FILES), st.lists(st.text(max_size=6), max_size=12)), st.text(max_size=6))
def test_the_index_agrees_with_a_scan(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, list[str]], asked: str
) -> None:
    folder = tmp_path_factory.mktemp("scan")
    files = {name: _write(folder, name, [{"id": record} for record in ids]) for name, ids in content.items()}
    build_index(files, folder / "index.npy")
    for record in {asked, *(item for ids in content.values() for item in ids)}:
        places = look_up(folder / "index.npy", record)
        hits = [place.file for place in places if read_line(files[place.file], place, record) is not None]
        assert sorted(hits) == sorted(name for name, ids in content.items() for item in ids if item == record)


def test_three_hundred_datasets_are_asked_in_a_fraction_of_a_second(tmp_path: Path) -> None:
    """A thousand times a million records must take a second: here 300 times 20,000, well below a third of it."""
    generator = np.random.default_rng(0)
    wanted = int.from_bytes(hashlib.sha256(b"wanted").digest()[:8])
    for number in range(300):
        keys = generator.integers(0, 2**64, 20_000, dtype=np.uint64)
        keys[0] = wanted if number % 100 == 0 else keys[0]
        np.save(tmp_path / f"{number}.npy", np.array([np.sort(keys), np.zeros_like(keys)]))
    start = time.perf_counter()
    hits = sum(len(look_up(tmp_path / f"{number}.npy", "wanted")) for number in range(300))
    assert hits == 3
    assert time.perf_counter() - start < 1.0
