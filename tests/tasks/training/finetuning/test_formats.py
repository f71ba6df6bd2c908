from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from plumbline.data_contracts.records import CuratedPair, Message, Origin, UnpairedResponse
from plumbline.tasks.params.method_sections import FormatParams
from plumbline.tasks.training.finetuning.formats import apply_formats, randomise
from plumbline.tasks.training.finetuning.methods import FinetuneInputs

BOTH = FormatParams(
    system_prompts=("", "red", "blue", "green"),
    templates=("{prompt}", "please {prompt} please"),
    temperatures=(0.7, 1.0),
)


def user(text: str) -> Message:
    return Message(role="user", content=text)


def thumb(record_id: str, *prompt: Message) -> UnpairedResponse:
    origin = Origin(file="test", line=1)
    return UnpairedResponse(id=record_id, prompt=prompt, response="yes", desirable=True, source="test", origin=origin)


def test_nothing_drawn_leaves_the_inputs(inputs: FinetuneInputs) -> None:
    same, facts = apply_formats(inputs, FormatParams())
    assert same is inputs
    assert facts == {}


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(min_size=1), min_size=1, max_size=20, unique=True), st.integers(0, 5), st.data())
def test_a_record_keeps_its_format_when_others_come_or_go(ids: list[str], seed: int, data: st.DataObject) -> None:
    records = [thumb(record_id, user("one")) for record_id in ids]
    some = data.draw(st.lists(st.sampled_from(records), unique_by=lambda record: record.id))
    whole = {record.id: record for record in randomise(records, BOTH, seed)[0]}
    assert all(record == whole[record.id] for record in randomise(some, BOTH, seed)[0])


@pytest.mark.training
def test_formats_are_drawn_evenly_and_apart_and_counted() -> None:
    """8,000 records, 4 system prompts by 2 templates: each of 8 cells expects 1,000 with deviation
    sqrt(8000 * 1/8 * 7/8) = 29.6, so within 150 (5 deviations); another seed draws otherwise."""
    records = [thumb(str(number), user("one")) for number in range(8000)]
    formatted, counts = randomise(records, BOTH, 3)
    cells: dict[tuple[Message, ...], int] = {}
    for record in formatted:
        cells[record.prompt] = cells.get(record.prompt, 0) + 1
    assert len(cells) == 8
    assert all(abs(count - 1000) < 150 for count in cells.values())
    wrapped = "please one please"
    assert counts["templates"] == [
        sum(record.prompt[-1].content == text for record in formatted) for text in ("one", wrapped)
    ]
    assert counts["system_prompts"] == [
        sum(record.prompt[:-1] == start for record in formatted)
        for start in ((), *((Message(role="system", content=colour),) for colour in ("red", "blue", "green")))
    ]
    assert randomise(records, BOTH, 4)[0] != formatted


def test_a_system_prompt_of_its_own_stays_and_the_last_user_message_is_the_one_wrapped() -> None:
    params = FormatParams(system_prompts=("red",), templates=("Q: {prompt} {{sic}}",))
    own = (
        Message(role="system", content="keep"),
        user("first {prompt}"),
        Message(role="assistant", content="no"),
        user("last {0}"),
    )
    silent = (Message(role="assistant", content="hi"),)
    (first, second), counts = randomise([thumb("a", *own), thumb("b", *silent)], params, 1)
    assert first.prompt == (*own[:3], user("Q: last {0} {sic}")), "braces of a message are not fields"
    assert second.prompt == (Message(role="system", content="red"), *silent)
    assert counts == {"system_prompts": [1], "templates": [1], "own_system_prompt": 1, "no_user_message": 1}


def test_training_is_formatted_and_validation_only_by_choice(
    inputs: FinetuneInputs, pairs: Callable[..., list[CuratedPair]]
) -> None:
    given = dataclasses.replace(inputs, unpaired=[thumb("a", user("one"))])
    changed, facts = apply_formats(given, BOTH)
    assert changed.validation is inputs.validation
    assert changed.temperatures == (0.7, 1.0)
    assert changed.train != inputs.train
    assert [(pair.id, pair.chosen, pair.rejected) for pair in changed.train] == [
        (pair.id, pair.chosen, pair.rejected) for pair in inputs.train
    ]
    assert sum(facts["train"]["templates"]) == len(inputs.train)
    assert sum(facts["unpaired"]["templates"]) == 1
    assert "validation" not in facts
    changed, facts = apply_formats(given, BOTH.model_copy(update={"validation": True}))
    assert changed.validation != inputs.validation
    assert sum(facts["validation"]["templates"]) == len(inputs.validation)


def test_temperatures_alone_leave_prompts(inputs: FinetuneInputs) -> None:
    changed, _ = apply_formats(inputs, FormatParams(temperatures=(0.5,)))
    assert list(changed.train) == list(inputs.train)
    assert changed.temperatures == (0.5,)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"templates": ["Answer briefly."]}, r"found none in 'Answer briefly.'"),
        ({"templates": ["{prompt}", "{question}"]}, r"found \{question\} in"),
        ({"templates": ["{prompt} {prompt}"]}, r"once and no other, found \{prompt\}, \{prompt\}"),
        ({"templates": ["{prompt.__class__}"]}, r"found \{prompt.__class__\}"),
        ({"templates": ["{prompt!r}"]}, r"found \{prompt!r\}"),
        ({"templates": ["{prompt:>9}"]}, r"found \{prompt:>9\}"),
        ({"templates": ["{prompt"]}, "cannot read the template"),
        ({"templates": ["{}"]}, r"found \{\}"),
        ({"temperatures": [0.0]}, "above 0 and at most at 2, found 0"),
        ({"temperatures": [2.5]}, "above 0 and at most at 2, found 2.5"),
    ],
)
def test_templates_and_temperatures_that_cannot_be_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FormatParams(**given)
