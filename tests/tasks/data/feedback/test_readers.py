"""Readers of the table beyond their examples: what tools and public sets vary, and what is refused by name."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

import orjson
import pytest

from plumbline.data_contracts.records import Message, PreferencePair, Quarantined
from plumbline.tasks.data.feedback import SOURCES
from plumbline.tasks.data.feedback.human_pairs import read
from plumbline.tasks.data.feedback.rows import ReadRow
from plumbline.tasks.data.feedback.validate import sort_rows
from plumbline.tasks.params.feedback import FeedbackParams


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


AB = {"prompt": "p", "response_a": "one", "response_b": "two"}


def rows_of(tmp_path: Path, *rows: dict[str, Any]) -> list[ReadRow]:
    (tmp_path / "f").write_bytes(b"\n".join(map(orjson.dumps, rows)))
    return list(read(tmp_path / "f", "f"))


def pair_of(row: dict[str, Any]) -> PreferencePair:
    (found,) = read([orjson.dumps(row)], "f")
    assert isinstance(found.outcome, PreferencePair), found.outcome
    return found.outcome


def refused(row: dict[str, Any]) -> Quarantined:
    (found,) = read([orjson.dumps(row)], "f")
    assert isinstance(found.outcome, Quarantined), found.outcome
    return found.outcome


@pytest.mark.parametrize(
    ("label", "chosen"),
    [
        *((label, "one") for label in ("a", "A", " a ", "model_a", "Model A", "response_a", "assistant-a", "left")),
        *(
            (label, "two")
            for label in ("b", "B", "model_b", "Response B", "output_b", "right", "second", "the answer b")
        ),
    ],
)
def test_words_of_a_label(label: str, chosen: str) -> None:
    assert pair_of({**AB, "label": label}).chosen == chosen


@pytest.mark.parametrize("label", ["tie", "Tie", "tie (bothbad)", "both_bad", "neither", "equal", "both"])
def test_words_of_a_tie(label: str) -> None:
    assert refused({**AB, "label": label}).reason == "tie"


@pytest.mark.parametrize(
    "values", [(1, 2), ("1", "2"), (1.0, 2.0), ("response_1", "response_2"), ("model 1", "Model 2")]
)
def test_one_and_two_are_the_first_and_the_second_if_a_file_has_both(tmp_path: Path, values: tuple[Any, Any]) -> None:
    found = rows_of(tmp_path, *({**AB, "label": value} for value in values))
    assert [row.outcome.chosen for row in found if isinstance(row.outcome, PreferencePair)] == ["one", "two"]
    assert [row.label for row in found] == ["a", "b"]


@pytest.mark.parametrize("values", [(0, 1), (1, 1), (1, 2, 0), (True, False), ("true", "no"), (-1, 1), ("0", "1")])
def test_numbers_that_can_mean_either_side_are_refused_with_the_cure(tmp_path: Path, values: tuple[Any, ...]) -> None:
    for row in rows_of(tmp_path, *({**AB, "label": value} for value in values)):
        assert isinstance(row.outcome, Quarantined)
        assert row.outcome.reason in ("wrong_type", "bad_label")
        assert "--map label.a=0 --map label.b=1" in row.outcome.expected


def test_counted_responses_say_what_a_number_means() -> None:
    """Beside answer_0 and answer_1 the label 1 is the second; beside answer_1 and answer_2 it is the first."""
    zero = {"question": "p", "answer_0": "one", "answer_1": "two"}
    one = {"question": "p", "answer_1": "one", "answer_2": "two"}
    assert [pair_of({**zero, "winner": label}).chosen for label in (0, 1, "answer_1")] == ["one", "two", "two"]
    assert [pair_of({**one, "winner": label}).chosen for label in (1, "2", "Answer 2", "answer_2")] == [
        "one",
        *["two"] * 3,
    ]
    assert refused({**one, "winner": 0}).reason in ("wrong_type", "bad_label")


@pytest.mark.parametrize(
    ("row", "margin"),
    [
        ({"prompt": "p", "chosen": "x", "rejected": "y", "score_chosen": 8.5, "score_rejected": 3}, 5.5),
        ({"prompt": "p", "chosen": "x", "rejected": "y", "chosen_score": "8.5", "rejected_score": "3"}, 5.5),
        ({"prompt": "p", "chosen": "x", "rejected": "y", "score_chosen": 8, "score_rejected": 3, "margin": 1}, 1),
        ({"context": [user("p")], "response1": "y", "response2": "x", "overall_preference": 2}, 2),
        ({"context": [user("p")], "response1": "x", "response2": "y", "overall_preference": -3}, 3),
        (
            {"history": "p", "human_ref_A": "y", "human_ref_B": "x", "labels": 0, "score_A": 2, "score_B": 12},
            10,
        ),
    ],
)
def test_scores_and_strengths_give_a_margin(row: dict[str, Any], margin: float) -> None:
    pair = pair_of(row)
    assert (pair.chosen, pair.rejected) == ("x", "y")
    assert pair.metadata["margin"] == margin


def test_columns_of_a_public_set_go_into_the_metadata_whatever_their_type() -> None:
    row = {**AB, "winner": "model_a", "model_a": "m", "source": ["x"], "judge": {"name": "j"}, "tstamp": 1.5, "turn": 1}
    pair = pair_of(row)
    assert pair.source == "human_pairs"
    assert pair.metadata == {"model_a": "m", "source": ["x"], "judge": {"name": "j"}, "tstamp": 1.5, "turn": 1}


def test_a_plain_form_keeps_what_describes_a_row_and_names_the_cure_for_the_rest() -> None:
    row = {"prompt": "p", "chosen": "x", "rejected": "y", "category": "chat", "__index_level_0__": 7, "Unnamed: 0": 3}
    assert pair_of(row).metadata == {"category": "chat"}
    found = refused({**row, "mood": 1, "age": 2})
    assert (found.reason, found.found) == ("unknown_field", "age: 2; mood: 1")
    assert "--map metadata=age,mood" in found.expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (1_743_413_400, "2025-03-31T09:30:00Z"),
        (1_743_413_400_000, "2025-03-31T09:30:00Z"),
        (1_743_413_400_000_000_000, "2025-03-31T09:30:00Z"),
        (1_743_413_400.5, "2025-03-31T09:30:00.500000Z"),
    ],
)
def test_epochs_are_times(given: float, expected: str) -> None:
    assert pair_of({"prompt": "p", "chosen": "x", "rejected": "y", "timestamp": given}).timestamp == expected


def test_an_id_of_a_column_with_gaps_is_a_whole_number() -> None:
    assert pair_of({"prompt": "p", "chosen": "x", "rejected": "y", "id": 7.0}).id == "7"


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": [user("q"), assistant("x")], "rejected": [user("q"), assistant("y")]},
        {"prompt": [user("q")], "chosen": [user("q"), assistant("x")], "rejected": [user("q"), assistant("y")]},
        {"prompt": "q", "chosen": [assistant("x")], "rejected": assistant("y")},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "x"}], "chosen": assistant("x")}
        | {"rejected": {"from": "gpt", "value": "y"}},
        {"messages": [user("q"), assistant("y")], "chosen": assistant("x"), "rejected": assistant("y")},
        {"prompt": [{"role": "user", "content": [{"type": "text", "text": "q"}]}], "chosen": "x", "rejected": "y"},
    ],
)
def test_prompts_and_responses_in_conversations(row: dict[str, Any]) -> None:
    pair = pair_of(row)
    assert (pair.prompt, pair.chosen, pair.rejected) == ((Message(role="user", content="q"),), "x", "y")


def test_system_turns_context_and_history_are_of_the_prompt() -> None:
    alpaca = {"system": "s", "instruction": "q", "input": "i", "history": [["a", "b"]], "chosen": "x", "rejected": "y"}
    turns = [(turn.role, turn.content) for turn in pair_of(alpaca).prompt]
    assert turns == [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "q\n\ni")]
    sharegpt = {
        "conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "q"}],
        "chosen": {"from": "gpt", "value": "x"},
        "rejected": {"from": "gpt", "value": "y"},
        "system": "other",
    }
    assert [(turn.role, turn.content) for turn in pair_of(sharegpt).prompt] == [("system", "s"), ("user", "q")]
    openai = {"input": {"messages": [{"role": "developer", "content": "s"}, user("q")]}}
    openai |= {"preferred_output": [assistant("x")], "non_preferred_output": [assistant("y")]}
    assert [turn.role for turn in pair_of(openai).prompt] == ["system", "user"]


def test_a_prompt_that_the_conversations_do_not_repeat_is_refused() -> None:
    found = refused({"prompt": "else", "chosen": [user("q"), assistant("x")], "rejected": [user("q"), assistant("y")]})
    assert (found.reason, found.field) == ("no_shared_prompt", "prompt")


def test_battles_over_several_turns_need_one_conversation_up_to_the_last() -> None:
    turns = [user("q"), assistant("same"), user("r")]
    row = {"winner": "model_b", "conversation_a": [*turns, assistant("y")], "conversation_b": [*turns, assistant("x")]}
    pair = pair_of(row)
    assert (len(pair.prompt), pair.chosen) == (3, "x")
    other = [user("q"), assistant("other"), user("r"), assistant("x")]
    assert refused({**row, "conversation_b": other}).reason == "no_shared_prompt"


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"prompt": [user("q")], "chosen": "x", "rejected": "y", "tools": [{"type": "function"}]}, "tools"),
        (
            {
                "prompt": [user("q"), {"role": "assistant", "content": None, "tool_calls": [{}]}],
                "chosen": "x",
                "rejected": "y",
            },
            "prompt[1].tool_calls",
        ),
        (
            {
                "conversations": [{"from": "function_call", "value": "{}"}],
                "chosen": assistant("x"),
                "rejected": assistant("y"),
            },
            "conversations[0].from",
        ),
        (
            {"input": {"messages": [user("q")], "tools": [{}]}, "preferred_output": [assistant("x")]}
            | {"non_preferred_output": [assistant("y")]},
            "tools",
        ),
    ],
)
def test_tools_are_set_aside_with_their_reason(row: dict[str, Any], field: str) -> None:
    found = refused(row)
    assert (found.reason, found.field) == ("tool_calls", field)
    assert "not trained on" in found.expected


def test_a_prompt_may_end_with_the_result_of_a_tool(tmp_path: Path) -> None:
    turns = [user("q"), assistant('{"tool": "look"}'), {"role": "tool", "content": "12 degrees"}]
    (tmp_path / "f").write_bytes(orjson.dumps({"prompt": turns, "chosen": "x", "rejected": "y"}))
    report = sort_rows([("human_pairs", "f", tmp_path / "f")], FeedbackParams(), tmp_path)
    assert (report["accepted"], report["reasons"]) == (1, {})


def label_studio(*selected: tuple[int, str], cancelled: bool = False) -> dict[str, Any]:
    annotations = [
        {"completed_by": who, "was_cancelled": cancelled, "result": [{"type": "pairwise", "value": {"selected": side}}]}
        for who, side in selected
    ]
    return {"id": 5, "data": {"question": "q", "text1": "y", "text2": "x", "topic": "t"}, "annotations": annotations}


def test_label_studio_gives_the_label_of_most_annotators() -> None:
    pair = pair_of(label_studio((1, "right"), (2, "left"), (3, "right")))
    assert (pair.id, pair.chosen, pair.annotator) == ("5", "x", None)
    assert pair.metadata["topic"] == "t"
    assert [vote["annotator"] for vote in pair.metadata["votes"]] == ["1", "2", "3"]
    assert pair_of(label_studio((4, "left"))).annotator == "4"
    assert refused(label_studio((1, "right"), (2, "left"))).reason == "tie"
    assert refused(label_studio((1, "right"), cancelled=True)).reason == "no_pair"


@pytest.mark.parametrize(
    ("votes", "chosen"),
    [
        (["a", "b", "a"], "one"),
        ([{"annotator": "n", "label": "B"}, {"annotator": "m", "vote": "model_b"}], "two"),
        ({"a": 2, "b": 5, "tie": 1}, "two"),
        (["a", "b"], None),
        (["a", "tie", "tie"], None),
    ],
)
def test_the_label_of_most_votes(votes: Any, chosen: str | None) -> None:
    if chosen is None:
        assert refused({**AB, "votes": votes}).reason == "tie"
    else:
        pair = pair_of({**AB, "votes": votes})
        assert (pair.chosen, pair.metadata["votes"]) == (chosen, votes)


def test_a_row_says_what_it_nearly_is() -> None:
    found = refused({"context": "c", "response1": "x", "response2": "y"})
    assert (found.reason, found.field) == ("missing_field", "overall_preference")
    assert "(format helpsteer3)" in found.expected
    single = next(
        iter(SOURCES["unpaired_responses"]([orjson.dumps({"prompt": "p", "chosen": "x", "rejected": "y"})], "f"))
    )
    assert isinstance(single.outcome, Quarantined)
    assert "These are TRL's standard pairs: name the source human_pairs" in single.outcome.expected


def rows_of_older_versions() -> list[dict[str, Any]]:
    """Rows of the seven formats that the first version read, with what any row may carry."""
    rng, rows = random.Random(3), []
    more = {
        "annotator": "ann",
        "timestamp": "2025-01-01",
        "votes": ["a"],
        "label_kind": "h",
        "source": "src",
        "margin": 0.5,
    }
    for number in range(400):
        prompt, yes, no = f"question {number}?", f"yes {number}", f"no {rng.random():.3f}"
        hh = f"\n\nHuman: {prompt}\n\nAssistant:"
        shapes: list[dict[str, Any]] = [
            {"prompt": prompt, "chosen": yes, "rejected": no},
            {"prompt": hh, "chosen": " " + yes, "rejected": " " + no},
            {"prompt": [user(prompt)], "chosen": [assistant(yes)], "rejected": [assistant(no)]},
            {"prompt": [{"role": "system", "content": "s"}, user(prompt)], "chosen": yes, "rejected": no},
            {"chosen": [user(prompt), assistant(yes)], "rejected": [user(prompt), assistant(no)]},
            {"chosen": f"{hh} {yes}", "rejected": f"{hh} {no}"},
            {"prompt": prompt, "response_a": yes, "response_b": no, "label": rng.choice(["a", "b", "tie"])},
            {"prompt": hh, "response_a": yes, "response_b": no, "label": "b"},
            {"chosen": f"{prompt} {yes}", "rejected": f"{prompt} {no}"},
        ]
        row = dict(rng.choice(shapes))
        extras = {"id": number if number % 3 else f"i{number}", "meta": {"k": number}, **more}
        rows.append(row | {name: value for name, value in extras.items() if rng.random() < 0.3})
    return rows


def test_a_batch_of_an_older_version_gives_the_same_records(tmp_path: Path) -> None:
    """The digest was recorded with the version that read seven formats, before there was a table of readers."""
    (tmp_path / "f").write_bytes(b"\n".join(map(orjson.dumps, rows_of_older_versions())))
    report = sort_rows([("human_pairs", "raw/f.jsonl", tmp_path / "f")], FeedbackParams(), tmp_path)
    assert report["accepted"] + report["reasons"]["tie"] == 400
    digest = hashlib.sha256((tmp_path / "accepted.jsonl").read_bytes()).hexdigest()
    assert digest == "59d12cb6e296b8757f7abfb2b8970f9f87a8e41327b691329c1c431b831f4755"


def test_labels_of_several_people_and_counts_of_votes() -> None:
    assert pair_of({**AB, "label": ["b", "a", "B"], "annotators": ["n", "m", "k"]}).chosen == "two"
    assert refused({**AB, "label": ["a", "b"]}).reason == "tie"
    assert pair_of({**AB, "votes_a": 1, "votes_b": 4}).chosen == "two"
    assert refused({**AB, "votes_a": 1, "votes_b": 1}).reason == "tie"


def test_a_system_column_is_the_first_turn_and_other_parts_of_a_prompt_are_not_put_aside() -> None:
    plain = {"prompt": "q", "chosen": "x", "rejected": "y"}
    turns = (Message(role="system", content="s"), Message(role="user", content="q"))
    assert pair_of({**plain, "system": "s"}).prompt == turns
    assert pair_of({**plain, "prompt": [user("q")], "system": "s"}).prompt == turns
    for row in ({**plain, "context": "c"}, {"question": "q", "better": "x", "worse": "y", "passage": "c"}):
        assert refused(row).reason == "unknown_field"
    assert pair_of({"question": "q", "better": "x", "worse": "y", "mood": 1}).metadata == {"mood": 1}
