from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plumbline.data_contracts.errors import ModelError
from plumbline.data_contracts.records import Message
from plumbline.tasks.models import chat

ASK = (Message(role="user", content="one two"),)
TALK = (
    Message(role="system", content="yes"),
    Message(role="user", content="one"),
    Message(role="assistant", content=" two "),
    Message(role="user", content="three"),
)
CHATML = (
    "{% for m in messages %}{{ '<s>' + m['role'] + '\\n' + m['content'] + '</s>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Pair:
    prompt: tuple[Message, ...]
    chosen: str
    rejected: str


def with_template(tokenizer: Any, template: str | None) -> Any:
    from copy import deepcopy

    copy = deepcopy(tokenizer)
    copy.chat_template = template
    return copy


def test_default_template_writes_roles_as_text_and_ends_an_answer_with_eos(tiny: tuple[Any, Any]) -> None:
    tokenizer = tiny[1]
    assert chat.render_prompt(tokenizer, TALK) == (
        "<s>System: yes\n\nUser: one\n\nAssistant: two</s>\n\nUser: three\n\nAssistant:"
    )
    assert chat.render_pair(tokenizer, ASK, " no ") == "<s>User: one two\n\nAssistant: no</s>"
    assert chat.render_pair(tokenizer, ASK, " ") == "<s>User: one two\n\nAssistant:</s>"


def test_default_template_marks_the_answer_for_assistant_only_loss(tiny: tuple[Any, Any]) -> None:
    """Of the tokens of "… Assistant: no</s>" exactly ▁no and </s> are the assistant's."""
    tokenizer = tiny[1]
    messages = [*chat.as_dicts(ASK), {"role": "assistant", "content": "no"}]
    marked = tokenizer.apply_chat_template(messages, return_assistant_tokens_mask=True, return_dict=True)
    masked = [token for token, mask in zip(marked["input_ids"], marked["assistant_masks"], strict=True) if mask]
    assert tokenizer.convert_ids_to_tokens(masked) == ["▁no", "</s>"]


def test_encode_is_what_trl_sees(tiny: tuple[Any, Any]) -> None:
    tokenizer = tiny[1]
    head, tail = chat.encode(tokenizer, TALK, "yes please")
    whole = [*chat.as_dicts(TALK), {"role": "assistant", "content": "yes please"}]
    assert head + tail == tokenizer.apply_chat_template(whole, return_dict=True)["input_ids"]
    prompt = tokenizer.apply_chat_template(chat.as_dicts(TALK), add_generation_prompt=True, return_dict=True)
    assert head == prompt["input_ids"]
    assert tokenizer.convert_ids_to_tokens(tail) == ["▁yes", "▁please", "</s>"]


def test_a_completion_ends_at_the_end_token_even_where_the_template_goes_on(tiny: tuple[Any, Any]) -> None:
    """ChatML writes a newline behind its end token; a sampler stops before it, so it is no part of the completion."""
    tokenizer = with_template(tiny[1], CHATML)
    assert chat.render_pair(tokenizer, ASK, "no").endswith("no</s>\n")
    assert tokenizer.convert_ids_to_tokens(chat.encode(tokenizer, ASK, "no")[1])[-1] == "</s>"


def test_a_whole_is_prompt_and_completion_joined(tiny: tuple[Any, Any]) -> None:
    """Also with the end token in a prompt or a response, with nothing to say, and where the template goes on."""
    tokenizer = with_template(tiny[1], CHATML)
    end = tokenizer.decode([chat.end_token_id(tokenizer)])
    texts = ["yes", "", f"a yes {end} no", end]
    prompts = [(Message(role="system", content="a"), Message(role="user", content=text)) for text in texts]
    pairs = chat.encode_all(tokenizer, prompts, texts)
    assert chat.encode_wholes(tokenizer, prompts, texts) == [head + tail for head, tail in pairs]
    assert chat.encode_wholes(tokenizer, [], []) == []


def test_a_template_without_an_end_token_is_refused(tiny: tuple[Any, Any]) -> None:
    tokenizer = with_template(tiny[1], "{% for m in messages %}{{ m['content'] }}{% endfor %}")
    with pytest.raises(ModelError, match="must end an assistant turn with a special token"):
        chat.encode(tokenizer, ASK, "no")
    with pytest.raises(ModelError, match="no chat template"):
        chat.end_token_id(with_template(tiny[1], None))


def test_a_conversation_that_the_template_refuses_is_named(tiny: tuple[Any, Any]) -> None:
    tokenizer = with_template(tiny[1], "{{ raise_exception('Only user and assistant roles') }}")
    with pytest.raises(ModelError, match=r"roles \['system', 'user', 'assistant', 'user'\]: Only user"):
        chat.render_prompt(tokenizer, TALK)


def test_of_many_conversations_the_one_that_the_template_refuses_is_named(tiny: tuple[Any, Any]) -> None:
    template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('No system role') }}{% endif %}"
        "{{ '<s>' + m['content'] + '</s>' }}{% endfor %}"
    )
    tokenizer = with_template(tiny[1], template)
    assert len(chat.encode_prompts(tokenizer, [ASK, ASK])) == 2
    with pytest.raises(ModelError, match=r"roles \['system', 'user', 'assistant', 'user'\]: No system role"):
        chat.encode_prompts(tokenizer, [ASK, TALK, ASK])


def test_split_by_context_looks_at_both_responses(tiny: tuple[Any, Any]) -> None:
    """With n tokens for the short answer, a pair whose other answer has n + 1 fits n + 1 and not n."""
    tokenizer = tiny[1]
    short, long = Pair(ASK, "no", "yes"), Pair(ASK, "no", "yes please")
    length = sum(map(len, chat.encode(tokenizer, ASK, "no")))
    assert chat.split_by_context([short, long], tokenizer, length) == ([short], [long])
    assert chat.split_by_context([short, long], tokenizer, length + 1) == ([short, long], [])
    assert chat.split_by_context([short], tokenizer, length - 1) == ([], [short])
    assert chat.split_by_context([], tokenizer, 8) == ([], [])


@settings(max_examples=50, deadline=None)
@given(st.text(alphabet="abyes no\n.,?", max_size=20))
def test_prompt_tokens_are_a_prefix_and_the_answer_comes_back(tiny: tuple[Any, Any], text: str) -> None:
    tokenizer = tiny[1]
    head, tail = chat.encode(tokenizer, ASK, text)
    assert head == chat.encode_prompts(tokenizer, [ASK])[0]
    assert tail[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(tail[:-1]).strip() == text.strip()


def test_the_story_model_takes_the_default_template(stories_folder: Any) -> None:
    """512 tokens and no chat template: no unknown token may come up, and pad is eos."""
    from plumbline.tasks.models.loading import load_tokenizer, padding_note

    tokenizer = load_tokenizer(stories_folder)
    head, tail = chat.encode(tokenizer, TALK, "Once upon a time")
    assert tokenizer.unk_token_id not in head + tail
    assert head[0] == tokenizer.bos_token_id
    assert tokenizer.convert_ids_to_tokens(tail) == ["▁Once", "▁upon", "▁a", "▁time", "</s>"]
    assert "one token" in padding_note(tokenizer)
