"""Messages to tokens: the chat template, the end of a completion, and what fits into the context.

One rule holds for every stage (SFT, reward model, DPO, evaluation):

1. A prompt is rendered by the tokenizer's chat template with the generation prompt on; a whole
   conversation without it. Special tokens come from the template alone, as in TRL.
2. The completion starts where the tokens of the prompt and of the whole conversation part
   (TRL 1.16, `common_prefix_length`), and ends with the end-of-assistant token. What a template
   writes behind that token (ChatML: a newline) belongs to no completion, because a sampler stops there.
3. A pair whose prompt with either response exceeds `max_length` tokens is set aside whole and counted:
   nothing is ever cut short, because a response without its end is another response.

`DEFAULT_TEMPLATE` is for tokenizers that have none. It uses no token but the tokenizer's own bos and eos;
roles are plain text. The response follows a space, so that its first word is the token that it is inside
running text, and a response is trimmed, so that a sampled text renders to itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from plumbline.data_contracts.errors import ModelError
from plumbline.data_contracts.records import Message
from plumbline.tasks.models.control_tokens import control_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if not loop.first %}{{ '\\n\\n' }}{% endif %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ 'Assistant:' }}"
    "{% generation %}"
    "{{ (' ' + message['content'] | trim if message['content'] | trim else '') + eos_token }}"
    "{% endgeneration %}"
    "{% else %}"
    "{{ (message['role'] | capitalize) + ': ' + (message['content'] | trim) }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n\\nAssistant:' }}{% endif %}"
)

_PROBE = (Message(role="user", content="Hello"),)


class PairLike(Protocol):
    """The part of a preference pair that `split_by_context` reads."""

    @property
    def prompt(self) -> Sequence[Message]: ...  # noqa: D102
    @property
    def chosen(self) -> str: ...  # noqa: D102
    @property
    def rejected(self) -> str: ...  # noqa: D102


AnyPair = TypeVar("AnyPair", bound=PairLike)


def as_dicts(messages: Iterable[Message]) -> list[dict[str, str]]:
    """Messages in the form that chat templates and TRL take."""
    return [{"role": message.role, "content": message.content} for message in messages]


def set_default_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Give a tokenizer without a chat template `DEFAULT_TEMPLATE`; say whether that was needed."""
    if tokenizer.chat_template is not None:
        return False
    tokenizer.chat_template = DEFAULT_TEMPLATE
    return True


def render_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message]) -> str:
    """The prompt as the text that a policy continues: template with the generation prompt on."""
    return _render(tokenizer, [prompt], add_generation_prompt=True)[0]


def render_pair(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], response: str) -> str:
    """Prompt and response as one text, as the template writes it (anything behind the end token included)."""
    return _render(tokenizer, answered([prompt], [response]), add_generation_prompt=False)[0]


def answered(prompts: Iterable[Sequence[Message]], responses: Iterable[str]) -> list[tuple[Message, ...]]:
    """Each prompt with its response as one conversation."""
    return [
        (*prompt, Message(role="assistant", content=response))
        for prompt, response in zip(prompts, responses, strict=True)
    ]


@lru_cache(maxsize=16)
def _end_token_id(tokenizer: PreTrainedTokenizerBase, template: str) -> int:
    prompt, whole = _tokenise(tokenizer, [render_prompt(tokenizer, _PROBE), render_pair(tokenizer, _PROBE, "Hi")])
    completion = whole[common_prefix(prompt, whole) :]
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    ends = [token for token in completion if token in special]
    if not ends:
        raise ModelError(
            "The chat template must end an assistant turn with a special token (eos, <|im_end|>, …), so that a "
            f"sampler knows where to stop; found {tokenizer.decode(completion)!r} for the response 'Hi'. "
            "Use a template that writes eos_token behind the content, or remove the template to get the default one."
        )
    return int(ends[-1])


def end_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Id of the token with which the chat template ends an assistant turn.

    Raises `ModelError` when there is no template or its assistant turns end with no special token.
    """
    if tokenizer.chat_template is None:
        raise ModelError(
            "The tokenizer has no chat template. Load it with `load_tokenizer`, which sets the default one, "
            "or save a `chat_template.jinja` beside it."
        )
    return _end_token_id(tokenizer, str(tokenizer.chat_template))


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[Message]]) -> list[list[int]]:
    """Token ids of each prompt, generation prompt included."""
    return _encode(tokenizer, prompts, add_generation_prompt=True)


def encode_conversations(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[Message]]
) -> list[list[int]]:
    """Token ids of each conversation as the template writes it, without a generation prompt."""
    return _encode(tokenizer, conversations, add_generation_prompt=False)


def encode_all(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[Message]], completions: Sequence[str]
) -> list[tuple[list[int], list[int]]]:
    """`encode` for many pairs at once (one tokenizer call)."""
    end = end_token_id(tokenizer)
    heads = encode_prompts(tokenizer, prompts)
    wholes = encode_conversations(tokenizer, answered(prompts, completions))
    return [_cut(head, whole, end) for head, whole in zip(heads, wholes, strict=True)]


def encode_wholes(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[Message]], completions: Sequence[str]
) -> list[list[int]]:
    """Prompt and completion in one, as `encode_all` gives them: for readers that need not tell them apart."""
    end = end_token_id(tokenizer)
    wholes = encode_conversations(tokenizer, answered(prompts, completions))
    return [_cut([], whole, end)[1] for whole in wholes]


def encode(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], completion: str
) -> tuple[list[int], list[int]]:
    """Token ids of a prompt and of a completion, end-of-assistant token included.

    Their concatenation is what TRL's trainers see for the same conversation, except for what a template
    writes behind the end token (rule 2 of this module).
    """
    return encode_all(tokenizer, [prompt], [completion])[0]


def split_by_context(
    pairs: Sequence[AnyPair], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[list[AnyPair], list[AnyPair]]:
    """Split pairs into (kept, too long): kept ones fit `max_length` tokens with either response."""
    prompts = [pair.prompt for pair in pairs]
    chosen = encode_all(tokenizer, prompts, [pair.chosen for pair in pairs])
    rejected = encode_all(tokenizer, prompts, [pair.rejected for pair in pairs])
    kept: list[AnyPair] = []
    too_long: list[AnyPair] = []
    for pair, *sides in zip(pairs, chosen, rejected, strict=True):
        longest = max(len(head) + len(tail) for head, tail in sides)
        (kept if longest <= max_length else too_long).append(pair)
    return kept, too_long


def refused_by_template(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[Message]], *, prompt: bool
) -> dict[int, str]:
    """Places of the conversations that the template refuses, as prompts or as wholes, and its reason for each."""
    if _try_to_render(tokenizer, conversations, prompt) is None:
        return {}
    tried = (_try_to_render(tokenizer, [messages], prompt) for messages in conversations)
    return {place: _reason(error) for place, error in enumerate(tried) if error is not None}


def _render(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[Message]], *, add_generation_prompt: bool
) -> list[str]:
    if not conversations:
        return []
    try:
        texts: list[str] = tokenizer.apply_chat_template(
            [as_dicts(messages) for messages in conversations],
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
    except _raised_by_templates() as error:
        if len(conversations) > 1:  # one by one, to name the one that is refused
            for messages in conversations:
                _render(tokenizer, [messages], add_generation_prompt=add_generation_prompt)
        roles = [message.role for message in conversations[0]]
        raise ModelError(
            f"The chat template refuses a conversation with the roles {roles[:8]}: {_reason(error)}. Curate such "
            "conversations out, or use a chat template that knows these roles."
        ) from error
    return texts


def _try_to_render(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[Message]], prompt: bool
) -> Exception | None:
    try:
        _render(tokenizer, conversations, add_generation_prompt=prompt)
    except ModelError as error:
        cause = error.__cause__
        return cause if isinstance(cause, Exception) else error
    return None


def _raised_by_templates() -> tuple[type[Exception], ...]:
    """The errors of a template: TemplateError (`raise_exception`, undefined names), and those of its expressions."""
    from jinja2 import TemplateError

    return (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError)


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _encode(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[Message]], *, add_generation_prompt: bool
) -> list[list[int]]:
    """One tokenizer call for the conversations that spell no control token; the others with care, one by one."""
    control = control_tokens(tokenizer)
    careful = {
        row
        for row, messages in enumerate(conversations)
        if any(control.spelled(message.content) for message in messages)
    }

    def render(messages: Sequence[Message]) -> str:
        return _render(tokenizer, [messages], add_generation_prompt=add_generation_prompt)[0]

    plain = [messages for row, messages in enumerate(conversations) if row not in careful]
    texts = _render(tokenizer, plain, add_generation_prompt=add_generation_prompt)
    ids = iter(_tokenise(tokenizer, texts))
    return [
        control.encode(messages, render) if row in careful else next(ids) for row, messages in enumerate(conversations)
    ]


def _tokenise(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    if not texts:
        return []
    ids: Any = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
    return [list(row) for row in ids]


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """The number of ids with which two sequences begin in common."""
    length = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        length += 1
    return length


def _cut(head: list[int], whole: list[int], end: int) -> tuple[list[int], list[int]]:
    start = common_prefix(head, whole)
    stop = len(whole)
    while stop > start and whole[stop - 1] != end:
        stop -= 1
    return whole[:start], whole[start:stop] if stop > start else whole[start:]
