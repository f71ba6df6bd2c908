"""One completion of each policy for every distinct test prompt, and what judges say of them.

Both policies draw with the same uniform numbers: equal policies write equal texts. The mean reward of
neither depends on that; ties and the noise of differences do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
from numpy.typing import NDArray

from plumbline.data_contracts.artifact import write_bytes
from plumbline.data_contracts.errors import ModelError
from plumbline.data_contracts.progress import Progress
from plumbline.data_contracts.records import CuratedPair, Message
from plumbline.tasks.evaluation.measures.subjects import Subjects
from plumbline.tasks.evaluation.measures.win_rate import JudgedPrompts, Pointwise, judge_both_positions
from plumbline.tasks.params.evaluation import EvaluationParams
from plumbline.tasks.params.lengths import settled

if TYPE_CHECKING:
    from plumbline.tasks.models.sampling import Completion

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ChosenPrompts:
    """Distinct prompts in file order, the id of the first pair of each, and counts of those left out."""

    prompts: list[tuple[Message, ...]]
    pair_ids: list[str]
    counts: dict[str, int]


@dataclass(frozen=True, slots=True)
class Samples:
    """Completions (n) of both policies, row by row for the same prompt."""

    prompts: list[tuple[Message, ...]]
    pair_ids: list[str]
    policy: list[Completion]
    reference: list[Completion]

    def only(self, rows: Sequence[int]) -> Samples:
        """Some rows, in the order given."""
        columns = (self.prompts, self.pair_ids, self.policy, self.reference)
        return Samples(*([column[row] for row in rows] for column in columns))  # type: ignore[arg-type]

    def texts(self) -> tuple[list[str], list[str]]:
        """Responses of the policy, responses of the reference."""
        return [completion.text for completion in self.policy], [completion.text for completion in self.reference]

    def length_difference(self) -> Floats:
        """Length of the policy's response less that of the reference's, (n,), characters."""
        policy, reference = self.texts()
        return np.array([len(p) - len(r) for p, r in zip(policy, reference, strict=True)], dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores (m,) of one judge for both completions of the prompts in `rows` (m,), and its verdict."""

    rows: list[int]
    policy: Floats
    reference: Floats
    judged: JudgedPrompts


def choose_prompts(
    test: Sequence[CuratedPair], subjects: Subjects, params: EvaluationParams, judge_length: int
) -> ChosenPrompts:
    """At most `max_prompts` distinct prompts that leave room for `max_new_tokens` in both policies and for the judge.

    Raises `ModelError` when none does.
    """
    from plumbline.tasks.models.chat import encode_prompts

    first: dict[tuple[Message, ...], str] = {}
    for pair in test:
        first.setdefault(pair.prompt, pair.id)
    # the judge reads an end token behind a response that did not reach its own
    context = min(subjects.context, judge_length - 1)
    room = context - settled(params.max_new_tokens)
    lengths = [len(ids) for ids in encode_prompts(subjects.tokenizer, list(first))]
    fitting = [item for item, length in zip(first.items(), lengths, strict=True) if length <= room]
    if not fitting:
        raise ModelError(
            f"Expected test prompts of at most {room} tokens (context {context} less max_new_tokens "
            f"{params.max_new_tokens}), found {len(first)} prompts, the shortest of {min(lengths)} tokens. "
            "Lower evaluation.max_new_tokens or use a model with a longer context."
        )
    chosen = fitting[: params.max_prompts]
    counts = {
        "prompts": len(first),
        "prompts_over_context": len(first) - len(fitting),
        "prompts_beyond_max": len(fitting) - len(chosen),
        "prompts_sampled": len(chosen),
    }
    return ChosenPrompts([prompt for prompt, _ in chosen], [pair_id for _, pair_id in chosen], counts)


def draw(
    chosen: ChosenPrompts, subjects: Subjects, params: EvaluationParams, seed: int, progress: Sequence[Progress]
) -> Samples:
    """Sample both policies with one seed; `progress` holds a watcher for each."""
    from plumbline.tasks.models.sampling import sample

    policy, reference = (
        sample(
            model,
            subjects.tokenizer,
            chosen.prompts,
            max_new_tokens=settled(params.max_new_tokens),
            temperature=params.temperature,
            top_p=params.top_p,
            seed=seed,
            batch_size=params.batch_size,
            progress=watcher,
        )
        for model, watcher in zip(subjects.each(), progress, strict=True)
    )
    return Samples(chosen.prompts, chosen.pair_ids, policy, reference)


def only_judgeable(samples: Samples, subjects: Subjects, judge_length: int) -> Samples:
    """The rows whose prompt with either response has at most `judge_length` tokens.

    A text can be longer in tokens than what was drawn: bytes that are no character decode to one of several tokens.
    Raises `ModelError` when none is left.
    """
    from plumbline.tasks.models.chat import encode_all

    sides = [encode_all(subjects.tokenizer, samples.prompts, texts) for texts in samples.texts()]
    longest = [max(len(head) + len(tail) for head, tail in row) for row in zip(*sides, strict=True)]
    kept = [row for row, length in enumerate(longest) if length <= judge_length]
    if not kept:
        raise ModelError(
            f"Expected samples of at most {judge_length} tokens with their prompts, which is what the judge takes, "
            f"found {len(longest)}, the shortest of {min(longest)}. Lower evaluation.max_new_tokens or raise "
            "reward.max_length."
        )
    return samples.only(kept)


def score_samples(judge: Pointwise, samples: Samples, rows: Sequence[int] | None = None) -> Scores:
    """Scores and position-swapped verdict of a pointwise judge, on all samples or those in `rows`."""
    rows = list(range(len(samples.prompts)) if rows is None else rows)
    scored = samples.only(rows)
    policy, reference = scored.texts()
    judged = judge_both_positions(judge, scored.prompts, policy, reference)
    return Scores(rows, judge.scores(scored.prompts, policy), judge.scores(scored.prompts, reference), judged)


def write_samples(path: Path, samples: Samples, scores: Mapping[str, Scores]) -> None:
    """Write a JSON line per prompt: `pair_id`, `prompt`, texts, how each ended, and each judge's scores.

    `finished`: it ended by itself. `cut_at_tokens`: the limit that cut it, null if none did.
    """
    lines = []
    places = {name: {row: place for place, row in enumerate(score.rows)} for name, score in scores.items()}
    for row, prompt in enumerate(samples.prompts):
        sides = {"policy": samples.policy[row], "reference": samples.reference[row]}
        line: dict[str, Any] = {
            "pair_id": samples.pair_ids[row],
            "prompt": [message.model_dump() for message in prompt],
            **{side: completion.text for side, completion in sides.items()},
            "finished": {side: completion.finished for side, completion in sides.items()},
            "cut_at_tokens": {
                side: None if completion.finished else len(completion.token_ids) for side, completion in sides.items()
            },
            "scores": {
                name: {"policy": float(score.policy[place]), "reference": float(score.reference[place])}
                for name, score in scores.items()
                if (place := places[name].get(row)) is not None
            },
        }
        lines.append(orjson.dumps(line, option=orjson.OPT_SORT_KEYS) + b"\n")
    write_bytes(path, b"".join(lines))
