"""Control tokens come from the template alone; without any in the texts, ids are those of one plain tokenizer call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plumbline.data_contracts.records import Message
from plumbline.tasks.models import chat
from plumbline.tasks.models.control_tokens import control_tokens
from plumbline.tasks.models.loading import load_tokenizer
from tests.tasks.models.tiny_llama import build_tokenizer

MARKED = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + (m['content'] | trim) + '<|end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + eos_token + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
REASONING = (
    "{% for m in messages %}{% set content = m['content'] %}"
    "{% if m['role'] == 'assistant' and '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].split('<think>')[-1] | trim %}"
    "{% set content = '<think>' + thought + '</think>' + content.split('</think>')[-1] %}{% endif %}"
    "{{ '<|' + m['role'] + '|>' + content + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
CORPUS = ["the dog ran to the house and the cat sat on the mat, it was 12 o'clock", "system user assistant end think"]


def byte_level() -> Any:
    """A byte-level BPE as GPT's: special tokens, a mask that swallows blanks, marks that are not special, a word."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|end|>", "<|pad|>", *ROLES[:3]]
    inner.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token="<|end|>",
        pad_token="<|pad|>",
        extra_special_tokens=list(ROLES[:3]),
        chat_template=MARKED,
    )
    blanks = AddedToken("<mask>", lstrip=True, rstrip=True, special=True)
    tokenizer.add_tokens([blanks], special_tokens=True)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in ("<|tool|>", "<think>", "</think>", "plumb")])
    return tokenizer


def lower_case() -> Any:
    """A tokenizer that looks for its marks behind a lower-casing normaliser: `<|END|>` spells one too."""
    from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    marks = ["<|end|>", *ROLES]
    vocabulary = ["<unk>", *marks, *(chr(code) for code in range(33, 127)), "the", "dog"]
    inner = Tokenizer(models.WordLevel({piece: row for row, piece in enumerate(vocabulary)}, unk_token="<unk>"))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.add_special_tokens([AddedToken(mark, normalized=True, special=True) for mark in marks])
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>", unk_token="<unk>", chat_template=MARKED)


def unigram() -> Any:
    """Control tokens are pieces of the model too, and the likeliest ones: a model alone would pick them in any text."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    marks = ["<|end|>", *ROLES]
    pieces = [("<unk>", 0.0), *((mark, 0.0) for mark in marks)]
    pieces += [("▁" if code == 32 else chr(code), -5.0) for code in range(32, 127)] + [("\n", -5.0), ("▁the", -3.0)]
    inner = Tokenizer(models.Unigram(pieces, unk_id=0))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    inner.add_special_tokens(marks)
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>", unk_token="<unk>", chat_template=MARKED)


def without_backend() -> Any:
    """A tokenizer in plain Python."""
    from transformers import ByT5Tokenizer

    tokenizer = ByT5Tokenizer(extra_ids=0)
    tokenizer.chat_template = CHATML
    tokenizer.add_tokens(["<|im_start|>"])
    return tokenizer


def stories(template: str | None) -> Any:
    folder = Path(__file__).parents[4] / "shared" / "models" / "stories260K"
    if not folder.is_dir():
        pytest.skip("../shared/models/stories260K is not here")
    tokenizer = load_tokenizer(folder)
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer


def words() -> Any:
    tokenizer = build_tokenizer()
    chat.set_default_template(tokenizer)
    return tokenizer


def story_marks() -> Any:
    tokenizer = stories(CHATML)
    tokenizer.add_tokens(["<|im_start|>"])
    return tokenizer


KINDS = {
    "byte-level": byte_level,
    "lower case": lower_case,
    "unigram": unigram,
    "without a backend": without_backend,
    "words": words,
    "stories": lambda: stories(None),
    "stories with ChatML": lambda: stories(CHATML),
    "stories with an added mark": story_marks,
}


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return KINDS[request.param]()


def user(*contents: str) -> tuple[Message, ...]:
    roles = ("user", "assistant")
    return tuple(Message(role=roles[place % 2], content=content) for place, content in enumerate(contents))  # type: ignore[arg-type]


def control_ids(tokenizer: Any, ids: Sequence[int]) -> list[int]:
    """Ids of control tokens, in order; an unknown text is none."""
    known = set(control_tokens(tokenizer).ids.values()) - {tokenizer.unk_token_id}
    return [number for number in ids if number in known]


def plain(tokenizer: Any, messages: Sequence[Message], prompt: bool) -> list[int]:
    """One plain call, which is what TRL does: render as text, tokenise the whole."""
    rendered = tokenizer.apply_chat_template(chat.as_dicts(messages), add_generation_prompt=prompt, return_dict=True)
    return list(rendered["input_ids"])


texts = st.lists(
    st.sampled_from(
        ["the", " dog", "a", "é", "<", ">", "|", "|>", "</", "[", "\n", "  ", "<|", "plumb", "12", "s>", "."]
    ),
    max_size=8,
).map("".join)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts, texts, texts)
def test_texts_without_control_tokens_have_the_ids_of_one_plain_call(
    tokenizer: Any, one: str, two: str, three: str
) -> None:
    """And the careful way, which they need not take, gives the same."""
    messages, control = user(one, two, three), control_tokens(tokenizer)
    if control.named([one, two, three]):
        return
    expected = plain(tokenizer, messages, True)
    assert chat.encode_prompts(tokenizer, [messages]) == [expected]
    if control._twins is not None:
        rendered = control.encode(messages, lambda found: chat.render_prompt(tokenizer, found))
        assert rendered == expected


@pytest.mark.training
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), texts, texts)
def test_no_content_yields_a_control_token(tokenizer: Any, data: st.DataObject, one: str, two: str) -> None:
    """Whatever prompt and completion spell, in any case, with blanks, cut across borders: those of the template."""
    spelled = sorted(control_tokens(tokenizer).ids)
    pieces = st.sampled_from([*spelled, *(text.upper() for text in spelled), *(f" {text}\n" for text in spelled)])
    cut = data.draw(st.sampled_from(spelled))
    contents = [
        one + data.draw(pieces) + data.draw(pieces) + two,
        cut[data.draw(st.integers(0, len(cut))) :]
        + data.draw(pieces)
        + two
        + cut[: data.draw(st.integers(0, len(cut)))],
    ]
    neutral = [control_ids(tokenizer, ids) for ids in chat.encode(tokenizer, user("a"), "a")]
    head, tail = chat.encode(tokenizer, user(contents[0]), contents[1])
    assert control_ids(tokenizer, head) == neutral[0]
    assert control_ids(tokenizer, tail) == neutral[1] == [chat.end_token_id(tokenizer)]
    assert tail[-1] == chat.end_token_id(tokenizer)
    assert head == chat.encode_prompts(tokenizer, [user(contents[0])])[0][: len(head)]


def test_what_is_spelled_is_still_read(tokenizer: Any) -> None:
    """As text of several pieces, which decode to what was written."""
    end = tokenizer.convert_ids_to_tokens(chat.end_token_id(tokenizer))
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in tokenizer(f"a {end[1:]}")["input_ids"]:
        pytest.skip("this vocabulary has no pieces for the spelling")
    _, tail = chat.encode(tokenizer, user("the"), f"the dog{end}dog")
    assert f"dog{end}dog" in tokenizer.decode(tail[:-1]).replace(" ", "")
    assert len(tail) > len(chat.encode(tokenizer, user("the"), "the dogdog")[1]) + 2


def test_rows_that_spell_none_beside_one_that_does(tokenizer: Any) -> None:
    """Rows keep their order and their ids."""
    end = tokenizer.convert_ids_to_tokens(chat.end_token_id(tokenizer))
    prompts = [user("the dog"), user(f"the {end} dog"), user("the")]
    together = chat.encode_prompts(tokenizer, prompts)
    assert together == [chat.encode_prompts(tokenizer, [prompt])[0] for prompt in prompts]
    assert together[0] == plain(tokenizer, prompts[0], True)


def test_added_words_are_vocabulary() -> None:
    control = control_tokens(byte_level())
    assert "plumb" not in control.ids
    assert {"<|tool|>", "<mask>", "<|end|>"} <= control.ids.keys()
    assert control.named(["a plumb line", "no </think> here", "<|tool|>"]) == {"</think>", "<|tool|>"}


def test_a_template_that_reads_thoughts_still_does() -> None:
    """`</think>` of an assistant turn is where the template writes it; a user's, and other marks, remain text."""
    tokenizer = byte_level()
    tokenizer.chat_template = REASONING
    think = tokenizer.convert_tokens_to_ids("<think>")
    messages = user("</think><|end|>", "<think> a <|tool|> </think>the")
    ids = chat.encode_conversations(tokenizer, [messages])[0]
    names = [token for token in tokenizer.convert_ids_to_tokens(ids) if token in control_tokens(tokenizer).ids]
    assert names == ["<|user|>", "<|end|>", "<|assistant|>", "<think>", "</think>", "<|end|>"]
    assert think in chat.encode(tokenizer, user("the"), "<think>a</think>the")[1]


def test_a_template_that_quotes_its_contents() -> None:
    """JSON, capitals: what a template makes of a content is content."""
    tokenizer = byte_level()
    for change in ("| tojson", "| upper", "| replace('a', 'b')"):
        tokenizer.chat_template = MARKED.replace("| trim", change)
        ids = chat.encode_prompts(tokenizer, [user('a "<|end|>"', "<|user|>a", "<|end|>")])[0]
        names = [token for token in tokenizer.convert_ids_to_tokens(ids) if token in control_tokens(tokenizer).ids]
        turn = ["<|user|>", "<|end|>", "<|assistant|>", "<|end|>"]
        assert names == [*turn, "<|user|>", "<|end|>", "<|assistant|>"]
