"""Assistant turns by prefixes, under templates of many makes; expected texts are written down by hand."""

from __future__ import annotations

from typing import Any

import pytest

from plumbline.data_contracts.records import Message
from plumbline.tasks.models import chat
from plumbline.tasks.models.spoken import encode_spoken
from tests.tasks.models.test_control_tokens import byte_level

MULTI = (
    Message(role="user", content="the dog"),
    Message(role="assistant", content="ran"),
    Message(role="user", content="the cat"),
    Message(role="assistant", content="sat <|end|>"),
    Message(role="user", content="and"),
)
TEMPLATES = {
    "ChatML": (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}",
        ["ran<|end|>", "sat <|end|><|end|>"],
    ),
    "default": (chat.DEFAULT_TEMPLATE, [" ran<|end|>", " sat <|end|><|end|>"]),
    # earlier turns without their thoughts, the last one with them, as reasoning templates write it
    "thoughts": (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}"
        "{% if m['role'] == 'assistant' and loop.last %}{{ 'and ' }}{% endif %}"
        "{{ m['content'] + '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}",
        ["ran<|end|>", "and sat <|end|><|end|>"],
    ),
    # earlier turns end with another token than the last one
    "returns": (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}"
        "{{ '<|end|>' if m['role'] == 'assistant' and loop.last else '<|pad|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}",
        ["ran", "sat <|end|><|end|>"],
    ),
    # the end token stands only behind answers
    "answers": (
        "{% for m in messages %}{{ '[' + m['role'] + '] ' + m['content'] }}"
        "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '[assistant] ' }}{% endif %}",
        [" ran<|end|>", " sat <|end|><|end|>"],  # the blank and the word are one token
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_each_answer_is_found_with_its_end(name: str) -> None:
    """`sat <|end|>` spells the end token: as text it does not end the turn."""
    tokenizer = byte_level()
    tokenizer.chat_template, expected = TEMPLATES[name]
    ((ids, spans),) = encode_spoken(tokenizer, [MULTI])
    assert [tokenizer.decode(ids[start:stop]) for start, stop in spans] == expected
    assert ids == chat.encode_conversations(tokenizer, [MULTI[:-1]])[0][: len(ids)]
    assert spans[-1][1] == len(ids)


def test_a_single_answer_is_what_encode_gives() -> None:
    tokenizer = byte_level()
    for template, _ in TEMPLATES.values():
        tokenizer.chat_template = template
        head, tail = chat.encode(tokenizer, MULTI[:3], "no")
        talk = (*MULTI[:3], Message(role="assistant", content="no"))
        ((ids, spans),) = encode_spoken(tokenizer, [talk])
        assert (ids, spans[-1]) == (head + tail, (len(head), len(head) + len(tail)))


def test_rows_keep_to_themselves() -> None:
    """Conversations of different lengths, without an answer, and one that opens with the assistant."""
    tokenizer = byte_level()
    talks: list[Any] = [MULTI, MULTI[:1], MULTI[1:4], MULTI[:2]]
    together = encode_spoken(tokenizer, talks)
    assert together == [encode_spoken(tokenizer, [talk])[0] for talk in talks]
    assert [len(spans) for _, spans in together] == [2, 0, 1, 1]
