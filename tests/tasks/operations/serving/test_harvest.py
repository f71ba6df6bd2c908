"""Interactions become feedback once, in the same bytes, and in formats that ingest reads."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from sqlalchemy import Engine

from plumbline.data_contracts.interactions import Interaction, InteractionFeedback
from plumbline.data_contracts.records import PreferencePair, Quarantined, UnpairedResponse
from plumbline.tasks.data.feedback import SOURCES
from plumbline.tasks.models.judging import Judgement
from plumbline.tasks.operations.serving import harvest, log
from plumbline.tasks.operations.serving.collect import LEFT
from plumbline.tasks.operations.serving.traffic import summarise
from tests.tasks.operations.serving.test_log import START, answer, interaction

JUDGE = {"name": "rule", "digest": "d"}


def pair(name: str, seconds: int = 0, one: str = "yes", two: str = "no", **changed: Any) -> Interaction:
    at = START + timedelta(seconds=seconds)
    return interaction(name, at, answer(one), answer(two, "challenger", **changed))


def prefers(place: int, certain: float = 1.0) -> Judgement:
    wins = (
        np.array([[0.5, certain], [1 - certain, 0.5]]) if place == 0 else np.array([[0.5, 1 - certain], [certain, 0.5]])
    )
    return Judgement(np.array([1.0, 2.0]), wins)


def test_a_claim_is_finished_before_another_begins_and_each_interaction_is_claimed_once(engine: Engine) -> None:
    log.record_all(engine, [pair("b", 1), pair("a", 2), interaction("single", START)])
    first = harvest.claim(engine, "judged", 10, None)
    assert first is not None and first.ids == ("a", "b")
    log.record(engine, pair("c", 3))
    assert harvest.claim(engine, "judged", 10, None) == first  # what died is taken up again, as it was
    harvest.settle(engine, first, "batch")
    second = harvest.claim(engine, "judged", 10, None)
    assert second is not None and second.ids == ("c",)
    harvest.settle(engine, second, "")
    assert harvest.claim(engine, "judged", 10, None) is None


def test_a_claim_is_bounded_and_starts_where_asked(engine: Engine) -> None:
    log.record_all(engine, [pair(f"r{number}", number) for number in range(5)])
    claimed = harvest.claim(engine, "judged", 2, START + timedelta(seconds=1))
    assert claimed is not None and claimed.ids == ("r1", "r2")


@pytest.mark.parametrize(
    ("item", "why"),
    [
        (interaction("x"), "one answer"),
        (pair("x", two=""), "empty"),
        (pair("x", two=" yes "), "same"),
        (pair("x", finish_reason="length"), "unfinished"),
        (pair("x"), None),
    ],
)
def test_what_makes_no_pair_has_a_reason(item: Interaction, why: str | None) -> None:
    assert harvest.comparable(item) == why


def test_the_judges_choice_is_told_by_the_order_it_saw(tmp_path: Path) -> None:
    found = [pair(f"r{number}") for number in range(20)]
    orders = {harvest.shown_order(item) for item in found}
    assert orders == {(0, 1), (1, 0)}
    rows, counts = harvest.judged_rows(found, [prefers(0)] * 20, JUDGE, 0.05)
    for item, row in zip(found, rows, strict=True):
        winner = item.answers[harvest.shown_order(item)[0]]
        assert (row["chosen"], row["metadata"]["chosen_model_uri"]) == (winner.text, winner.model_uri)
        assert row["metadata"]["request_id"] == item.id
    assert counts == {"pairs": 20}
    again, _ = harvest.judged_rows(found, [prefers(0)] * 20, JUDGE, 0.05)
    assert orjson.dumps(again) == orjson.dumps(rows)
    pairs = _read(tmp_path, "judged_pairs", rows)
    assert all(isinstance(item, PreferencePair) for item in pairs)
    assert pairs[0].metadata["request_id"] == "r0"


def test_ties_and_unusable_judgements_are_counted_not_guessed() -> None:
    rows, counts = harvest.judged_rows([pair("a"), pair("b")], [None, prefers(0, 0.54)], JUDGE, 0.05)
    assert (rows, counts) == ([], {"unusable": 1, "ties": 1})


def test_what_people_labelled_is_read_back_as_pairs_and_names_no_version_by_side(tmp_path: Path) -> None:
    turns = pair("a").prompt
    item = pair("a").model_copy(update={"prompt": turns[1:]})
    rows = harvest.labelling_rows([item, pair("with a system turn")])
    assert len(rows) == 1
    assert isinstance(_read(tmp_path, "human_pairs", rows)[0], Quarantined)  # not labelled yet
    rows[0]["label"] = "b"
    (read,) = _read(tmp_path, "human_pairs", rows)
    assert isinstance(read, PreferencePair)
    assert read.chosen == item.answers[harvest.shown_order(item)[1]].text
    assert read.prompt == item.prompt
    assert read.metadata["model_uris"] == ["models:/a/1", "models:/a/2"]


def test_thumbs_are_read_as_unpaired_responses(tmp_path: Path, engine: Engine) -> None:
    log.record_all(engine, [interaction("a"), interaction("b", START + timedelta(seconds=1)), interaction("c")])
    given: list[tuple[str, Any]] = [("a", "thumb_up"), ("b", "thumb_down"), ("c", "click")]
    for name, kind in given:
        log.add_feedback(engine, InteractionFeedback(request_id=name, kind=kind, at=START, annotator="ann"))
    claimed = harvest.claim(engine, "thumbs", 10, None)
    assert claimed is not None and claimed.ids == ("a", "b")
    rows = harvest.thumb_rows(log.some_interactions(engine, claimed.ids), claimed.thumbs)
    read = _read(tmp_path, "unpaired_responses", rows)
    assert all(isinstance(item, UnpairedResponse) for item in read)
    assert [(item.desirable, item.annotator) for item in read] == [(True, "ann"), (False, "ann")]


def test_a_thumb_that_comes_after_a_harvest_is_of_the_next_one_alone(engine: Engine) -> None:
    log.record(engine, interaction("a"))
    found = []
    for name in ("first", "second"):
        given = InteractionFeedback(request_id="a", kind="thumb_up", at=START, annotator=name)
        log.add_feedback(engine, given)
        claimed = harvest.claim(engine, "thumbs", 10, None)
        assert claimed is not None
        rows = harvest.thumb_rows(log.some_interactions(engine, claimed.ids), claimed.thumbs)
        found.append([row["annotator"] for row in rows])
        harvest.settle(engine, claimed, "batch")
    assert found == [["first"], ["second"]]


def test_traffic_is_summed_by_version_and_role(engine: Engine) -> None:
    log.record_all(engine, [pair("a"), interaction("b", START, answer(refusal=True, latency_ms=9.0))])
    log.record(engine, interaction("gone", START, answer(finish_reason="error", error=LEFT)))
    log.add_feedback(engine, InteractionFeedback(request_id="b", kind="click", at=START))
    champion, shadow = summarise(log.interactions(engine))
    assert (champion["role"], champion["answers"], champion["refusals"]) == ("champion", 3, 1)
    assert (champion["errors"], champion["left"]) == (0, 1)  # nobody's fault
    # of 3.5 and 9 ms: their middle, and 95 % and 99 % of the way from one to the other
    assert champion["latency_ms"] == pytest.approx({"p50": 6.25, "p95": 8.725, "p99": 8.945})
    assert champion["feedback"] == {"click": 1}
    assert (shadow["role"], shadow["model_uri"], shadow["feedback"]) == ("shadow", "models:/a/2", {})


def _read(folder: Path, source: str, rows: list[harvest.Row]) -> list[Any]:
    file = folder / "rows.jsonl"
    file.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return [item.outcome for item in SOURCES[source](file, "rows.jsonl")]
