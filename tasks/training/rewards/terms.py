"""The reward terms, each a plain function in TRL's reward signature:

    f(prompts, completions, completion_ids, **columns) -> list[float | None]

Prompts and completions are conversational: a prompt is a list of {"role", "content"}, a completion a list of one
assistant turn. `TERMS` makes the function of each kind from its params: a new term is a section in
`mixture_params`, a factory here and a line in `TERMS`.
"""

from __future__ import annotations

import asyncio
import inspect
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plumbline.data_contracts.artifact import sha256_file
from plumbline.data_contracts.errors import ModelError, ParamsError
from plumbline.data_contracts.records import Message
from plumbline.tasks.params.mixture import (
    BrevityTermParams,
    ComplianceTermParams,
    FunctionTermParams,
    LengthTermParams,
    RepetitionTermParams,
    RewardModelTermParams,
    SafetyTermParams,
    TermSettings,
)

if TYPE_CHECKING:
    from plumbline.tasks.training.rewards.scoring import RewardModel

Conversation = list[dict[str, str]]
RewardFunction = Callable[..., Any]
"""TRL's reward signature; what it returns is checked by the mixture."""


@dataclass(frozen=True, slots=True)
class Term:
    """A term ready to be called: `identity` names what it depends on besides its params, `max_length` its tokens."""

    function: RewardFunction
    identity: str | None = None
    max_length: int | None = None


def texts_of(completions: Sequence[Conversation]) -> list[str]:
    """The text of each completion: the content of its last turn."""
    return [completion[-1]["content"] for completion in completions]


def _any_of(patterns: Sequence[str]) -> Callable[[str], bool]:
    """A function that finds any of the patterns in a text, upper and lower case alike."""
    compiled = [re.compile(pattern, re.IGNORECASE) for pattern in patterns]
    return lambda text: any(pattern.search(text) for pattern in compiled)


def reward_model(params: RewardModelTermParams, model: RewardModel | None) -> Term:
    """The reward model's score; None if prompt and response exceed its length."""
    if model is None:
        raise ParamsError(
            f"mixture.terms: `{params.title}` is a reward_model, but this run has none. Train one (stage `reward`), or "
            "leave the term out."
        )

    def score(*, prompts: Sequence[Conversation], completions: Sequence[Conversation], **_: Any) -> list[float | None]:
        return model.score_fitting([[Message(**turn) for turn in prompt] for prompt in prompts], texts_of(completions))

    return Term(score, model.digest, model.max_length)


def safety(params: SafetyTermParams, model: RewardModel | None) -> Term:
    """1 for a due refusal, -1 for a missing one, `over_refusal` for a needless one, 0 for an answer that is due."""
    refuses = _any_of(params.refusals)
    judge_requests, identity = _classifier(params) if params.classifier else _lexicon(params)

    def score(*, prompts: Sequence[Conversation], completions: Sequence[Conversation], **_: Any) -> list[float | None]:
        refused = [refuses(text) for text in texts_of(completions)]
        due = judge_requests([_last_user_turn(prompt) for prompt in prompts])
        return [
            (1.0 if done else -1.0) if should else (params.over_refusal if done else 0.0)
            for should, done in zip(due, refused, strict=True)
        ]

    return Term(score, identity)


def brevity(params: BrevityTermParams, model: RewardModel | None) -> Term:
    """Minus `cost` for each word beyond `free_words`, at most 1."""

    def score(*, completions: Sequence[Conversation], **_: Any) -> list[float | None]:
        words = [len(text.split()) for text in texts_of(completions)]
        return [-min(1.0, params.cost * max(0, count - params.free_words)) for count in words]

    return Term(score)


def compliance(params: ComplianceTermParams, model: RewardModel | None) -> Term:
    """Minus the share of rules broken."""
    must = [re.compile(pattern, re.IGNORECASE) for pattern in params.must]
    must_not = [re.compile(pattern, re.IGNORECASE) for pattern in params.must_not]

    def broken(text: str) -> int:
        missing = sum(pattern.search(text) is None for pattern in must)
        return missing + sum(pattern.search(text) is not None for pattern in must_not)

    def score(*, completions: Sequence[Conversation], **_: Any) -> list[float | None]:
        return [-broken(text) / (len(must) + len(must_not)) for text in texts_of(completions)]

    return Term(score)


def length_penalty(params: LengthTermParams, model: RewardModel | None) -> Term:
    """Soft overlong punishment of DAPO (Yu et al. 2025, eq. 13) on the tokens drawn, stop token included."""

    def score(*, completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float | None]:
        free = params.limit - params.buffer
        return [-min(1.0, max(0, len(ids) - free) / params.buffer) for ids in completion_ids]

    return Term(score)


def repetition_penalty(params: RepetitionTermParams, model: RewardModel | None) -> Term:
    """Minus the share of word n-grams that repeat an earlier one; 0 for a text of fewer words."""

    def repeated(text: str) -> float:
        words = text.lower().split()
        grams = [tuple(words[start : start + params.ngram]) for start in range(len(words) - params.ngram + 1)]
        return 1 - len(set(grams)) / len(grams) if grams else 0.0

    def score(*, completions: Sequence[Conversation], **_: Any) -> list[float | None]:
        return [-repeated(text) for text in texts_of(completions)]

    return Term(score)


def function(params: FunctionTermParams, model: RewardModel | None) -> Term:
    """The function at `module:function`, awaited if it is async, within its timeout; known by its module's source."""
    found = _import(params.function)
    _check_signature(found, params.function)
    source = inspect.getsourcefile(inspect.unwrap(found))
    if source is None or not Path(source).is_file():
        raise ParamsError(
            f"{params.function}: expected a function in a Python source file, by whose digest a resumed run knows it; "
            "found none. Wrap it in a function of your own."
        )

    def call(**arguments: Any) -> Any:
        return asyncio.run(found(**arguments)) if inspect.iscoroutinefunction(found) else found(**arguments)

    limited = call if params.timeout_s is None else _within(params.timeout_s, call)
    return Term(limited, f"{params.function} {sha256_file(Path(source))}")


TERMS: Mapping[str, Callable[[Any, RewardModel | None], Term]] = {
    "reward_model": reward_model,
    "safety": safety,
    "brevity": brevity,
    "compliance": compliance,
    "length_penalty": length_penalty,
    "repetition_penalty": repetition_penalty,
    "function": function,
}


def build_term(params: TermSettings, model: RewardModel | None) -> Term:
    """The term of one section. Raises `ParamsError` or `ModelError` for what it names and is not there."""
    return TERMS[str(getattr(params, "kind"))](params, model)  # noqa: B009 (the kind stands in each subclass)


def _last_user_turn(prompt: Conversation) -> str:
    return next((turn["content"] for turn in reversed(prompt) if turn["role"] == "user"), "")


Requests = Callable[[list[str]], list[bool]]


def _lexicon(params: SafetyTermParams) -> tuple[Requests, str | None]:
    asks = _any_of(params.asks)
    return lambda requests: [asks(request) for request in requests], None


def _classifier(params: SafetyTermParams) -> tuple[Requests, str | None]:
    """A text-classification model's probabilities for requests, and the digest of its weights."""
    from transformers import pipeline

    from plumbline.tasks.models.checkpoints import weights_digest

    folder = Path(params.classifier or "")
    identity = weights_digest(folder)
    classify = pipeline("text-classification", model=str(folder), device="cpu", top_k=None)
    labels = sorted(classify.model.config.label2id)
    if params.classifier_label not in labels:
        raise ModelError(
            f"{folder}: expected a classifier with the label {params.classifier_label!r}, found {labels[:10]}. Set "
            "classifier_label to the one of a request to refuse."
        )

    def unsafe(requests: list[str]) -> list[bool]:
        # a request that spells the classifier's special tokens is text like any other
        answers = classify(requests, truncation=True, split_special_tokens=True) if requests else []
        scores = [{row["label"]: row["score"] for row in answer}[params.classifier_label] for answer in answers]
        return [score >= params.classifier_threshold for score in scores]

    return unsafe, identity


def _import(path: str) -> Callable[..., Any]:
    module, name = path.split(":")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ParamsError(
            f"{path}: expected an importable reward function, found {type(error).__name__}: {error}. Put the "
            "module into the workspace, install it, or name its folder in PYTHONPATH; check the spelling of "
            "`module:function`."
        ) from error
    if not inspect.isroutine(found):
        raise ParamsError(f"{path}: expected a function, found {type(found).__name__}. Name a function.")
    return found


def _check_signature(found: Callable[..., Any], path: str) -> None:
    try:
        inspect.signature(found).bind(prompts=[], completions=[], completion_ids=[])
    except TypeError as error:
        raise ParamsError(
            f"{path}: expected TRL's reward signature, f(prompts, completions, completion_ids, **kwargs), found "
            f"{path.split(':')[1]}{inspect.signature(found)}: {error}. Columns of a dataset are not passed on; take "
            "what is not needed as **kwargs."
        ) from error


def _within(seconds: float, call: RewardFunction) -> RewardFunction:
    """`call` in a thread of its own; raises TimeoutError where it is not done in time."""

    def limited(**arguments: Any) -> Any:
        outcome: dict[str, Any] = {}

        def work() -> None:
            try:
                outcome["value"] = call(**arguments)
            except BaseException as error:
                outcome["error"] = error

        thread = threading.Thread(target=work, daemon=True, name="reward function")
        thread.start()
        thread.join(seconds)
        if thread.is_alive():
            raise TimeoutError(f"no answer within {seconds:g} s")
        if "error" in outcome:
            raise outcome["error"]
        return outcome["value"]

    return limited
