"""Compare the data that params ask for with the splits, before any training, and advise what to change."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from plumbline.data_contracts.errors import StageError
from plumbline.data_contracts.records import CuratedPair
from plumbline.tasks.models.pairs import TokenPair
from plumbline.tasks.params.curation import SPLITS
from plumbline.tasks.params.lengths import COMPLETION, NEW_TOKENS, settled
from plumbline.tasks.params.whole import Params

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EVALUATION = "evaluation"
_Z = 1.96  # of a 95 % interval
_LARGEST_SHARE = 0.5  # of the pairs that a test split is advised to take


@dataclass(frozen=True, slots=True)
class DataNeed:
    """A count that params ask for, and the count found. `stops`: a run stops, or its gate cannot pass."""

    key: str
    found: int
    needed: int
    stops: bool
    text: str


@dataclass(frozen=True, slots=True)
class SplitTokens:
    """One split under a model's template: pairs that it renders, how many it refuses, and the tokens of each pair."""

    pairs: list[CuratedPair]
    refused: int
    tokens: list[TokenPair]

    @property
    def prompts(self) -> dict[tuple[object, ...], int]:
        """Distinct prompts in file order, and their tokens."""
        return {pair.prompt: len(ids.prompt_ids) for pair, ids in zip(self.pairs, self.tokens, strict=True)}

    def fitting(self, max_length: int) -> list[TokenPair]:
        """The pairs of at most this many tokens with either response."""
        return [ids for ids in self.tokens if ids.longest <= max_length]

    def prompts_within(self, room: int) -> int:
        """Count the distinct prompts of at most this many tokens."""
        return sum(length <= room for length in self.prompts.values())


def tokenise_split(pairs: Sequence[CuratedPair], tokenizer: PreTrainedTokenizerBase) -> SplitTokens:
    """Render and tokenise a split as the stages do, without a limit of length."""
    from plumbline.tasks.models.pairs import tokenise_pairs
    from plumbline.tasks.models.renderable import sift

    kept, refused = sift(tokenizer, pairs)
    return SplitTokens(kept, len(refused), tokenise_pairs(kept, tokenizer, 2**31).tokens)


def pair_limits(params: Params, context: int) -> dict[str, int]:
    """Longest pair in tokens, by the section of params that reads pairs."""
    sections = {"reward": params.reward.max_length}
    for name in params.finetune.methods:
        if name not in ("grpo", "ppo"):
            sections[f"finetune.{name}"] = getattr(params.finetune, name).max_length
    return {section: min(length, context) for section, length in sections.items()} | {EVALUATION: context}


def prompt_limits(params: Params, context: int) -> dict[str, int]:
    """Longest prompt in tokens that leaves room for an answer, by the section of params that samples answers."""
    sections = {name: getattr(params.finetune, name) for name in params.finetune.methods if name in ("grpo", "ppo")}
    rooms = {f"finetune.{name}": context - settled(own.max_completion_length) for name, own in sections.items()}
    return rooms | {EVALUATION: context - settled(params.evaluation.max_new_tokens)}


def data_needs(params: Params, splits: Mapping[str, SplitTokens], context: int) -> Iterator[DataNeed]:
    """Every need of a run with these params, met or not, in the order in which a run comes to it.

    The lengths of completions are numbers in params (`with_length`).
    """
    yield _readable(params, splits)
    yield from _fitting(params, splits, context)
    yield from _held_out(params, splits["train"])
    yield from _validation(params, splits["validation"], context)
    yield from _gate(params, splits, context)


def _readable(params: Params, splits: Mapping[str, SplitTokens]) -> DataNeed:
    read = sum(len(split.pairs) + split.refused for split in splits.values())
    refused = sum(split.refused for split in splits.values())
    most = math.floor(params.reference.refused_threshold * read)
    return DataNeed(
        "reference.refused_threshold",
        read - refused,
        read - most,
        refused > most,
        f"the chat template refuses {refused} of {read} pairs, of which {most} may be. Correct their roles, or take a "
        f"model whose template renders them.",
    )


def _fitting(params: Params, splits: Mapping[str, SplitTokens], context: int) -> Iterator[DataNeed]:
    """At least one pair, or prompt, for each stage that would stop without."""
    for section, limit in pair_limits(params, context).items():
        for name in ("test",) if section == EVALUATION else SPLITS if section == "reward" else SPLITS[:2]:
            found = len(splits[name].fitting(limit))
            yield DataNeed(
                f"{section}.max_length" if section != EVALUATION else "context",
                found,
                1,
                found < 1,
                f"{found} of {len(splits[name].pairs)} {name} pairs fit {limit} tokens (the context has {context}). "
                f"Raise it up to the context, take a model with a longer one, or lower curation.limits.",
            )
    for section, room in prompt_limits(params, context).items():
        split = splits["test" if section == EVALUATION else "train"]
        found = split.prompts_within(room)
        key = f"{section}.{NEW_TOKENS if section == EVALUATION else COMPLETION}"
        yield DataNeed(
            key,
            found,
            1,
            found < 1,
            f"{found} of {len(split.prompts)} prompts leave room for an answer (at most {room} tokens). Lower "
            f"{key}, or take a model with a longer context.",
        )


def _held_out(params: Params, train: SplitTokens) -> Iterator[DataNeed]:
    from plumbline.tasks.training.rewards.held_out import split_off

    share = params.reward.held_out_share
    if share == 0:
        return
    try:
        found = len(split_off(train.pairs, share, params.seed)[1])
        yield DataNeed("reward.held_out_share", found, 1, False, f"{found} training pairs for the held-out judge.")
    except StageError as error:
        yield DataNeed("reward.held_out_share", 0, 1, True, str(error))


def _validation(params: Params, validation: SplitTokens, context: int) -> Iterator[DataNeed]:
    """Figures that are coarser than params ask, and stop nothing."""
    pairs, prompts = len(validation.fitting(context)), len(validation.prompts)
    for name in params.finetune.methods:
        asked = getattr(params.finetune, name).validation
        counts = [("prompts", prompts, asked.prompts)]
        counts += [("pairs", pairs, asked.pairs)] if hasattr(asked, "pairs") else []
        for what, found, needed in counts:
            yield DataNeed(
                f"finetune.{name}.validation.{what}",
                found,
                needed,
                False,
                f"a share measured on {found} validation {what} is known to ±{_half_width(found):.2f}. Raise "
                f"curation.split.validation, or add pairs.",
            )
    if "grpo" in params.finetune.methods:
        yield DataNeed(
            "judge.calibration_pairs",
            pairs,
            params.judge.calibration_pairs,
            False,
            f"the judge's accuracy, measured on {pairs} validation pairs, is known to ±{_half_width(pairs):.2f}; by "
            f"chance it may fall below judge.min_kappa, which stops the run. Raise curation.split.validation.",
        )


def _gate(params: Params, splits: Mapping[str, SplitTokens], context: int) -> Iterator[DataNeed]:
    gate, most = params.gate, params.evaluation.max_prompts
    room = prompt_limits(params, context)[EVALUATION]
    judged = min(splits["test"].prompts_within(room), most)
    if gate.min_prompts is not None:
        change = _more_test_prompts(params, splits, room, gate.min_prompts)
        text = f"the evaluation would judge {judged} test prompts. {change}"
        yield DataNeed("gate.min_prompts", judged, gate.min_prompts, judged < gate.min_prompts, text)
    if gate.min_win_rate_low is not None and judged:
        half = _half_width(judged)
        lowest = gate.min_win_rate_low + half
        needed = math.ceil((_Z / 2 / max(1 - gate.min_win_rate_low, 1e-9)) ** 2)
        text = (
            f"with {judged} prompts a 95 % interval is ±{half:.2f}: the gate passes from a win rate of about "
            f"{lowest:.2f} on. More test prompts make the interval narrower."
        )
        yield DataNeed("gate.min_win_rate_low", judged, needed, lowest > 1, text)


def _more_test_prompts(params: Params, splits: Mapping[str, SplitTokens], room: int, needed: int) -> str:
    """What to change so that the test split has this many prompts."""
    if params.evaluation.max_prompts < needed:
        return f"Raise evaluation.max_prompts to {needed}."
    there, share = splits["test"].prompts_within(room), params.curation.split.test
    every = sum(split.prompts_within(room) for split in splits.values())
    ways = []
    if every and needed / every <= _LARGEST_SHARE:
        wanted = math.ceil(100 * needed / every) / 100
        ways.append(f"raise curation.split.test from {share:g} to {wanted:g} and lower the others")
    if there:
        ways.append(f"add about {math.ceil((needed - there) * every / there)} pairs with prompts of their own")
        ways.append(f"lower gate.min_prompts to {there}, and trust the gate less")
    if not ways:
        return "None fits the context beside an answer: the cure of evaluation.max_new_tokens comes first."
    text = ", or ".join(ways)
    return f"{text[0].upper()}{text[1:]}."


def _half_width(count: int) -> float:
    """Of a 95 % interval of a share near one half."""
    return _Z * 0.5 / math.sqrt(max(count, 1))
