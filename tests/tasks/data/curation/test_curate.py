from __future__ import annotations

from collections import Counter
from itertools import combinations, pairwise
from string import ascii_lowercase

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plumbline.data_contracts.errors import CheckFailed
from plumbline.data_contracts.records import Message, Origin, PreferencePair
from plumbline.tasks.data.curation.curate import curate
from plumbline.tasks.params.curation import CurationParams, LengthLimitParams, SplitParams

PARAMS = CurationParams(split=SplitParams(by="size", on_empty="warn"), limits=LengthLimitParams(max_response=60))
BY_SIZE = CurationParams(split=SplitParams(by="size"))
PROMPTS = (
    "When does the parcel with the blue kettle arrive at my house in the village by the lake?",
    "When does the parcel with the blue kettle arrive at my house in the village near the lake?",
    "when does the parcel with the blue kettle  arrive at my house in the village by the lake?",
    "Who repairs the old radio of my aunt?",
    "[chosen]",
    "A is preferred because it is kind. Where is it?",
)
RESPONSES = (
    "It arrives on Monday morning, so please wait at the door.",
    "It arrives on Monday morning, so please wait at the gate.",
    "it arrives on monday morning, so please wait at the door!",
    "No.",
    "",
    "Response A is better. It is here.",
    "word " * 20,
)


@st.composite
def _batches(draw):
    rows = draw(
        st.lists(
            st.tuples(st.sampled_from(PROMPTS), st.sampled_from(RESPONSES), st.sampled_from(RESPONSES)).filter(
                lambda row: row[1] != row[2]
            ),
            max_size=14,
        )
    )
    annotators = draw(st.lists(st.sampled_from([None, "ann", "bob"]), min_size=len(rows), max_size=len(rows)))
    return [
        PreferencePair(
            id=f"r{line}",
            prompt=(Message(role="user", content=row[0]),),
            chosen=row[1],
            rejected=row[2],
            source="test",
            annotator=name,
            origin=Origin(file="f", line=line),
        )
        for line, (row, name) in enumerate(zip(rows, annotators, strict=True), start=1)
    ]


def _splits(curated):
    return {"train": curated.train, "validation": curated.validation, "test": curated.test}


def _accepted(curated):
    return [pair for pairs in _splits(curated).values() for pair in pairs]


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(_batches(), st.sampled_from(["majority", "drop", "keep_latest"]), st.integers(0, 3))
def test_nothing_disappears_and_curating_again_changes_nothing(pairs, resolve, seed):
    params = PARAMS.model_copy(update={"contradictions": PARAMS.contradictions.model_copy(update={"resolve": resolve})})
    once = curate(pairs, params, seed)
    accepted = _accepted(once)
    ids = [one.id for one in accepted] + [one.record_id for one in (*once.merged, *once.quarantined)]
    assert sorted(ids) == sorted(pair.id for pair in pairs)
    report = once.report
    assert report["read"] == len(pairs) == report["accepted"] + report["merged"] + report["quarantined"]
    assert sum(report["reasons"].values()) == report["merged"] + report["quarantined"]
    again = curate(accepted, params, seed)
    assert (again.merged, again.quarantined) == ([], [])
    assert {one.id: one.cluster for one in _accepted(again)} == {one.id: one.cluster for one in accepted}
    for split, kept in _splits(again).items():
        assert {one.id for one in kept} == {one.id for one in _splits(once)[split]}


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(_batches(), st.randoms(use_true_random=False))
def test_prompt_clusters_do_not_depend_on_the_order(pairs, random):
    """Without duplicates to fold, every pair keeps its cluster and split however the input is ordered."""
    distinct = _accepted(curate(pairs, PARAMS, 0))
    shuffled = random.sample(distinct, len(distinct))
    first, second = curate(distinct, PARAMS, 0), curate(shuffled, PARAMS, 0)
    for split in _splits(first):
        assert {(p.id, p.cluster) for p in _splits(first)[split]} == {(p.id, p.cluster) for p in _splits(second)[split]}


def _mixed(make_pair):
    """Line: what becomes of it. 1 accepted, 2 its exact duplicate, 3 its near duplicate, 4 and 5 contradict, 6 too
    short, 7 over-long, 8 a leak that is cut, 9 a leak that is all there is, 10-12 accepted.
    """
    return [
        make_pair(1, PROMPTS[0], RESPONSES[0], "No."),
        make_pair(2, PROMPTS[2], RESPONSES[0] + " ", "no."),
        make_pair(3, PROMPTS[1], RESPONSES[2], "No."),
        make_pair(4, "Who won?", "Rosa did.", "Nobody."),
        make_pair(5, "Who won?", "Nobody.", "Rosa did."),
        make_pair(6, chosen=""),
        make_pair(7, rejected="word " * 20),
        make_pair(8, chosen="Response A is better. It is in the shed."),
        make_pair(9, chosen="(chosen)"),
        *(make_pair(line) for line in (10, 11, 12)),
    ]


def test_one_of_each(make_pair):
    curated = curate(_mixed(make_pair), PARAMS, 0)
    assert sorted(pair.id for pair in _accepted(curated)) == ["p1", "p10", "p11", "p12", "p8"]
    assert [(one.record_id, one.into, one.reason) for one in curated.merged] == [
        ("p2", "p1", "exact_duplicate"),
        ("p3", "p1", "near_duplicate"),
    ]
    assert {one.record_id: one.reason for one in curated.quarantined} == {
        "p4": "contradiction", "p5": "contradiction", "p6": "too_short", "p7": "over_long", "p9": "leaked_label",
    }  # fmt: skip
    (cleaned,) = (pair for pair in _accepted(curated) if pair.cleaned)
    assert (cleaned.id, cleaned.chosen) == ("p8", "It is in the shed.")
    report = curated.report
    assert (report["read"], report["accepted"], report["merged"], report["quarantined"]) == (12, 5, 2, 5)
    assert report["cleaned"] == {"pairs": 1, "cuts": {"response_verdict": 1}}
    assert report["contradictions"]["listed"] == [{"ids": [["p4"], ["p5"]], "votes": [1, 1], "kept": None}]
    assert report["clusters"] == {"count": 5, "largest": 1, "pairs_per_cluster": {"1": 5}}
    # p1: 57 against 3 characters, longer chosen; p8: 18 against 17 chosen; p10-12: 14 against 22, shorter chosen.
    assert report["length_bias"] == {"longer_chosen": 0.4, "unequal_pairs": 5, "equal_pairs": 0}


def test_the_same_inputs_give_the_same_bytes(make_pair):
    def dump(curated):
        rows = (*_accepted(curated), *curated.merged, *curated.quarantined)
        return orjson.dumps([curated.report, [row.model_dump(mode="json") for row in rows]])

    assert dump(curate(_mixed(make_pair), PARAMS, 4)) == dump(curate(_mixed(make_pair), PARAMS, 4))


def test_no_near_duplicate_prompt_crosses_the_split(make_pair):
    """60 prompts of 26 words in 20 families of three, each with one of the first three words replaced. Brute force over
    bigrams: two of a family share at least 22 of 28, two of different families none.
    """
    pairs = []
    for line in range(60):
        stem = [f"w{'abcdefghijklmnopqrst'[line // 3]}{letter}" for letter in ascii_lowercase]
        stem[line % 3] = f"edit{'xyz'[line % 3]}"
        pairs.append(make_pair(line + 1, " ".join(stem)))
    curated = curate(pairs, PARAMS, 0)
    place = {pair.id: split for split, kept in _splits(curated).items() for pair in kept}
    grams = {pair.id: _bigrams(pair.prompt[0].content) for pair in pairs}
    close = [
        (left, right)
        for left, right in combinations(grams, 2)
        if len(grams[left] & grams[right]) / len(grams[left] | grams[right]) >= 0.6
    ]
    assert len(close) == 60
    assert all(place[left] == place[right] for left, right in close)
    assert Counter(place.values()) == {"train": 48, "validation": 3, "test": 9}


def test_no_pairs_and_too_few_clusters(make_pair):
    assert curate([], PARAMS, 0).report["read"] == 0
    with pytest.raises(CheckFailed, match="would be empty"):
        curate([make_pair(1)], CurationParams(), 0)
    assert curate([make_pair(1)], PARAMS, 0).report["warnings"]


def test_progress_reaches_its_end(make_pair):
    calls = []
    curate([make_pair(1)], PARAMS, 0, lambda done, total, note: calls.append((done, total, note)))
    assert calls[0] == (0, 6, "leaked labels")
    assert calls[-1] == (6, 6, "curated")


@pytest.mark.slow
def test_hh_harmless(read_shared):
    """1,586 rows, two of them with an empty response."""
    report = curate(read_shared("hh_harmless_test"), BY_SIZE, 0).report
    assert report["reasons"] == {"too_short": 2}
    assert report["clusters"]["largest"] <= 4
    assert report["splits"]["test"]["pairs"] == 238
    by_hash = curate(read_shared("hh_harmless_test"), CurationParams(), 0).report
    assert abs(by_hash["splits"]["test"]["pairs"] - 238) < 4 * (1584 * 0.15 * 0.85) ** 0.5


@pytest.mark.slow
def test_ukp_convarg(read_shared):
    """8,278 rows: 126 repeat another, four pairs of rows oppose one another (counted by brute force on raw text);
    the longer response is chosen in 78 % of what is left.
    """
    pairs = read_shared("ukp_convarg_pairs")
    raw = Counter((pair.prompt, pair.chosen, pair.rejected) for pair in pairs)
    opposed = sum((prompt, rejected, chosen) in raw for prompt, chosen, rejected in raw)
    curated = curate(pairs, BY_SIZE, 0)
    report = curated.report
    assert report["reasons"] == {"exact_duplicate": len(pairs) - len(raw), "contradiction": opposed}
    assert (len(pairs) - len(raw), opposed, report["contradictions"]["count"]) == (126, 8, 4)
    assert abs(report["length_bias"]["longer_chosen"] - 0.78) < 0.01
    assert report["clusters"]["count"] == 21
    for split, share in BY_SIZE.split.fractions().items():
        assert abs(report["splits"][split]["share"] - share) < 0.03


def _bigrams(text: str) -> set[tuple[str, str]]:
    return set(pairwise(text.split()))
