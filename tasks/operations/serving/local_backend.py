"""A checkpoint that answers in this process: one model, one thread at a time.

Given a seed the answer is that of `tasks.models.sampling.sample` with the same settings. What a request leaves open is
taken from the checkpoint's generation settings, and then from params.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from plumbline.data_contracts.errors import ModelError
from plumbline.tasks.operations.serving.chat import BackendError, ChatRequest, Piece
from plumbline.tasks.operations.serving.text_stream import TextStream

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Defaults:
    """Settings if neither request nor checkpoint has them; `most_tokens` holds for every request."""

    temperature: float
    top_p: float
    tokens: int
    most_tokens: int


@dataclass(frozen=True, slots=True)
class LocalSpec:
    """All that a process needs to load a checkpoint and answer with it. The folder was verified before."""

    folder: Path
    defaults: Defaults
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    threads: int = 1
    trust_remote_code: bool = False


class LocalBackend:
    """A loaded checkpoint. `lanes` is 1: a second request waits, which costs no more than sharing the processor."""

    lanes = 1

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, defaults: Defaults) -> None:
        from plumbline.tasks.models.loading import context_length
        from plumbline.tasks.models.sampling import stop_token_ids

        self._model: PreTrainedModel | None = model.eval()
        self._tokenizer = tokenizer
        self._stops = stop_token_ids(model, tokenizer)
        self._context = context_length(model.config, tokenizer)
        self._defaults = _of_checkpoint(model, defaults)
        self._most = defaults.most_tokens

    @classmethod
    def load(cls, spec: LocalSpec) -> LocalBackend:
        """Load a checkpoint and answer once, so that no user waits for the first time. Raises `ModelError`."""
        import torch

        from plumbline.data_contracts.records import Message
        from plumbline.tasks.models.loading import load_policy, load_tokenizer

        torch.set_num_threads(spec.threads)
        model = load_policy(spec.folder, dtype=spec.dtype, trust_remote_code=spec.trust_remote_code)
        tokenizer = load_tokenizer(spec.folder, trust_remote_code=spec.trust_remote_code)
        backend = cls(model, tokenizer, spec.defaults)
        probe = ChatRequest((Message(role="user", content="Hello"),), max_tokens=1, seed=0)
        list(backend.pieces(probe, threading.Event()))
        return backend

    def pieces(self, request: ChatRequest, cancelled: threading.Event) -> Iterator[Piece]:
        """The answer, bit by bit. Raises `BackendError` if the conversation cannot be answered."""
        import torch

        from plumbline.tasks.models.streaming import stream_ids

        assert self._model is not None, "closed"
        head = self._encode(request)
        room = min(self._tokens(request), self._context - len(head))
        seed = secrets.randbits(31) if request.seed is None else request.seed % 2**63
        draws = torch.rand(room, generator=torch.Generator().manual_seed(seed))
        text, count, ended = TextStream(self._decode, request.stop), 0, False
        for token in stream_ids(
            self._model,
            head,
            draws,
            stops=self._stops,
            temperature=_or(request.temperature, self._defaults.temperature),
            top_p=_or(request.top_p, self._defaults.top_p),
        ):
            count += 1
            ended = token in self._stops
            shown = "" if ended else text.push(token)
            if cancelled.is_set():
                return
            if shown:
                yield Piece(shown)
            if ended or text.stopped:
                break
        yield Piece(text.finish(), "stop" if ended or text.stopped else "length", len(head), count)

    def alive(self) -> bool:
        """As long as this process is."""
        return True

    def close(self) -> None:
        """Let go of the weights."""
        self._model = None

    def _tokens(self, request: ChatRequest) -> int:
        return int(min(_or(request.max_tokens, self._defaults.tokens), self._most))

    def _encode(self, request: ChatRequest) -> list[int]:
        from plumbline.tasks.models.chat import encode_prompts

        try:
            (head,) = encode_prompts(self._tokenizer, [request.messages])
        except ModelError as error:
            raise BackendError(str(error), status=400, code="invalid_messages") from error
        if len(head) >= self._context:
            raise BackendError(
                f"This model's context is {self._context} tokens, the messages take {len(head)} and leave no room for "
                "an answer. Shorten them.",
                status=400,
                code="context_length_exceeded",
            )
        return head

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _of_checkpoint(model: PreTrainedModel, defaults: Defaults) -> Defaults:
    """The defaults with what the checkpoint's generation settings say in their place."""
    stated: Any = getattr(model, "generation_config", None)
    tokens = getattr(stated, "max_new_tokens", None)
    return Defaults(
        temperature=_or(getattr(stated, "temperature", None), defaults.temperature),
        top_p=_or(getattr(stated, "top_p", None), defaults.top_p),
        tokens=min(_or(tokens, defaults.tokens), defaults.most_tokens),
        most_tokens=defaults.most_tokens,
    )


def _or(given: Any, default: Any) -> Any:
    return default if given is None else given
