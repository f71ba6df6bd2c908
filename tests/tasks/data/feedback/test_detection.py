"""A file says what it is, where nobody names its source; what it nearly is, is named with the cure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from plumbline.data_contracts.errors import UsageError
from plumbline.tasks.data.feedback.batches import Batch, BatchChoices, store_batch
from plumbline.tasks.data.feedback.validate import raw_batches

PAIR = {"prompt": "p", "chosen": "yes", "rejected": "no"}
THUMB = {"prompt": "p", "response": "yes", "thumb": "up"}


def stored(tmp_path: Path, *rows: dict[str, Any] | bytes, source: str | None = None) -> Batch:
    path = tmp_path / "given.jsonl"
    path.write_bytes(b"\n".join(row if isinstance(row, bytes) else orjson.dumps(row) for row in rows))
    return store_batch(path, source, tmp_path / "raw")


@pytest.mark.parametrize(
    ("rows", "source", "form"),
    [
        ([PAIR] * 3, "human_pairs", "trl_standard"),
        ([THUMB] * 3, "unpaired_responses", "thumb"),
        ([{**THUMB, "thumb": None}, THUMB, THUMB], "unpaired_responses", "thumb"),
        ([{"prompt": "p", "completion": "c", "label": True}], "unpaired_responses", "trl_unpaired"),
        (
            [{"prompt": f"p{n}", "response": "r", "rating": 3} for n in range(4)],
            "unpaired_responses",
            "response_rating",
        ),
        (
            [{"prompt": f"p{n // 2}", "response": f"{n}", "rating": n} for n in range(4)],
            "human_pairs",
            "response_rating",
        ),
        ([{"prompt": "p", "answers": [{"answer": "a", "rank": 1}]}], "human_pairs", "ranked_answers"),
    ],
)
def test_a_file_says_its_source(tmp_path: Path, rows: list[dict[str, Any]], source: str, form: str) -> None:
    batch = stored(tmp_path, *rows)
    assert batch.found is not None
    assert (batch.source, batch.found.form, batch.found.share) == (source, form, 1)
    assert raw_batches(tmp_path / "raw", tmp_path) == [
        (source, batch.path.relative_to(tmp_path).as_posix(), batch.path)
    ]


def test_the_finding_says_how_sure_it_is(tmp_path: Path) -> None:
    found = stored(tmp_path, *[PAIR] * 7, b"{broken", THUMB, {"x": 1}).found
    assert found is not None
    assert found.text == (
        "probably TRL's standard pairs (format trl_standard, 7 of the first 10 rows), read as human_pairs"
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "q", "code": "c"}, r"found fields code, question\. Say which column is which, as --map prompt="),
        ({"prompt": "q", "chosen": "c"}, r"nearly TRL's standard pairs \(format trl_standard\), but it lacks rejected"),
        ({"context": "c", "response1": "x", "response2": "y"}, "nearly .*helpsteer3.* but it lacks overall_preference"),
        (b"rubbish", "found no JSON object at its beginning"),
    ],
)
def test_a_file_that_does_not_say_what_it_is_leaves_nothing(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        stored(tmp_path, row, row)
    assert not (tmp_path / "raw").exists()


def test_naming_the_source_decides(tmp_path: Path) -> None:
    batch = stored(tmp_path, {"question": "q"}, source="judged_pairs")
    assert (batch.source, batch.found) == ("judged_pairs", None)
    named = stored(tmp_path, THUMB, source="human_pairs")
    assert named.source == "human_pairs"


def test_a_dry_run_falls_back_to_the_source_of_params(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b'{"x": 1}')
    batch = store_batch(tmp_path / "f", None, tmp_path / "raw", intake=BatchChoices(fallback="judged_pairs"))
    assert (batch.source, batch.found) == ("judged_pairs", None)
