"""What proves that a pair is the copy of another, and what does not."""

from __future__ import annotations

from random import Random

import pytest

from benchmarks.curation_sets import SOUND, plant, sound
from plumbline.data_contracts.records import Message
from plumbline.tasks.data.curation.curate import curate
from plumbline.tasks.params.curation import CurationParams, LengthLimitParams, SplitParams

PARAMS = CurationParams(
    split=SplitParams(on_empty="warn"), limits=LengthLimitParams(max_response=100_000, max_prompt=100_000)
)
PASSAGE = (
    "The allotment society met on Sunday and agreed to mend the gate before winter, to share the cost of a water butt "
    "and to ask the town for more plots beside the railway, since people wait for years. Nobody was against it."
)
LONG = "They met in the hall, talked about repairs and money, and in the end everyone went home quite content."
OTHER = "A meeting, in which persons of the aforesaid society deliberated upon several matters, has been held."


def _report(pairs):
    return curate(pairs, PARAMS, 0).report


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(SOUND))
def test_sound_sets_stay(kind):
    """At least 99 % of pairs that differ in one thing that matters, whatever it is; none is a contradiction."""
    pairs = sound(kind, seed=5)
    report = _report(pairs)
    assert report["accepted"] >= 0.99 * len(pairs), report["near_duplicates"]["merged"]
    assert "contradiction" not in report["reasons"]


def test_copies_of_free_text_are_found():
    """Prompts and responses of their own, a copy of each: all merged, and nothing else."""
    pairs = sound("annotators", seed=3, passages=40)
    prompts = {pair.prompt: pair for pair in pairs}
    alone = [pair for pair in prompts.values() if len(pair.prompt[0].content.split()) > 30]
    copies = plant(alone, seed=2, share=1.0)
    merged = curate([*alone, *(copy for _, copy in copies)], PARAMS, 0).merged
    assert all(row.into == row.record_id.partition(" copy ")[0] for row in merged)
    assert len(merged) >= 0.95 * len(copies) > 10


def test_a_long_response_proves_a_copy_and_a_short_one_does_not(make_pair):
    near = PASSAGE.replace("railway", "orchard")
    long = [make_pair(1, PASSAGE, LONG, OTHER), make_pair(2, near, LONG, OTHER)]
    assert _report(long)["reasons"] == {"near_duplicate": 1}
    (row,) = _report(long)["near_duplicates"]["merged"]["listed"]
    assert (row["id"], row["into"]) == ("p2", "p1")
    assert "railway" in row["why"]
    assert "bits" in row["why"]
    assert _report([make_pair(1, PASSAGE, "Yes.", "No."), make_pair(2, near, "Yes.", "No.")])["reasons"] == {}


def test_a_copy_with_courtesy_needs_no_proof(make_pair):
    """ "Yes." proves nothing, and nothing has to be proved: it is the same request."""
    asked = f"{PASSAGE} Is this about a boat?"
    for copy in (f"{asked} Thanks!", f"Hello, {asked}", asked.upper(), asked.replace("?", " !")):
        assert set(_report([make_pair(1, asked, "No.", "Yes."), make_pair(2, copy, "No.", "Yes.")])["reasons"]) <= {
            "near_duplicate",
            "exact_duplicate",
        }
        assert _report([make_pair(1, asked, "No.", "Yes."), make_pair(2, copy, "No.", "Yes.")])["merged"] == 1


def test_words_that_turn_the_preference_elsewhere_are_no_slip(make_pair):
    """Child and lawyer prefer the opposite, so child and pupil are two requests, though both responses are long."""
    ask = f"{PASSAGE} Please rewrite all this so that it is easy and pleasant to read for a {{}} in a hurry.".format
    near = [make_pair(1, ask("child"), LONG, OTHER), make_pair(2, ask("pupil"), LONG, OTHER)]
    assert _report(near)["reasons"] == {"near_duplicate": 1}
    report = _report([*near, make_pair(3, ask("lawyer"), OTHER, LONG)])
    assert report["reasons"] == {}
    assert report["opposed_near_prompts"] == {"count": 1, "listed": [{"ids": [["p1", "p2"], ["p3"]]}]}
    assert "turn the preference" in report["near_duplicates"]["kept"]["listed"][0]["why"]


def test_one_place_with_several_texts_is_no_slip(make_pair):
    ask = f"{PASSAGE} Please rewrite all this so that it is easy and pleasant to read for a {{}} in a hurry.".format
    pairs = [make_pair(n, ask(who), LONG, OTHER) for n, who in enumerate(("child", "pupil", "sailor"), start=1)]
    assert _report(pairs)["reasons"] == {}


def test_a_word_that_differs_in_prompt_and_responses_is_no_slip(make_pair):
    ask = (
        "Please tell me all that a family of four should know before they move to {} in the spring of next year".format
    )
    good = "Whoever moves to {} rents first, meets the neighbours, learns the language and looks for a house".format
    bad = "I would never move there, the food is dull and the winters are long, so do yourself a favour and stay".format
    pairs = [make_pair(n, ask(where), good(where), bad()) for n, where in enumerate(("norway", "sweden"), start=1)]
    assert _report(pairs)["reasons"] == {}


def test_words_that_stand_for_one_another_again_are_no_slip(make_pair):
    """Son and daughter, and the name of a drug: two by two near requests, each seen once."""
    ask = "My {} weighs little and is hot since this morning. Which dose of {} may I give without a doctor?".format
    good = "Call a pharmacist before you give anything, and keep the child cool and drinking all day long."
    pairs = [
        make_pair(n, ask(*words), good, OTHER)
        for n, words in enumerate(
            [(who, drug) for who in ("son", "daughter") for drug in ("ibuprofen", "paracetamol")], start=1
        )
    ]
    assert _report(pairs)["reasons"] == {}


def test_stock_responses_prove_nothing(make_pair):
    """The same two long responses to 30 prompts of their own, and to two near ones."""
    near = [make_pair(1, PASSAGE, LONG, OTHER), make_pair(2, PASSAGE.replace("railway", "orchard"), LONG, OTHER)]
    assert _report(near)["reasons"] == {"near_duplicate": 1}
    others = [make_pair(n, None, LONG, OTHER) for n in range(3, 33)]
    assert _report([*near, *others])["reasons"] == {}


@pytest.mark.parametrize("system", ["You write for lawyers.", "Answer in French."])
def test_another_system_prompt_is_another_request(make_pair, system):
    turns = [Message(role="system", content="You write for children."), Message(role="user", content=PASSAGE)]
    one = make_pair(1, None, LONG, OTHER).model_copy(update={"prompt": tuple(turns)})
    turns[0] = Message(role="system", content=system)
    assert _report([one, make_pair(2, None, LONG, OTHER).model_copy(update={"prompt": tuple(turns)})])["reasons"] == {}


def test_an_edit_in_a_response_of_one_prompt_has_to_be_proved_by_that_response(make_pair):
    """The first response is long and equal, and says nothing about the second: people compare what they know."""
    short = [
        make_pair(1, PASSAGE, LONG, "It was on a hot day in spring"),
        make_pair(2, PASSAGE, LONG, "It was on a hot day in June"),
    ]
    assert _report(short)["reasons"] == {}
    long = [make_pair(1, PASSAGE, LONG, f"{OTHER} {PASSAGE}"), make_pair(2, PASSAGE, LONG, f"{OTHER} {PASSAGE} Amen")]
    assert _report(long)["reasons"] == {"near_duplicate": 1}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_the_pairs_does_not_matter(seed):
    """How many go, and what is kept of each group, but not which of two copies is the first."""
    pairs = [row for kind in ("audience", "numbers", "last turn") for row in sound(kind, seed, 4)]
    pairs += [copy for _, copy in plant(pairs, seed, share=0.2)]
    shuffled = Random(seed).sample(pairs, len(pairs))
    first, second = curate(pairs, PARAMS, 0), curate(shuffled, PARAMS, 0)
    assert {frozenset((row.record_id, row.into)) for row in first.merged} == {
        frozenset((row.record_id, row.into)) for row in second.merged
    }
