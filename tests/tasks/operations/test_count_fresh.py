"""New records of a batch are counted batch by batch: what only a whole data set must hold is not asked of a part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from plumbline.data_contracts.errors import StageError
from plumbline.tasks.operations import count_fresh as module
from plumbline.tasks.operations.count_fresh import batch_contents, count_fresh, known_contents
from plumbline.tasks.params.curation import CurationParams
from plumbline.tasks.params.feedback import FeedbackParams

STRICT = FeedbackParams(quarantine_threshold=0.0)


def batch(tmp_path: Path, name: str, rows: list[Any]) -> Path:
    path = tmp_path / f"{name}.jsonl"
    path.write_bytes(b"\n".join(row if isinstance(row, bytes) else orjson.dumps(row) for row in rows))
    return path


def thumbs(count: int, thumb: str = "up") -> list[dict[str, Any]]:
    return [{"prompt": f"question {n}", "response": f"answer {n}", "thumb": thumb} for n in range(count)]


def labelled(count: int) -> list[dict[str, Any]]:
    return [
        {"prompt": f"question {n}", "response_a": f"yes {n}", "response_b": f"no {n}", "label": "a"}
        for n in range(count)
    ]


@pytest.mark.parametrize(
    ("source", "rows", "fresh"),
    [
        ("unpaired_responses", thumbs(12), 12),
        ("unpaired_responses", [*thumbs(3), b"rubbish"], 3),
        ("human_pairs", labelled(12), 12),
        ("human_pairs", [{**labelled(1)[0], "label": "tie"}], 0),
        ("human_pairs", [b"rubbish"], 0),
        ("human_pairs", [], 0),
    ],
)
def test_a_batch_is_counted_by_its_rows(tmp_path: Path, source: str, rows: list[Any], fresh: int) -> None:
    """Thumbs alone, thumbs of one kind, labels of one kind, no valid row, no row at all: each a sound part."""
    path = batch(tmp_path, "0123456789abcdef", rows)
    known = known_contents(tmp_path, None, CurationParams())
    key = f"{source}/0123456789abcdef"
    for _ in range(2):  # the second count is read from the cache
        assert count_fresh(tmp_path, {key: path}, known, STRICT, CurationParams()) == {key: fresh}


def test_counts_that_an_earlier_program_kept_are_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = batch(tmp_path, "0123456789abcdef", thumbs(3))
    with monkeypatch.context() as earlier:
        earlier.setattr(module, "_CODE", 1)
        cache = module._cache(tmp_path, f"unpaired_responses-{path.name}", STRICT, CurationParams())
        np.save(cache, np.array([], dtype="S16"))
    assert len(batch_contents(tmp_path, "unpaired_responses", path, STRICT, CurationParams())) == 3


def test_a_count_that_fails_is_not_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise StageError("the contract could not be run")

    monkeypatch.setattr(module, "sort_rows", fail)
    path = batch(tmp_path, "0123456789abcdef", thumbs(3))
    with pytest.raises(StageError):
        batch_contents(tmp_path, "unpaired_responses", path, STRICT, CurationParams())
    assert not list((tmp_path / ".plumbline/freshness").glob("*.npy"))
