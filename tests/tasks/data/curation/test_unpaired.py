"""Single responses beside curated pairs: what is kept may be trained on, and every row is accounted for."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plumbline.data_contracts.records import Message, Origin, PreferencePair, UnpairedResponse
from plumbline.tasks.data.curation.curate import curate
from plumbline.tasks.data.curation.curated import Curated
from plumbline.tasks.data.curation.unpaired import CuratedUnpaired, curate_unpaired
from plumbline.tasks.params.curation import ContradictionParams, CurationParams, LengthLimitParams, SplitParams

Maker = Callable[..., PreferencePair]
PARAMS = CurationParams(split=SplitParams(train=0.6, validation=0.2, test=0.2))


def thumb(line: int, prompt: str | tuple[Message, ...] = "", **changes: Any) -> UnpairedResponse:
    turns = prompt if isinstance(prompt, tuple) else (Message(role="user", content=prompt or f"lone{line} ask{line}?"),)
    fields: dict[str, Any] = {
        "id": f"u{line}",
        "prompt": turns,
        "response": f"word{line} said{line}",
        "desirable": True,
        "source": "test",
        "origin": Origin(file="thumbs.jsonl", line=line),
    }
    return UnpairedResponse(**(fields | changes))


@pytest.fixture(scope="module")
def pairs(make_pair: Maker) -> list[PreferencePair]:
    return [make_pair(line) for line in range(1, 21)]


@pytest.fixture(scope="module")
def curated(pairs: list[PreferencePair]) -> Curated:
    return curate(pairs, PARAMS, seed=3)


@pytest.fixture
def settle(pairs: list[PreferencePair], curated: Curated) -> Callable[..., CuratedUnpaired]:
    def run(*responses: UnpairedResponse, params: CurationParams = PARAMS) -> CuratedUnpaired:
        return curate_unpaired(responses, pairs, curated, params, 3)

    return run


def asked(pair: PreferencePair) -> str:
    return pair.prompt[0].content


def test_a_prompt_of_the_test_split_is_not_trained_on(curated: Curated, settle: Callable[..., Any]) -> None:
    """Letter for letter, in other spacing and case; training prompts are free."""
    (train, *_), (validation, *_), (test, *_) = curated.train, curated.validation, curated.test
    found = settle(
        thumb(1, asked(train)),
        thumb(2, asked(validation)),
        thumb(3, f"  {asked(test).upper()} "),
        thumb(4),
    )
    assert [each.id for each in found.accepted] == ["u1", "u4"]
    assert [(row.record_id, row.reason, row.field) for row in found.quarantined] == [
        ("u2", "held_out_prompt", "prompt"),
        ("u3", "held_out_prompt", "prompt"),
    ]
    assert found.quarantined[1].found == f"the cluster of {test.id}"
    assert (found.quarantined[1].file, found.quarantined[1].line) == ("thumbs.jsonl", 3)


def test_near_duplicates_and_turns_of_a_held_out_conversation_are_not_trained_on(make_pair: Maker) -> None:
    long = "please explain how the tide comes and goes twice a day along this part of the western coast"
    said = (Message(role="user", content="where do swans sleep"), Message(role="assistant", content="on calm water"))
    talk = (*said, Message(role="user", content="and in winter when it freezes"))
    held = [make_pair(1, long), make_pair(2).model_copy(update={"prompt": talk})]
    curated = Curated(
        train=[], validation=[], test=curate(held, SPLIT_ALL_TEST, 3).test, merged=[], quarantined=[], report={}
    )
    found = curate_unpaired(
        [thumb(1, f"{long} today"), thumb(2, (*said, Message(role="user", content="why not in trees"))), thumb(3)],
        held,
        curated,
        PARAMS,
        3,
    )
    assert [each.id for each in found.accepted] == ["u3"]
    assert {row.reason for row in found.quarantined} == {"held_out_prompt"}


SPLIT_ALL_TEST = CurationParams(split=SplitParams(train=0, validation=0, test=1))


def test_prompts_of_pairs_that_were_merged_into_a_test_pair_count_too(make_pair: Maker) -> None:
    """The second pair is a near duplicate of the first by its prompt and responses; its own words are held out, too."""
    words = "please explain how the tide comes and goes twice a day along this part of the western coast"
    first = make_pair(1, words, "the moon pulls the water", "no idea")
    second = make_pair(2, f"{words} today", "the moon pulls the water", "no idea")
    curated = curate([first, second], SPLIT_ALL_TEST, 3)
    assert [row.record_id for row in curated.merged] == ["p2"]
    exact = PARAMS.model_copy(update={"matching": PARAMS.matching.model_copy(update={"near": False})})
    found = curate_unpaired([thumb(1, f"{words} today")], [first, second], curated, exact, 3)
    assert [row.reason for row in found.quarantined] == ["held_out_prompt"]


def test_equal_judgements_are_merged_into_the_first(settle: Callable[..., Any]) -> None:
    same = {"prompt": "what now", "response": "this"}
    found = settle(
        thumb(1, **same), thumb(2, prompt="What  now", response="This", timestamp="2025-01-01"), thumb(3, **same)
    )
    assert [(each.id, each.timestamp) for each in found.accepted] == [("u1", "2025-01-01")]
    assert [(row.record_id, row.into, row.reason) for row in found.merged] == [
        ("u2", "u1", "exact_duplicate"),
        ("u3", "u1", "exact_duplicate"),
    ]


@pytest.mark.parametrize(("resolve", "kept"), [("majority", "u1"), ("drop", None), ("keep_latest", "u3")])
def test_people_who_disagree(resolve: str, kept: str | None, settle: Callable[..., Any]) -> None:
    """Up by ann (twice) and by ben, down by cy and later: two votes to one, since nobody counts twice."""
    same = {"prompt": "what now", "response": "this"}
    rows = [
        thumb(1, **same, annotator="ann"),
        thumb(2, **same, annotator="ben"),
        thumb(3, **same, annotator="cy", desirable=False, timestamp="2025-01-01"),
        thumb(4, **same, annotator="ann"),
    ]
    params = PARAMS.model_copy(update={"contradictions": ContradictionParams(resolve=resolve)})
    found = settle(*rows, params=params)
    assert [each.id for each in found.accepted] == ([kept] if kept else [])
    assert {row.reason for row in found.quarantined} == {"contradiction"}
    assert len(found.quarantined) == (1 if kept else 2)
    assert len(found.merged) == 2


def test_the_same_prompt_means_every_turn_and_near_prompts_are_surfaced(settle: Callable[..., Any]) -> None:
    """A thumb up and one down on "Yes.": two requests, which the text of the turns run together does not tell apart."""
    long = "The ferry left the east pier before the storm, and nobody was hurt. Is this about a {}?".format
    turns = [Message(role="user", content="Hello."), Message(role="assistant", content="Hi.")]
    found = settle(
        thumb(1, long("bird"), response="Yes.", desirable=False),
        thumb(2, long("boat"), response="Yes."),
        thumb(3, (Message(role="user", content="Hello. assistant: Hi."),), response="Yes.", desirable=False),
        thumb(4, tuple(turns), response="Yes."),
    )
    assert [each.id for each in found.accepted] == ["u1", "u2", "u3", "u4"]
    assert {"desirable": ["u2"], "undesirable": ["u1"]} in found.report["opposed_near_prompts"]["listed"]


def test_a_tie_between_people_keeps_neither(settle: Callable[..., Any]) -> None:
    same = {"prompt": "what now", "response": "this", "annotator": "ann"}
    found = settle(thumb(1, **same), thumb(2, **same), thumb(3, **(same | {"annotator": "ben"}), desirable=False))
    assert found.accepted == []
    assert sorted(row.record_id for row in found.quarantined) == ["u1", "u3"]


def test_leaks_and_limits(settle: Callable[..., Any]) -> None:
    params = PARAMS.model_copy(update={"limits": LengthLimitParams(max_response=40)})
    found = settle(
        thumb(1, response="[chosen] Here is the answer."),
        thumb(2, response="I would say Response A is better because of its tone"),
        thumb(3, response="x" * 41),
        thumb(4, prompt="y" * 20_000),
        params=params,
    )
    (kept,) = found.accepted
    assert (kept.id, kept.response) == ("u1", "Here is the answer.")
    assert kept.metadata == {"cleaned": ["response: bracket_tag: [chosen]"]}
    assert [(row.record_id, row.reason) for row in found.quarantined] == [
        ("u2", "leaked_label"),
        ("u3", "over_long"),
        ("u4", "prompt_over_long"),
    ]
    untouched = settle(thumb(1, response="[chosen] Hi."), params=params.model_copy(update={"clean_leaks": False}))
    assert untouched.accepted[0].response == "[chosen] Hi."


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 3), st.booleans(), st.integers(0, 3)), max_size=24))
def test_no_row_is_lost_and_the_result_is_stable(
    pairs: list[PreferencePair], curated: Curated, drawn: list[tuple[int, int, bool, int]]
) -> None:
    """Few prompts, responses and people, so that rows meet in every way; curating what was kept changes nothing."""
    rows = [
        thumb(line, f"ask {prompt}?", response=f"say {said}", desirable=up, annotator=f"a{who}" if who else None)
        for line, (prompt, said, up, who) in enumerate(drawn, 1)
    ]
    random.Random(len(rows)).shuffle(rows)
    found = curate_unpaired(rows, pairs, curated, PARAMS, 3)
    kept, folded, refused = (
        [each.id for each in found.accepted],
        [row.record_id for row in found.merged],
        [row.record_id for row in found.quarantined],
    )
    assert sorted([*kept, *folded, *refused]) == sorted(row.id for row in rows)
    assert found.report["read"] == found.report["accepted"] + found.report["merged"] + found.report["quarantined"]
    assert found.report["desirable"] + found.report["undesirable"] == len(kept)
    again = curate_unpaired(found.accepted, pairs, curated, PARAMS, 3)
    assert again.accepted == found.accepted
    assert not again.merged and not again.quarantined
