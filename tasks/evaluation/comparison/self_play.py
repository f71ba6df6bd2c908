"""Self-play: the tuned policy and π_ref answer the same training prompts, and a judge makes pairs of their answers.

1. Prompts are drawn from the training pairs by the seed and the policy's digest: a later policy meets others.
2. Both policies answer each prompt once, with random draws of their own. What did not end by itself, is empty, or
   is the same twice cannot be a pair: left out and counted.
3. The judge sees the two in an order drawn per prompt. Ties and unusable verdicts are left out and counted.
4. Each pair becomes a row in TRL's conversational format, with who judged it and whose answer was chosen.

The same inputs give the same rows, byte for byte.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plumbline.data_contracts.errors import JudgeError, ModelError
from plumbline.data_contracts.progress import Progress, silent
from plumbline.data_contracts.records import CuratedPair, Message
from plumbline.tasks.models.judging import Judge, Judgement, rubric_of
from plumbline.tasks.params.comparison import SelfPlayParams
from plumbline.tasks.params.lengths import settled

Prompt = tuple[Message, ...]
_SIDES = ("policy", "reference")


@dataclass(frozen=True, slots=True)
class Side:
    """One player: the folder of its model, and its digest."""

    folder: Path
    digest: str


@dataclass(frozen=True, slots=True)
class SelfPlayMeeting:
    """Both answers to one prompt; `shown` names them in the order in which the judge sees them."""

    prompt: Prompt
    answers: dict[str, str]
    shown: tuple[str, str]


@dataclass(frozen=True, slots=True)
class Played:
    """Rows to ingest, and counts: `prompts` = `pairs` + `ties` + `unusable` + `same` + `empty` + `unfinished`."""

    rows: list[dict[str, Any]]
    counts: dict[str, int]


def play(
    policy: Side,
    reference: Side,
    train: Sequence[CuratedPair],
    judge: Judge,
    params: SelfPlayParams,
    seed: int,
    progress: Progress = silent,
    *,
    trust_remote_code: bool = False,
) -> Played:
    """Let both answer, ask the judge, and make rows.

    Raises `ModelError` when no training prompt leaves room for an answer, and `JudgeError` when no pair is left.
    """
    draw = random.Random(f"{seed} {policy.digest} {reference.digest}")
    prompts, texts, counts = _answer(policy, reference, train, params, seed, draw, progress, trust_remote_code)
    meetings = meet(prompts, texts, draw)
    verdicts = judge.judge(
        [each.prompt for each in meetings], [[each.answers[side] for side in each.shown] for each in meetings]
    )
    if len(verdicts.judgements) != len(meetings):
        raise JudgeError(
            f"expected {len(meetings)} verdicts from the judge {judge.name}, found {len(verdicts.judgements)}. "
            f"Report it."
        )
    rubric = rubric_of(judge)
    origin = {
        "judge": {"name": judge.name, "digest": judge.digest, **({"rubric": rubric} if rubric else {})},
        "policy": policy.digest,
        "reference": reference.digest,
        "seed": seed,
    }
    rows = []
    for meeting, judgement in zip(meetings, verdicts.judgements, strict=True):
        winner = decide(judgement, meeting.shown, params.tie_margin)
        if winner in _SIDES:
            rows.append(_row(meeting, winner, origin))
        counts[winner if winner not in _SIDES else f"won_by_{winner}"] += 1
    named = ("unfinished", "empty", "same", "ties", "unusable", "won_by_policy", "won_by_reference")
    found = {"prompts": len(prompts), "pairs": len(rows), **{name: counts[name] for name in named}}
    if not rows:
        raise JudgeError(
            f"expected a judged pair or more from {len(prompts)} prompts, found none: {found}. Raise "
            f"self_play.prompts; or self_play.max_new_tokens, where answers do not end; or take another judge, where "
            f"it cannot tell them apart."
        )
    return Played(rows, found)


def decide(judgement: Judgement | None, shown: tuple[str, str], tie_margin: float) -> str:
    """The winner, "policy" or "reference", by P(first shown wins); else "ties" or "unusable"."""
    if judgement is None:
        return "unusable"
    lead = float(judgement.wins[0, 1]) - 0.5
    if abs(lead) <= tie_margin:
        return "ties"
    return shown[0] if lead > 0 else shown[1]


def meet(
    prompts: Sequence[Prompt], texts: Sequence[tuple[str, str] | None], draw: random.Random
) -> list[SelfPlayMeeting]:
    """Meetings of the prompts that have two answers to compare (policy's, reference's), each shown in drawn order."""
    shown = [_SIDES if draw.random() < 0.5 else _SIDES[::-1] for _ in prompts]  # drawn for all: none moves the others
    return [
        SelfPlayMeeting(prompt, dict(zip(_SIDES, pair, strict=True)), (order[0], order[1]))
        for prompt, pair, order in zip(prompts, texts, shown, strict=True)
        if pair is not None
    ]


def _answer(
    policy: Side,
    reference: Side,
    train: Sequence[CuratedPair],
    params: SelfPlayParams,
    seed: int,
    draw: random.Random,
    progress: Progress,
    trust_remote_code: bool,
) -> tuple[list[Prompt], list[tuple[str, str] | None], Counter[str]]:
    """The drawn prompts; both texts of each, or None if they make no pair; and why not, counted."""
    from plumbline.tasks.models.chat import encode_prompts
    from plumbline.tasks.models.loading import context_length, load_policy, load_tokenizer
    from plumbline.tasks.models.sampling import sample

    tokenizer = load_tokenizer(policy.folder, trust_remote_code=trust_remote_code)
    models = [load_policy(side.folder, trust_remote_code=trust_remote_code).eval() for side in (policy, reference)]
    room = min(context_length(model.config, tokenizer) for model in models) - settled(params.max_new_tokens)
    distinct = list(dict.fromkeys(pair.prompt for pair in train))
    lengths = [len(head) for head in encode_prompts(tokenizer, distinct)]
    fitting = [prompt for prompt, length in zip(distinct, lengths, strict=True) if length <= room]
    if not fitting:
        raise ModelError(
            f"expected training prompts of at most {room} tokens, found {len(distinct)} prompts, none so short. Lower "
            f"self_play.max_new_tokens ({params.max_new_tokens}), or use a model with a longer context."
        )
    prompts = draw.sample(fitting, min(params.prompts, len(fitting)))
    completions = [
        sample(
            model,
            tokenizer,
            prompts,
            max_new_tokens=settled(params.max_new_tokens),
            temperature=params.temperature,
            top_p=params.top_p,
            seed=seed + number,  # the same draws would give alike policies the same text
            batch_size=params.batch_size,
            progress=_half(progress, number),
        )
        for number, model in enumerate(models)
    ]
    counts: Counter[str] = Counter()
    texts: list[tuple[str, str] | None] = []
    for one, other in zip(*completions, strict=True):
        why = _unfit(one.text, other.text, one.finished and other.finished)
        counts.update([why] if why else [])
        texts.append(None if why else (one.text, other.text))
    return prompts, texts, counts


def _half(progress: Progress, before: int) -> Progress:
    """Progress of one of two players, `before` of whom are done."""
    return lambda done, total, note: progress(before * total + done, 2 * total, note)


def _unfit(one: str, other: str, finished: bool) -> str | None:
    if not finished:
        return "unfinished"
    if not one.strip() or not other.strip():
        return "empty"
    return "same" if one == other else None


def _row(meeting: SelfPlayMeeting, winner: str, origin: dict[str, Any]) -> dict[str, Any]:
    loser = _SIDES[1 - _SIDES.index(winner)]
    judge = origin["judge"]
    return {
        "prompt": [message.model_dump() for message in meeting.prompt],
        "chosen": meeting.answers[winner],
        "rejected": meeting.answers[loser],
        "annotator": f"{judge['name']}:{judge['digest']}",
        "meta": {**origin, "chosen_from": winner, "shown_first": meeting.shown[0]},
    }
