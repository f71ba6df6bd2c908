from __future__ import annotations

import pytest
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

from plumbline.tasks.data.curation.leak_words import could_leak, plain_words
from plumbline.tasks.data.curation.leakage import PATTERNS, clean_leaks, find_leak
from plumbline.tasks.data.curation.verdicts import Item

CUT = [
    ("A is preferred because it is more helpful. Your order ships today.", "letter_verdict"),
    ("Your order ships today. A is preferred because it is more helpful.", "letter_verdict"),
    ("Your order ships today. B is better because it is shorter.", "letter_verdict"),
    ("Your order ships today. Response A is better than response B.", "response_verdict"),
    ("Overall, answer 2 was clearly rated as the best. Your order ships today.", "response_verdict"),
    ("Your order ships today. The first response is slightly better.", "ordinal_verdict"),
    ("Your order ships today. The chosen response is polite.", "preferred_is"),
    ("Your order ships today. This answer was rated higher by two people.", "this_verdict"),
    ("Your order ships today. It is much better than the other response.", "comparison"),
    ("Your order ships today. The annotators preferred this one.", "annotator_choice"),
    ("Your order ships today. I prefer response B.", "stated_choice"),
    ("(chosen) Your order ships today.", "parenthesis_tag"),
    ("Your order ships today. (preferred response)", "parenthesis_tag"),
    ("Your order ships today. (annotator: this is the better answer)", "annotator_note"),
    ("[rejected] Your order ships today.", "bracket_tag"),
    ("Your order ships today. [label: chosen]", "bracket_tag"),
    ("Chosen: Your order ships today.", "label_prefix"),
    ("**Preferred answer:** Your order ships today.", "label_prefix"),
    ("The preferred answer is: Your order ships today.", "preferred_prefix"),
    ("Your order ships today.\nLabel: A", "label_suffix"),
    ("A > B\nYour order ships today.", "order_mark"),
]
INNOCENT = [
    "Vitamin A is preferred because it helps the eyes.",
    "In this case vitamin A is better because it is stored.",
    "A is for apple.",
    "Her preferred pronouns are listed.",
    "A federal judge rejected the lawsuit.",
    "He was chosen last, and nobody preferred him.",
    "Harvard (rejected)\nYale (chosen) and others",
    "Flip through the pages to answer a question or two; the answer is better left open.",
    "Winner: Brazil",
    "I'd prefer you say so. The label on the bottle is better.",
    "You will need to find a better answer. Sorry.",
]


@pytest.mark.parametrize(("text", "name"), CUT)
def test_a_leak_that_stands_apart_is_cut_and_named(make_pair, text, name):
    outcome = clean_leaks([Item.of(make_pair(1, chosen=text), 0)])
    (item,) = outcome.kept
    assert item.pair.chosen == "Your order ships today."
    assert item.pair.id == "p1"
    assert [cut.split(": ")[:2] for cut in item.cleaned] == [["chosen", name]]


def test_every_pattern_has_a_case():
    assert {pattern.name for pattern in PATTERNS} == {name for _, name in CUT}


@pytest.mark.parametrize("text", INNOCENT)
def test_innocent_words_are_no_leak(text):
    assert find_leak(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "A is preferred because it is polite.",
        "[chosen]",
        "Your refund takes two days, and response A is better for that.",
    ],
)
def test_what_cannot_be_cut_is_set_aside_whole(make_pair, text):
    outcome = clean_leaks([Item.of(make_pair(3, rejected=text), 0)])
    (verdict,) = outcome.quarantined
    assert outcome.kept == []
    assert (verdict.reason, verdict.field, verdict.line, verdict.record_id) == ("leaked_label", "rejected", 3, "p3")
    assert text in make_pair(3).model_validate_json(verdict.raw).rejected


def test_a_leak_in_the_prompt_is_cut(make_pair):
    outcome = clean_leaks([Item.of(make_pair(1, prompt="Response A is better than response B. Where is it?"), 0)])
    assert outcome.kept[0].pair.prompt[0].content == "Where is it?"
    assert outcome.kept[0].cleaned[0].startswith("prompt[0]: response_verdict: ")


@pytest.mark.parametrize(
    ("prompt", "response"),
    [
        ("Which is healthier, plan A or plan B?", "A is preferred because it costs less."),
        ("Compare response A and response B.", "Response A is better because it is exact."),
        ("Give the label, A or B.", "It is spam.\nLabel: A"),
    ],
)
def test_what_the_prompt_asks_about_is_no_leak(make_pair, prompt, response):
    item = Item.of(make_pair(1, prompt=prompt, chosen=response), 0)
    assert clean_leaks([item]).kept[0].pair.chosen == response


def test_responses_made_equal_by_a_cut_are_set_aside(make_pair):
    outcome = clean_leaks([Item.of(make_pair(1, chosen="Yes. [chosen]", rejected="Yes."), 0)])
    assert [verdict.reason for verdict in outcome.quarantined] == ["leaked_label"]


def test_several_leaks_are_all_cut_and_a_second_call_changes_nothing(make_pair):
    item = Item.of(make_pair(1, chosen="[chosen] A is preferred because it is kind. It is blue. [/chosen]"), 0)
    (once,) = clean_leaks([item]).kept
    assert once.pair.chosen == "It is blue."
    again = Item.of(once.pair, 0)
    assert clean_leaks([again]).kept[0].cleaned == ()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hh_harmless_test", "ukp_convarg_pairs"])
def test_no_false_positive_on_public_sets(read_shared, name):
    """No pattern fires on these files. A keyword-filtered sample of suspicious texts was read, not every text:
    this guards against new false alarms, it does not prove that no label leaks."""
    outcome = clean_leaks([Item.of(pair, place) for place, pair in enumerate(read_shared(name))])
    assert outcome.quarantined == []
    assert [item.cleaned for item in outcome.kept if item.cleaned] == []


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.name)
@settings(max_examples=60, phases=(Phase.explicit, Phase.generate))
@given(data=st.data())
def test_what_a_pattern_matches_is_never_passed_unsearched(pattern, data):
    """Any match, in any of the letters that a search without case takes for the same, holds what the pattern needs."""
    text = data.draw(st.from_regex(pattern.regex))
    for letter, other in data.draw(st.sampled_from([(), (("s", "\u017f"),), (("i", "\u0131"), ("I", "\u0130"))])):
        text = text.replace(letter, other)
    assume(pattern.regex.search(text))
    assert could_leak(text)
    plain = plain_words(text)
    assert all(any(part in plain for part in group) for group in pattern.needs), plain
