"""A language model as judge, over the OpenAI chat protocol.

1. Equal texts of a group are one candidate: they tie by definition, and nobody is asked.
2. The distinct texts become questions, each pair or the whole list. Positions are drawn from the seed and the content
   alone, so the judgement of a group depends neither on the order of its candidates nor on its neighbours.
3. Questions go to the cache first, then to the server.
4. Replies become places; places become `wins` (the mean over the orders asked) and `ranks` (by expected wins,
   Copeland's rule with ties at ½). A group with an answer that is no verdict has no judgement.

Not covered: the judge's reliability (`noise`), which calibration measures from outside.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from plumbline.data_contracts.errors import JudgeError
from plumbline.tasks.models.judging import Floats, Judgement, Prompt, Verdicts
from plumbline.tasks.params.llm_judge import LlmJudgeParams
from plumbline.tasks.training.rewards.judges.cache import ReplyCache
from plumbline.tasks.training.rewards.judges.chat_client import ChatClient, JudgeReply, Request, where
from plumbline.tasks.training.rewards.judges.pairwise import from_wins
from plumbline.tasks.training.rewards.judges.parsing import (
    TRANSPORT,
    Places,
    Reply,
    Unusable,
    read_verdict,
    response_format,
)
from plumbline.tasks.training.rewards.judges.rubric import LABELS, Question, Rubric, ask, load_rubric

_NOT_IDENTITY = {
    "base_url", "api_key_env", "rubric", "timeout_seconds", "deadline_seconds", "max_retries", "concurrency",
    "on_unusable", "max_unusable_share", "price_prompt", "price_completion",
}  # fmt: skip
"""Params that change what judging costs and when it stops, but no judgement; the rubric counts by its digest."""


@dataclass(frozen=True, slots=True)
class _Group:
    """One group: its number of distinct texts, each candidate's place among them, and what is asked about them.

    A question that two groups share has one key, but each group's own indices.
    """

    size: int
    members: tuple[int, ...]  # (K,) candidate -> index of its text
    asked: tuple[tuple[str, tuple[int, ...]], ...]  # key of a question, and the text at each of its positions


@dataclass
class _Batch:
    """The questions and results so far of one call."""

    groups: list[_Group] = field(default_factory=list)
    questions: dict[str, Question] = field(default_factory=dict)
    places: dict[str, Places] = field(default_factory=dict)
    unusable: dict[str, Unusable] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0  # summed over requests
    spoilt: set[int] = field(default_factory=set)  # groups with an unusable answer
    lost: set[int] = field(default_factory=set)  # those whose answer never came

    @cached_property
    def groups_of(self) -> dict[str, list[int]]:
        """Groups that a question serves: equal groups share theirs."""
        found: dict[str, list[int]] = {}
        for index, group in enumerate(self.groups):
            for key, _ in group.asked:
                found.setdefault(key, []).append(index)
        return found

    def spoil(self, key: str, why: Unusable) -> None:
        """Note that a question has no verdict."""
        self.unusable[key] = why
        self.spoilt.update(self.groups_of[key])
        if why.reason in TRANSPORT:
            self.lost.update(self.groups_of[key])


class LlmJudge:
    """`tasks.models.judging.Judge` over an OpenAI-compatible server.

    Raises `JudgeError` when the rubric is none, or the API key's environment variable is not set.
    """

    name = "llm"

    def __init__(self, params: LlmJudgeParams, cache_folder: Path, *, noise: float | None = None) -> None:
        self.params = params
        self.noise = noise
        self.rubric: Rubric = load_rubric(params.rubric)
        self.cache = ReplyCache(cache_folder)
        self._client = ChatClient(params)

    @property
    def digest(self) -> str:
        """SHA-256 over the rubric's digest, the model, and every setting that may change a judgement."""
        return _sha256({"rubric": self.rubric.digest, **self.params.model_dump(exclude=_NOT_IDENTITY)})

    def judge(self, prompts: Sequence[Prompt], groups: Sequence[Sequence[str]]) -> Verdicts:
        """Judge G prompts with K candidates each.

        `counts`: `groups`, `questions` (distinct), `cached`, `requests`, `retries`, `cache_corrupt`; `unusable`
        (groups), `unusable_answers` and `unusable/<reason>`; `prompt_tokens`, `completion_tokens` and `cost` of this
        call's requests; `seconds` (wall clock) and `request_seconds` (summed over requests). For position bias:
        `decided` answers without a tie for the first place, `first_shown_won` among them; `swapped_pairs` asked in
        both orders, `order_conflicts` among them. Raises `JudgeError` when the judge cannot work at all, or leaves
        more groups without a judgement than params allow.
        """
        started = time.perf_counter()
        batch = self._lay_out(prompts, groups)
        self._answer(batch)
        judgements = [
            None if index in batch.spoilt else _judgement(group, batch) for index, group in enumerate(batch.groups)
        ]
        return Verdicts(judgements, self._counts(batch, time.perf_counter() - started))

    # 1. and 2. questions

    def _lay_out(self, prompts: Sequence[Prompt], groups: Sequence[Sequence[str]]) -> _Batch:
        _check_shapes(prompts, groups, self.params.mode)
        batch = _Batch()
        for prompt, candidates in zip(prompts, groups, strict=True):
            texts = tuple(sorted(set(candidates)))
            places = {text: index for index, text in enumerate(texts)}
            asked = []
            for question in self._questions(prompt, texts):
                key = _sha256([self.rubric.digest, self.params.model_revision, self._request(question)])
                batch.questions[key] = question
                asked.append((key, question.shown))
            batch.groups.append(_Group(len(texts), tuple(places[text] for text in candidates), tuple(asked)))
        return batch

    def _questions(self, prompt: Prompt, texts: Sequence[str]) -> list[Question]:
        if len(texts) < 2:
            return []
        return [ask(self.rubric, self.params.mode, prompt, texts, order) for order in self._orders(prompt, texts)]

    def _orders(self, prompt: Prompt, texts: Sequence[str]) -> list[list[int]]:
        """Positions of each question: indices into the sorted distinct texts."""
        if self.params.mode == "listwise":
            return [self._shuffled(prompt, texts, range(len(texts)))]
        pairs = itertools.combinations(range(len(texts)), 2)
        if self.params.order == "both":
            return [order for low, high in pairs for order in ([low, high], [high, low])]
        return [self._shuffled(prompt, texts, pair) for pair in pairs]

    def _shuffled(self, prompt: Prompt, texts: Sequence[str], indices: Iterable[int]) -> list[int]:
        order = list(indices)
        turns = [[turn.role, turn.content] for turn in prompt]
        draw = _sha256([self.params.seed, turns, [texts[index] for index in order]])
        random.Random(int(draw, 16)).shuffle(order)
        return order

    def _request(self, question: Question) -> dict[str, Any]:
        params = self.params
        optional = {
            "temperature": params.temperature,
            "response_format": response_format(params.mode, question.labels, params.structured),
            "extra_body": params.extra_body or None,
        }
        return {
            "model": params.model,
            "messages": list(question.messages),
            "seed": params.seed,
            "max_completion_tokens": params.max_tokens,
            **{key: value for key, value in optional.items() if value is not None},
        }

    # 3. answers

    def _answer(self, batch: _Batch) -> None:
        """Bring an answer to every question, from the cache or the server, and stop when too few are verdicts."""
        missing: dict[str, Request] = {}
        for key, question in batch.questions.items():
            found = self.cache.read(key)
            batch.counts["cache_corrupt"] += found.corrupt
            if found.reply is None:
                missing[key] = self._request(question)
            else:
                batch.counts["cached"] += 1
                self._take(batch, key, found.reply)

        def wanted(key: str) -> bool:
            # a group that a silent server has cost already is not worth more waiting
            return not batch.lost.issuperset(batch.groups_of[key])

        def received(key: str, answer: JudgeReply) -> None:
            batch.counts["requests"] += 1
            batch.counts["retries"] += answer.retries
            batch.seconds += answer.seconds
            if isinstance(answer.outcome, Reply):
                batch.counts["prompt_tokens"] += answer.outcome.prompt_tokens
                batch.counts["completion_tokens"] += answer.outcome.completion_tokens
                self.cache.write(key, answer.outcome)
            self._take(batch, key, answer.outcome)

        self._client.ask_all(missing, wanted, received)

    def _take(self, batch: _Batch, key: str, outcome: Reply | Unusable) -> None:
        """Note the verdict or the reason for none. Raises `JudgeError` once params allow no more of the latter."""
        labels = batch.questions[key].labels
        verdict = read_verdict(outcome, self.params.mode, labels) if isinstance(outcome, Reply) else outcome
        if not isinstance(verdict, Unusable):
            batch.places[key] = verdict
            return
        batch.spoil(key, verdict)
        allowed = 0.0 if self.params.on_unusable == "fail" else self.params.max_unusable_share
        if len(batch.spoilt) > allowed * len(batch.groups):
            raise self._too_many(batch, verdict)

    def _too_many(self, batch: _Batch, last: Unusable) -> JudgeError:
        reasons = Counter(why.reason for why in batch.unusable.values())
        listed = ", ".join(f"{reason} {number}" for reason, number in sorted(reasons.items()))
        limit = (
            "on_unusable: fail allows none"
            if self.params.on_unusable == "fail"
            else f"max_unusable_share allows {self.params.max_unusable_share:g}"
        )
        advice = (
            "See that the server is up and fast enough, or raise timeout_seconds or max_retries"
            if last.reason in TRANSPORT
            else "Choose a model that keeps to the rubric's form, structured: json_schema where the server knows it, "
            "or more max_tokens"
        )
        return JudgeError(
            f"{where(self.params)}: expected verdicts, found none for {len(batch.spoilt)} of {len(batch.groups)} "
            f"groups so far ({limit}). Unusable answers by reason: {listed}. Last: {last.reason}, {last.found}. "
            f"{advice}."
        )

    def _counts(self, batch: _Batch, seconds: float) -> Mapping[str, float]:
        totals = Counter(batch.counts)
        for why in batch.unusable.values():
            totals[f"unusable/{why.reason}"] += 1
        totals.update(_position_counts(batch))
        tokens = ("prompt_tokens", "completion_tokens")
        prices = (self.params.price_prompt, self.params.price_completion)
        always = ("cached", "requests", "retries", "cache_corrupt", *tokens)
        return {
            **{name: 0.0 for name in always},
            **{name: float(number) for name, number in sorted(totals.items())},
            "groups": float(len(batch.groups)),
            "questions": float(len(batch.questions)),
            "unusable": float(len(batch.spoilt)),
            "unusable_answers": float(len(batch.unusable)),
            "cost": sum(totals[name] * price for name, price in zip(tokens, prices, strict=True)) / 1e6,
            "seconds": seconds,
            "request_seconds": batch.seconds,
        }


def _judgement(group: _Group, batch: _Batch) -> Judgement:
    """Ranks and wins of a group all of whose questions have a verdict."""
    shape = (group.size, group.size)
    won, asked = np.zeros(shape), np.zeros(shape)
    for key, shown in group.asked:
        placed = zip(shown, batch.places[key], strict=True)
        for (row, row_place), (column, column_place) in itertools.permutations(placed, 2):
            won[row, column] += 0.5 + 0.5 * np.sign(column_place - row_place)
            asked[row, column] += 1
    distinct = np.divide(won, asked, out=np.full(shape, 0.5), where=asked > 0)
    wins: Floats = distinct[np.ix_(group.members, group.members)]  # (K, K)
    return from_wins(wins)


def _position_counts(batch: _Batch) -> Counter[str]:
    counts: Counter[str] = Counter(decided=0, first_shown_won=0, swapped_pairs=0, order_conflicts=0)
    for places in batch.places.values():
        counts["decided"] += min(places) == 1.0
        counts["first_shown_won"] += places[0] == 1.0
    for group in batch.groups:
        by_pair: dict[frozenset[int], list[Places]] = {}
        for key, shown in group.asked:
            if key in batch.places and len(shown) == 2:
                by_pair.setdefault(frozenset(shown), []).append(batch.places[key])
        swapped = [found for found in by_pair.values() if len(found) == 2]
        counts["swapped_pairs"] += len(swapped)
        counts["order_conflicts"] += sum(one != other[::-1] for one, other in swapped)
    return counts


def _check_shapes(prompts: Sequence[Prompt], groups: Sequence[Sequence[str]], mode: str) -> None:
    if len(prompts) != len(groups):
        raise JudgeError(f"Expected a group of candidates for each prompt, found {len(prompts)} and {len(groups)}.")
    if any(not group for group in groups):
        raise JudgeError("Expected at least one candidate in each group, found an empty group.")
    largest = max((len(set(group)) for group in groups), default=0)
    if mode == "listwise" and largest > len(LABELS):
        raise JudgeError(
            f"Expected at most {len(LABELS)} distinct candidates in a list, found {largest}. Choose mode: pairwise."
        )


def _sha256(value: Any) -> str:
    # json, not orjson: texts may hold lone surrogates
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
