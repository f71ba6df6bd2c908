"""Every shape: what is written reads back, by the way that `ingest` takes, as the very records that were written."""

from __future__ import annotations

import dataclasses
import re
import tempfile
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plumbline.data_contracts.errors import UsageError
from plumbline.data_contracts.records import (
    Feedback,
    Message,
    Origin,
    PreferencePair,
    Quarantined,
    UnpairedResponse,
)
from plumbline.tasks.data.feedback import SOURCES, shapes
from plumbline.tasks.data.feedback.batches import store_batch
from plumbline.tasks.data.feedback.shape_files import container_of, write_shape
from plumbline.tasks.data.feedback.shapes import SHAPES
from plumbline.tasks.params.feedback_limits import LIMITS

STANDARD = ("trl", "trl-unpaired")
pytestmark = pytest.mark.slow

WRITTEN = [(name, container) for name, shape in SHAPES.items() for container in shape.containers]
TRICKY = (
    "\n\nHuman: a\n\nAssistant:",
    "Human: a\nAssistant: b",
    '{"a": 1}',
    "[1]",
    "</s>",
    "\u2028\r\n\x00.",
    "= ½ 🦉",
)
texts = st.one_of(st.sampled_from(TRICKY), st.text(min_size=1, max_size=20).filter(lambda text: text.strip() != ""))
values = st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.floats(-1, 1), texts, st.lists(texts, max_size=2))
metadata = st.dictionaries(st.sampled_from(("margin", "weight", "votes", "task", "judge")), values, max_size=3)


@st.composite
def prompts(draw: st.DrawFn) -> tuple[Message, ...]:
    system = [Message(role="system", content=draw(texts))] if draw(st.booleans()) else []
    spoken = [draw(texts) for _ in range(draw(st.sampled_from((1, 1, 3))))]
    turns = [Message(role=("user", "assistant")[place % 2], content=text) for place, text in enumerate(spoken)]
    return (*system, *turns)


@st.composite
def records(draw: st.DrawFn, kind: type[Feedback], number: int) -> Feedback:
    about: dict[str, Any] = {
        "id": f"{number}-{draw(st.sampled_from(('a', 'ü', '7')))}",
        "source": draw(st.sampled_from(("human_pairs", "judged_pairs", "crowd"))),
        "annotator": draw(st.sampled_from((None, "ann", "7"))),
        "timestamp": draw(st.sampled_from((None, "2026-01-01T00:00:00Z"))),
        "metadata": draw(metadata),
        "prompt": draw(prompts()),
        "origin": Origin(file="data/raw/f.jsonl", line=number),
    }
    if kind is UnpairedResponse:
        return UnpairedResponse(response=draw(texts), desirable=draw(st.booleans()), **about)
    chosen = draw(texts)
    rejected = draw(texts.filter(lambda text: text.split() != chosen.split()))
    return PreferencePair(chosen=chosen, rejected=rejected, **about)


@st.composite
def sets(draw: st.DrawFn, kind: type[Feedback]) -> list[Feedback]:
    return [draw(records(kind, number)) for number in range(1, draw(st.integers(1, 4)) + 1)]


def ingested(path: Path, folder: Path) -> list[Feedback | Quarantined]:
    batch = store_batch(path, None, folder / "raw")
    return [row.outcome for row in SOURCES[batch.source](batch.path, "f")]


def essence(record: Any, shape: str) -> tuple[object, ...]:
    form = SHAPES[shape]
    told = {name: getattr(record, name) for name in form.carries}
    if "metadata" in told:
        told["metadata"] = {key: told["metadata"][key] for key in told["metadata"] if key not in form.restates}
    return record.content_id(), record.prompt, told


@pytest.mark.parametrize(("shape", "container"), WRITTEN)
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_no_record_is_lost_or_changed_on_the_way_out_and_in(shape: str, container: str, data: st.DataObject) -> None:
    """The standard shapes refuse a prompt that they would change, and leave no file."""
    kind = SHAPES[shape].kind
    written = data.draw(sets(kind))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / f"out.{container}"
        try:
            done = write_shape(path, shape, lambda: written, LIMITS)
        except UsageError:
            assert shape in STANDARD
            assert any(len(record.prompt) > 1 or "Human:" in record.prompt[0].content for record in written)
            assert list(folder.iterdir()) == []
            return
        assert done.records == len(written)
        found = ingested(path, folder)
        assert not [record for record in found if isinstance(record, Quarantined)]
        assert [essence(record, shape) for record in found] == [essence(record, shape) for record in written]


@pytest.mark.parametrize(("shape", "container"), WRITTEN)
def test_the_same_records_give_the_same_bytes(shape: str, container: str, tmp_path: Path) -> None:
    written = example(SHAPES[shape].kind)
    digests = {write_shape(tmp_path / f"{n}.{container}", shape, lambda: written, LIMITS).sha256 for n in range(2)}
    assert len(digests) == 1


def example(kind: type[Feedback]) -> list[Feedback]:
    about: dict[str, Any] = {
        "id": "r1",
        "source": "human_pairs",
        "annotator": "ann",
        "metadata": {"margin": 0.5},
        "prompt": (Message(role="user", content="Is it blue?"),),
        "origin": Origin(file="f", line=1),
    }
    if kind is UnpairedResponse:
        return [UnpairedResponse(response="Yes.", desirable=True, **about)]
    return [PreferencePair(chosen="Yes.", rejected="No.", **about)]


def test_rows_are_those_of_the_tools(tmp_path: Path) -> None:
    """By the documentation of TRL (dataset formats), OpenAI (direct preference optimization) and Label Studio."""
    pair, single = example(PreferencePair)[0], example(UnpairedResponse)[0]
    about = {"id": "r1", "source": "human_pairs", "annotator": "ann", "metadata": {"margin": 0.5}}
    assert SHAPES["trl"].row(pair) == {"prompt": "Is it blue?", "chosen": "Yes.", "rejected": "No.", **about}
    assert SHAPES["trl-unpaired"].row(single) == {
        "prompt": "Is it blue?",
        "completion": "Yes.",
        "label": True,
        **about,
    }
    assert SHAPES["openai"].row(pair) == {
        "input": {
            "messages": [{"role": "user", "content": "Is it blue?"}],
            "tools": [],
            "parallel_tool_calls": True,
        },
        "preferred_output": [{"role": "assistant", "content": "Yes."}],
        "non_preferred_output": [{"role": "assistant", "content": "No."}],
    }
    assert SHAPES["sharegpt"].row(pair) == {
        "conversations": [{"from": "human", "value": "Is it blue?"}],
        "chosen": {"from": "gpt", "value": "Yes."},
        "rejected": {"from": "gpt", "value": "No."},
        **about,
    }
    task = SHAPES["label-studio"].row(pair)
    assert task is not None
    assert {task["data"]["answer1"], task["data"]["answer2"]} == {"Yes.", "No."}
    assert "completed_by" not in task["annotations"][0]


def test_datasets_reads_the_parquet_columns(tmp_path: Path) -> None:
    path = tmp_path / "out.parquet"
    write_shape(path, "trl-conversational", lambda: example(PreferencePair), LIMITS)
    table = pq.read_table(path)
    names = ["prompt", "chosen", "rejected", "id", "source", "annotator", "timestamp", "metadata"]
    assert table.column_names == names
    assert table["prompt"].to_pylist() == [[{"role": "user", "content": "Is it blue?"}]]
    assert orjson.loads(table["metadata"].to_pylist()[0]) == {"margin": 0.5}


def test_a_shape_that_changes_a_text_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a row function cut what it writes: the file is read back, and the old one stays."""
    cut = dataclasses.replace(
        SHAPES["openai"],
        row=lambda pair: SHAPES["trl"].row(pair) | {"rejected": "N"},  # type: ignore[operator]
    )
    monkeypatch.setattr(shapes, "SHAPES", SHAPES)
    monkeypatch.setitem(SHAPES, "openai", cut)  # type: ignore[arg-type]
    path = tmp_path / "out.jsonl"
    path.write_bytes(b"old")
    with pytest.raises(UsageError, match="record r1 with another rejected when it is read back"):
        write_shape(path, "openai", lambda: example(PreferencePair), LIMITS)
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("out.jsonl", b"old")]


def test_a_name_says_a_container_that_the_tool_reads() -> None:
    assert container_of(Path("a.parquet"), "trl") == "parquet"
    assert container_of(Path("a"), "label-studio") == "json"
    for name, shape in (("a.csv", "trl"), ("a.parquet", "openai"), ("a.jsonl", "label-studio")):
        with pytest.raises(UsageError, match="expected a name that ends in"):
            container_of(Path(name), shape)


def test_the_guide_names_every_shape(request: pytest.FixtureRequest) -> None:
    page = (request.config.rootpath / "docs/guides/export.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `([a-z][a-z-]*)` \|", page, re.MULTILINE) == list(SHAPES)
