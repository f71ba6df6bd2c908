"""A map says which column is which; it lies beside the batch, and each later reading follows it."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import orjson
import pytest

from plumbline.data_contracts.errors import ArtifactError, UsageError
from plumbline.data_contracts.records import PreferencePair, Quarantined, UnpairedResponse
from plumbline.tasks.data.feedback import SOURCES
from plumbline.tasks.data.feedback.batches import BatchChoices, store_batch
from plumbline.tasks.data.feedback.defects import Defect
from plumbline.tasks.data.feedback.mapping import mapped, parse_map
from plumbline.tasks.data.feedback.readings import columns_of, map_digest
from plumbline.tasks.params.feedback import FeedbackParams

TABLE = [{"task": f"t{n}", "best": "yes", "other": "no", "mood": n, "who": "ann"} for n in range(3)]
NAMED = {"prompt": "task", "chosen": "best", "rejected": "other", "annotator": "who"}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_bytes(b"\n".join(map(orjson.dumps, rows)))
    return path


def outcomes(batch: Path, source: str = "human_pairs") -> list[Any]:
    return [row.outcome for row in SOURCES[source](batch, "f")]


def test_named_columns_are_read_and_others_kept() -> None:
    row = mapped({**TABLE[0], "id": 7, "metadata": {"page": 2}}, NAMED)
    expected = {"prompt": "t0", "chosen": "yes", "rejected": "no", "annotator": "ann", "id": 7}
    assert row == {**expected, "metadata": {"mood": 0, "page": 2}}


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (0, "a"),
        ("0", "a"),
        (0.0, "a"),
        (1, "b"),
        ("two", "b"),
        ("TWO", "b"),
        (2, "tie"),
        (True, True),
        ("x", "x"),
        ("l", "a"),
    ],
)
def test_values_have_the_meaning_that_the_map_gives(value: object, label: object) -> None:
    columns = {"response_a": "l", "response_b": "r", "label": "v", "label.a": "0", "label.b": "1,two", "label.tie": "2"}
    assert mapped({"l": "x", "r": "y", "v": value}, columns)["label"] == label


def test_a_field_inside_a_column_and_a_name_with_a_dot() -> None:
    row = {"data": {"question": ["q"]}, "a.b": "x"}
    assert mapped(row, {"prompt": "data.question.0", "chosen": "a.b"}) == {"prompt": "q", "chosen": "x"}


def test_a_column_that_is_not_there_is_named() -> None:
    with pytest.raises(Defect, match=r"expected the column for chosen \(--map chosen=best\), found fields task"):
        mapped({"task": "t"}, NAMED)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prompt"], "--map prompt: expected NAME=COLUMN"),
        (["prompt="], "expected NAME=COLUMN"),
        (["promt=x"], "--map promt: no such name. Did you mean prompt"),
        (["prompt=x", "prompt=y"], "prompt was mapped to x already"),
    ],
)
def test_maps_that_are_none(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_map(words)


def test_a_map_of_params_is_checked() -> None:
    assert FeedbackParams(map={"prompt": "x"}).map == {"prompt": "x"}
    with pytest.raises(ValueError, match="'promt' is no name of a map"):
        FeedbackParams(map={"promt": "x"})


def test_a_batch_keeps_its_map(tmp_path: Path) -> None:
    path = write(tmp_path / "f", TABLE)
    batch = store_batch(path, None, tmp_path / "raw", intake=BatchChoices(NAMED))
    assert (batch.source, batch.rows) == ("human_pairs", 3)
    assert batch.path.read_bytes() == path.read_bytes()
    first = outcomes(batch.path)[0]
    assert isinstance(first, PreferencePair)
    assert (first.chosen, first.annotator, first.metadata) == ("yes", "ann", {"mood": 0})
    (kept,) = batch.path.parent.glob(".*.map")
    assert stat.S_IMODE(kept.stat().st_mode) == 0o400
    assert columns_of(batch.path) == NAMED


def test_a_batch_that_comes_again_keeps_its_map_or_takes_the_new_one(tmp_path: Path) -> None:
    path = write(tmp_path / "f", TABLE)
    batch = store_batch(path, None, tmp_path / "raw", intake=BatchChoices(NAMED))
    digest = map_digest(batch.path)
    again = store_batch(path, None, tmp_path / "raw")
    assert (again.new, columns_of(again.path), map_digest(again.path)) == (False, NAMED, digest)
    turned = {**NAMED, "chosen": "other", "rejected": "best"}
    store_batch(path, None, tmp_path / "raw", intake=BatchChoices(turned))
    assert outcomes(batch.path)[0].chosen == "no"
    assert map_digest(batch.path) != digest
    assert len(list(batch.path.parent.glob(".*.map"))) == 2
    for _ in range(2):
        store_batch(path, None, tmp_path / "raw", intake=BatchChoices(turned))
    assert len(list(batch.path.parent.glob(".*.map"))) == 2


def test_a_map_that_was_changed_is_an_error(tmp_path: Path) -> None:
    batch = store_batch(write(tmp_path / "f", TABLE), None, tmp_path / "raw", intake=BatchChoices(NAMED))
    (kept,) = batch.path.parent.glob(".*.map")
    kept.chmod(0o600)
    kept.write_bytes(b'{"prompt": "mood"}')
    with pytest.raises(ArtifactError, match=r"expected the map of a batch.*doctor --fix"):
        outcomes(batch.path)


def test_a_map_that_fits_no_row_is_refused_and_nothing_kept(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"fits none of the first 3 rows: .*--map prompt=tsak"):
        store_batch(
            write(tmp_path / "f", TABLE), "human_pairs", tmp_path / "raw", intake=BatchChoices({"prompt": "tsak"})
        )
    assert not (tmp_path / "raw").exists()


def test_single_responses_by_a_map(tmp_path: Path) -> None:
    rows = [{"q": "a", "text": "b", "ok": word} for word in ("fine", "poor", "n/a", "odd")]
    named = {
        "prompt": "q",
        "response": "text",
        "thumb": "ok",
        "thumb.up": "fine",
        "thumb.down": "poor",
        "thumb.none": "n/a",
    }
    batch = store_batch(write(tmp_path / "f", rows), None, tmp_path / "raw", intake=BatchChoices(named))
    assert batch.source == "unpaired_responses"
    up, down, none, odd = outcomes(batch.path, batch.source)
    assert isinstance(up, UnpairedResponse) and up.desirable
    assert isinstance(down, UnpairedResponse) and not down.desirable
    assert isinstance(none, Quarantined) and none.reason == "no_opinion"
    assert isinstance(odd, Quarantined) and odd.reason == "bad_label"


def test_columns_of_a_known_form_are_kept_by_name(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{n}", "chosen": "yes", "rejected": "no", "mood": n} for n in range(2)]
    batch = store_batch(write(tmp_path / "f", rows), None, tmp_path / "raw", intake=BatchChoices({"metadata": "mood"}))
    assert [pair.metadata for pair in outcomes(batch.path)] == [{"mood": 0}, {"mood": 1}]
