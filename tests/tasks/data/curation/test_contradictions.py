from __future__ import annotations

import pytest

from plumbline.data_contracts.records import Message, Origin
from plumbline.tasks.data.curation.contradictions import opposed_near_prompts, resolve_contradictions
from plumbline.tasks.data.curation.near_merge import merge_near
from plumbline.tasks.data.curation.pair_texts import build_pools, contents
from plumbline.tasks.data.curation.verdicts import Item, parse_time
from plumbline.tasks.params.curation import ContradictionParams, MatchingParams

PROMPT = "When does the parcel with the blue kettle arrive at my house in the village by the lake?"
EDITED = "When does the parcel with the blue kettle arrive at my house in the village near the lake?"
GOOD = "It arrives on Monday morning, when the driver reaches the village by the lake."
BAD = "Nobody knows anything about parcels in that village, so please stop asking about them."


def _resolve(pairs, resolve="majority", votes=None):
    items = [Item.of(pair, place) for place, pair in enumerate(pairs)]
    for item, count in zip(items, votes or [], strict=False):
        item.voters = {f"annotator {number}" for number in range(count)}
    found = contents(items, MatchingParams())
    outcome, rows = resolve_contradictions(items, found, ContradictionParams(resolve=resolve))
    kept = [item.pair.id for item in outcome.kept]
    assert sorted(kept + [one.record_id for one in outcome.quarantined]) == sorted(pair.id for pair in pairs)
    assert {one.reason for one in outcome.quarantined} <= {"contradiction"}
    return kept, rows


def _opposed(make_pair, second_prompt=PROMPT, **more):
    return [make_pair(1, PROMPT, GOOD, BAD), make_pair(2, second_prompt, BAD, GOOD, **more), make_pair(3)]


def test_a_tie_sets_both_aside(make_pair):
    kept, rows = _resolve(_opposed(make_pair))
    assert kept == ["p3"]
    assert rows == [{"ids": [["p1"], ["p2"]], "votes": [1, 1], "kept": None}]


def test_an_opposite_preference_for_a_near_prompt_is_surfaced_and_kept(make_pair):
    """One word of 18 differs: it may be what turned the preference."""
    pairs = _opposed(make_pair, EDITED)
    assert _resolve(pairs) == (["p1", "p2", "p3"], [])
    items = [Item.of(pair, place) for place, pair in enumerate(pairs)]
    found = contents(items, MatchingParams())
    near = opposed_near_prompts(items, found, build_pools(found, MatchingParams(), 0))
    assert near == [{"ids": [["p1"], ["p2"]]}]


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (["system: Answer for a child.", f"user: {PROMPT}"], ["system: Answer for a judge.", f"user: {PROMPT}"]),
        (["system: Answer for a child.", f"user: {PROMPT}"], [f"user: {PROMPT}"]),
        (["user: Hello.", "assistant: Hi.", f"user: {PROMPT}"], ["user: Hello.", "assistant: Oh.", f"user: {PROMPT}"]),
        ([f"user: {PROMPT} user: and when?"], [f"user: {PROMPT}", "user: and when?"]),
        (["user: Hello. assistant: Hi.", f"user: {PROMPT}"], ["user: Hello.", f"assistant: Hi. user: {PROMPT}"]),
    ],
)
def test_the_same_prompt_means_every_turn_and_the_system_prompt(make_pair, left, right):
    def ask(pair, turns):
        prompt = tuple(Message(role=role, content=said) for role, _, said in (turn.partition(": ") for turn in turns))
        return pair.model_copy(update={"prompt": prompt})

    one = ask(make_pair(1, None, GOOD, BAD), left)
    assert _resolve([one, ask(make_pair(2, None, BAD, GOOD), right)]) == (["p1", "p2"], [])
    assert _resolve([one, ask(make_pair(2, None, BAD, GOOD), left)])[0] == []


def test_responses_that_differ_in_case_alone_are_told_apart(make_pair):
    """ "HELLO" over "hello" and the reverse contradict one another; canonical form would make them one pair."""
    assert _resolve([make_pair(1, PROMPT, "HELLO", "hello"), make_pair(2, PROMPT, "hello", "HELLO")])[0] == []
    assert _resolve([make_pair(1, PROMPT, "HELLO", "hello"), make_pair(2, PROMPT, "Hello", "hello")])[1] == []


def test_another_response_contradicts_nothing(make_pair):
    """An edit of a response may be what makes it better; the punctuation after a word does not count."""
    better = GOOD.replace("Monday", "Tuesday")
    assert _resolve([make_pair(1, PROMPT, GOOD, BAD), make_pair(2, PROMPT, BAD, better)])[1] == []
    assert _resolve([make_pair(1, PROMPT, GOOD, BAD), make_pair(2, PROMPT, BAD + "!", GOOD[:-1])])[0] == []


def test_the_majority_stays(make_pair):
    """Two votes against one, merged duplicates included."""
    kept, rows = _resolve(_opposed(make_pair), votes=[1, 2, 1])
    assert kept == ["p2", "p3"]
    assert rows[0]["votes"] == [1, 2]
    assert rows[0]["kept"] == 1


def test_one_annotator_has_one_vote(make_pair):
    """ann says A twice, bob and cy say B once each: 1 against 2."""
    pairs = [make_pair(line, PROMPT, GOOD, BAD, annotator="ann") for line in (1, 2)]
    pairs += [make_pair(line, PROMPT, BAD, GOOD, annotator=name) for line, name in ((3, "bob"), (4, "cy"))]
    assert _resolve(pairs)[0] == ["p3", "p4"]


def _sent(pair, *senders, file="batch.jsonl"):
    return pair.model_copy(update={"origin": Origin(file=file, line=pair.origin.line, senders=senders)})


@pytest.mark.parametrize(
    ("many", "few", "votes"),
    [
        ((dict(senders=("bot",)),) * 5, (dict(senders=("app",)), dict(file="b.jsonl")), [1, 2]),
        ((dict(file="a.jsonl"),) * 5, (dict(file="b.jsonl"),), [1, 1]),
        ((dict(senders=("bot",), file="a"), dict(senders=("bot",), file="b")), (dict(file="c"),), [1, 1]),
    ],
    ids=["one token against an app and a file", "one file against another", "one token in two batches"],
)
def test_rows_without_a_name_are_one_vote_of_their_sender_or_file(make_pair, many, few, votes):
    """However many rows somebody sends: a token, or a file without one, says a thing once."""
    sides = [(PROMPT, GOOD, BAD, given) for given in many] + [(PROMPT, BAD, GOOD, given) for given in few]
    pairs = [
        _sent(make_pair(line, *texts), *given.get("senders", ()), file=given.get("file", "batch.jsonl"))
        for line, (*texts, given) in enumerate(sides, 1)
    ]
    _, (row,) = _resolve(pairs)
    assert row["votes"] == votes


def test_drop_keeps_neither(make_pair):
    assert _resolve(_opposed(make_pair), "drop", votes=[1, 9, 1])[0] == ["p3"]


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        ("2025-03-01T00:00:00", "2025-02-01T00:00:00", "p1"),
        ("2025-03-01T00:30:00+01:00", "2025-03-01T00:00:00", "p2"),
        ("2025-03-01", None, "p1"),
        (None, None, "p2"),
    ],
)
def test_keep_latest(make_pair, first, second, kept):
    """00:30 at +01:00 is 23:30 UTC of the day before."""
    pairs = [make_pair(1, PROMPT, GOOD, BAD, timestamp=first), make_pair(2, PROMPT, BAD, GOOD, timestamp=second)]
    assert _resolve(pairs, "keep_latest")[0] == [kept]


def test_no_contradiction_where_the_two_responses_resemble_one_another(make_pair):
    """A response and its copy without a full stop: which is which cannot be told across an edit of the edit."""
    pairs = [make_pair(1, PROMPT, GOOD, GOOD + "!"), make_pair(2, PROMPT, GOOD + "?", GOOD)]
    assert _resolve(pairs) == (["p1", "p2"], [])
    assert _resolve([make_pair(1, PROMPT, GOOD, GOOD + "!"), make_pair(2, PROMPT, GOOD + "!", GOOD)])[0] == []


def test_other_prompt_other_question(make_pair):
    kept, rows = _resolve(_opposed(make_pair, "Which of these two replies would you rather send to a friend of yours?"))
    assert (kept, rows) == (["p1", "p2", "p3"], [])


def test_near_duplicates_fold_into_the_first(make_pair):
    pairs = [make_pair(1, PROMPT, GOOD, BAD), make_pair(2, EDITED, GOOD, BAD + "!"), make_pair(3, PROMPT, GOOD, "No.")]
    items = [Item.of(pair, place) for place, pair in enumerate(pairs)]
    found = contents(items, MatchingParams())
    outcome, _ = merge_near(items, found, build_pools(found, MatchingParams(), 0))
    assert [item.pair.id for item in outcome.kept] == ["p1", "p3"]
    assert [(one.record_id, one.into, one.reason) for one in outcome.merged] == [("p2", "p1", "near_duplicate")]


def test_unreadable_times_count_as_oldest():
    assert parse_time("yesterday") == parse_time(None) < parse_time("1970-01-01")
