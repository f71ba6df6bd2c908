"""What an edit of a text costs: the table of `wording`, line by line."""

from __future__ import annotations

from math import inf

import pytest

from plumbline.data_contracts.records import Message
from plumbline.tasks.data.curation.wording import asked, request_edits, request_of, response_edits, spoken


def user(*texts: str):
    return request_of([Message(role="user", content=text) for text in texts])


def cost(left: str, right: str) -> float:
    edits = request_edits(user(left), user(right))
    assert edits is not None
    return sum(edit.cost for edit in edits)


@pytest.mark.parametrize(
    ("left", "right", "bits"),
    [
        ("Where is the blue kettle of my aunt?", "where is  the blue kettle of my aunt !", 0),
        ("Where is the blue kettle?", "Hello, where is the blue kettle? Thank you very much!", 0),
        ("Mend the gate", "Hi there, mend the gate, thanks a lot", 0),
        ("Mend the gate", "Mend the gate Thanks!", 0),
        ("Could you mend the gate?", "Could you please mend the gate?", 0),
        ("Where is the gate?", "Where is gate?", 4),
        ("Mend the gate and the door", "Mend the the gate and the door", 4),
        ("Send an e-mail to them", "Send an email to them", 4),
        ("Describe the gate to me", "Describe teh gate to me", 16),
        ("Describe the gate to me", "Desribe the gate to me", 6),
        ("Where is the boat of my aunt", "Where is the goat of my aunt", 16),
        ("Give me 5 apples", "Give me 6 apples", inf),
        ("Do go there", "Do not go there", inf),
        ("Come on Monday", "Come on Tuesday", inf),
        ("What is a + b", "What is a - b", inf),
        ("if !ready: stop", "if ready: stop", inf),
        ("see items.append(x) there", "see items.extend(x) there", inf),
        ("look at www.one.org now", "look at www.two.org now", inf),
    ],
)
def test_bits(left: str, right: str, bits: float) -> None:
    assert cost(left, right) == cost(right, left) == bits


def test_an_edit_of_an_instruction_costs_more() -> None:
    """One of six words of the closing sentence: 16 * (1 + 48 / 6) = 144. One of the passage: 16."""
    told = "The gate was shut. The ferry left the pier late. Sum this up for a child."
    assert cost(told, told.replace("child", "lawyer")) == pytest.approx(16 * (1 + 48 / 6))
    assert cost(told, told.replace("ferry", "train")) == 16
    assert cost("Sum it up for a child.", "Sum it up for a lawyer.") == 16, "alone it is the whole prompt"


def test_turns_and_the_system_prompt_are_part_of_a_request() -> None:
    assert request_edits(user("Hello there.", "Go on."), user("Hello there. Go on.")) is None
    left, right = (
        request_of([Message(role="system", content=f"You help a {who}."), Message(role="user", content="Go on.")])
        for who in ("child", "lawyer")
    )
    assert [edit.cost for edit in request_edits(left, right) or ()] == [inf]


def test_courtesy_that_is_asked_about_is_no_courtesy() -> None:
    for left, right in (
        ("How do I say thanks in French?", "How do I say hello in French?"),
        ("Say hello.", "Say thanks."),
    ):
        assert asked(user(left)) != asked(user(right))
    assert asked(user("Hello in French?")) != asked(user("Thanks in French?"))


def test_courtesy_in_a_response_is_a_word() -> None:
    (edit,) = response_edits("it is in the shed", "it is in the shed thanks")
    assert edit.added == ("thanks",)
    assert edit.cost == pytest.approx(16 * (1 + 16 / 6))


def test_words() -> None:
    assert spoken("(see “the gate”), x[i] f(x) 3.5 don't, \u2013 a - b!") == (
        "see", "the", "gate", "x[i]", "f(x)", "3.5", "don't", "a", "-", "b",
    )  # fmt: skip
