from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plumbline.data_contracts.errors import CheckFailed
from plumbline.data_contracts.records import Message
from plumbline.tasks.data.curation.split import assign_clusters, cluster_name, conversations
from plumbline.tasks.params.curation import MatchingParams, SplitParams

SIZES = st.dictionaries(st.text("abcdef", min_size=1, max_size=4), st.integers(1, 40), min_size=3, max_size=40)


BY_SIZE = SplitParams(by="size")


def _assign(sizes, params=BY_SIZE, seed=0):
    return assign_clusters(sizes, params, seed, {name: {name} for name in sizes})


def _totals(sizes, assigned):
    return {split: sum(sizes[name] for name in assigned if assigned[name] == split) for split in assigned.values()}


def test_by_hand():
    """Shares of 10 pairs: train 6, test 4. Sizes 4, 3, 2, 1 in bins 4-7, 2-3, 1. 4 goes to train (lacks 2), then 3
    (or 2) to test, 2 (or 3) to train or test, and the last single where one is missing.
    """
    sizes = {"w": 4, "x": 3, "y": 2, "z": 1}
    assigned, warnings = _assign(sizes, SplitParams(by="size", train=0.6, validation=0.0, test=0.4))
    assert assigned["w"] == "train"
    assert _totals(sizes, assigned) == {"train": 6, "test": 4}
    assert warnings == []


@given(SIZES, st.integers(0, 99))
def test_every_cluster_has_one_split_and_none_is_empty(sizes, seed):
    assigned, _ = _assign(sizes, seed=seed)
    assert set(assigned) == set(sizes)
    assert set(assigned.values()) == {"train", "validation", "test"}
    shuffled = dict(sorted(sizes.items(), reverse=True))
    assert _assign(shuffled, seed=seed)[0] == assigned


@given(SIZES, st.integers(0, 99))
def test_shares_are_met_within_the_largest_cluster(sizes, seed):
    """A split overshoots by less than the cluster it took last, and moving one to an empty split adds one more."""
    assigned, _ = _assign(sizes, seed=seed)
    totals, total = _totals(sizes, assigned), sum(sizes.values())
    for split, share in SplitParams().fractions().items():
        assert totals[split] - share * total <= max(sizes.values()) + 1e-9


def test_singletons_follow_the_seed():
    sizes = {f"c{number}": 1 for number in range(200)}
    first, second = (_assign(sizes, seed=seed)[0] for seed in (1, 2))
    assert first != second
    assert _totals(sizes, first) == {"train": 160, "validation": 10, "test": 30}


def _by_hash(members, **params):
    return assign_clusters({name: 1 for name in members}, SplitParams(on_empty="warn", **params), 0, members)[0]


def test_by_hash_shares_are_met_within_chance():
    """Of 4,000 clusters 600 are expected in test, with a deviation of sqrt(4000 * 0.15 * 0.85) = 23; 200 +- 14 in
    validation. Larger clusters are held out no more often."""
    for size in (1, 20):
        members = {f"c{number}": {f"{number} {member}" for member in range(size)} for number in range(4000)}
        assigned = list(_by_hash(members).values())
        assert abs(assigned.count("test") - 600) < 4 * 23
        assert abs(assigned.count("validation") - 200) < 4 * 14


def test_by_hash_what_is_held_out_stays_held_out():
    """New clusters move no old one. A text that joins a cluster of 3 moves its place in at most 1 of 4 cases, and then
    to another split in 1 - (0.8^2 + 0.05^2 + 0.15^2) = 0.335 of them: 8 %. A larger test split keeps what it held."""
    members = {f"c{number}": {f"{number} {member}" for member in range(3)} for number in range(1000)}
    before = _by_hash(members)
    after = _by_hash(members | {f"n{number}": {f"new {number}"} for number in range(500)})
    assert {name: after[name] for name in before} == before
    joined = _by_hash({name: texts | {f"{name} joined"} for name, texts in members.items()})
    assert 0 < sum(joined[name] != before[name] for name in before) < 120
    wider = _by_hash(members, train=0.7, validation=0.05, test=0.25)
    assert {name for name in before if before[name] == "test"} < {name for name in wider if wider[name] == "test"}
    assert _by_hash(members, seed=1) != before


def test_by_hash_the_seed_of_the_run_moves_nothing():
    members = {f"c{number}": {f"{number}"} for number in range(100)}
    sizes = dict.fromkeys(members, 1)
    first, second = (assign_clusters(sizes, SplitParams(), seed, members) for seed in (1, 2))
    assert first == second


def test_by_hash_shares_far_from_those_of_params_are_said():
    """Two prompts: one holds 900 pairs. Wherever it goes, its share is 90 %, and no share of params is near that."""
    sizes, members = {"a": 900, "b": 50, "c": 50}, {name: {name} for name in "abc"}
    _, (warning,) = assign_clusters(sizes, SplitParams(train=0.5, validation=0.25, test=0.25), 0, members)
    assert "% of the pairs instead of" in warning
    assert "Set split.by to size" in warning
    even = {f"c{number}": 1 for number in range(2000)}
    assert assign_clusters(even, SplitParams(), 0, {name: {name} for name in even})[1] == []


def test_by_hash_no_split_is_empty():
    assert set(_by_hash({"a": {"a"}, "b": {"b"}, "c": {"c"}}).values()) == {"train", "validation", "test"}


def test_too_few_clusters_stop_or_warn():
    with pytest.raises(CheckFailed, match=r"found 2 cluster\(s\).*would be empty.*set split.on_empty to warn"):
        _assign({"a": 5, "b": 5})
    assigned, warnings = _assign({"a": 5, "b": 5}, SplitParams(by="size", on_empty="warn"))
    assert len(assigned) == 2
    assert "would be empty" in warnings[0]


def test_cluster_name_depends_on_its_texts_alone():
    assert cluster_name(["b", "a"]) == cluster_name(["a", "b"]) != cluster_name(["b"])


def _turns(*texts):
    return tuple(Message(role=("user", "assistant")[place % 2], content=text) for place, text in enumerate(texts))


def test_turns_of_one_conversation_stay_together():
    """0 begins 1 (in another case); 2 parts from 1 behind its first answer; 3 is 2's near duplicate (one group).

    4 and 5 share a question with each other, and neither an answer nor a prompt that is the question alone; 6 is
    apart from all of them.
    """
    prompts = [
        _turns("Hi, a pen?"),
        _turns("hi, a pen?", "Which?", "Red", "Why?", "So"),
        _turns("Hi, a pen?", "Which?", "Blue"),
        _turns("Hi, some pen?", "Which?", "Blue"),
        _turns("Help", "With what?", "Cats"),
        _turns("Help", "Sure.", "Dogs"),
        _turns("Else"),
    ]
    found = conversations(prompts, [0, 1, 2, 2, 3, 4, 5], MatchingParams()).tolist()
    assert found == [0, 0, 0, 0, 1, 2, 3]
    assert conversations([], [], MatchingParams()).tolist() == []


def test_a_later_turn_joins_whatever_the_order():
    late, early = _turns("a", "b", "c", "d", "e"), _turns("a", "b", "c")
    assert conversations([late, early], [0, 1], MatchingParams()).tolist() == [0, 0]
    alone = [_turns("a", "b", "c"), _turns("a")]
    assert conversations(alone, [0, 1], MatchingParams()).tolist() == [0, 0]
