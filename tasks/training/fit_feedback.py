"""Verb: tell before any training what a run could do with curated feedback and a model.

What fits the context, how many pairs and prompts each split has, which checks cannot pass with so little and what to
change, minutes and disk. Nothing is trained, and nothing is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from plumbline.data_contracts.records import CuratedPair
from plumbline.tasks.params.curation import SPLITS
from plumbline.tasks.params.lengths import with_length
from plumbline.tasks.params.whole import Params
from plumbline.tasks.training.data_needs import (
    EVALUATION,
    SplitTokens,
    data_needs,
    pair_limits,
    prompt_limits,
    tokenise_split,
)
from plumbline.tasks.training.footprint import footprints, parameters, read_shapes

_COPIES = 3  # workspace, DVC's cache, the workspace's own remote


def fit_feedback(
    params: Params, splits: Mapping[str, Sequence[CuratedPair]], base: str, feedback_bytes: int
) -> dict[str, Any]:
    """Account for a base model (a folder or a Hugging Face name) and curated splits, JSON-able; see the module.

    "needs" holds `DataNeed`s. "assumed_completion_length" is the most tokens that π_ref's completions may turn out to
    need, which the account goes by where params leave a length open, else None. Raises `ModelError` for a model that
    cannot be read.
    """
    from transformers import AutoConfig

    from plumbline.tasks.models.completion_lengths import cap_of
    from plumbline.tasks.models.loading import context_length, load_tokenizer, resolve
    from plumbline.tasks.training.speed import Tokens, measure_rates, minutes

    trust = params.reference.trust_remote_code
    folder = resolve(base, params.reference.revision, trust_remote_code=trust)
    tokenizer = load_tokenizer(folder, trust_remote_code=trust)
    context = context_length(AutoConfig.from_pretrained(folder, trust_remote_code=trust), tokenizer)
    assumed = cap_of(min(context, params.derived.longest_sequence)) if params.derived.measures_lengths else None
    if assumed is not None:
        params = with_length(params, assumed)
    shapes = read_shapes(folder)
    read = {name: tokenise_split(splits[name], tokenizer) for name in SPLITS}
    rates = measure_rates(folder, tokenizer, read["train"].fitting(context), parameters(shapes), params)
    shortest = min(pair_limits(params, context).values())
    tokens = {name: Tokens.of(split.fitting(shortest), list(split.prompts.values())) for name, split in read.items()}
    stages = footprints(params, shapes, feedback_bytes)
    return {
        "model": {"base": base, "parameters": parameters(shapes), "context_length": context},
        "assumed_completion_length": assumed,
        "splits": {name: _account(name, split, params, context) for name, split in read.items()},
        "needs": [asdict(need) for need in data_needs(params, read, context)],
        "minutes": {name: round(taken, 2) for name, taken in minutes(params, rates, tokens).items()},
        "minutes_how": rates.how,
        "disk": {
            "added_bytes": _COPIES * sum(stage.kept for stage in stages.values()) + stages["finetune"].kept,
            "working_bytes": sum(stage.working for stage in stages.values()),
        },
    }


def _account(name: str, split: SplitTokens, params: Params, context: int) -> dict[str, Any]:
    """Counts of one split, and what would be set aside as too long, by the section of params that reads it."""
    lengths, prompts = [ids.longest for ids in split.tokens], split.prompts
    pairs, rooms = pair_limits(params, context), prompt_limits(params, context)
    readers = ["reward", EVALUATION] if name == "test" else [key for key in pairs if key != EVALUATION]
    samplers = [key for key in rooms if (key == EVALUATION) == (name == "test")]
    return {
        "pairs": len(split.pairs),
        "prompts": len(prompts),
        "refused_by_template": split.refused,
        "tokens": {
            "median": int(np.median(lengths)) if lengths else 0,
            "p95": int(np.quantile(lengths, 0.95)) if lengths else 0,
            "longest": max(lengths, default=0),
        },
        "pairs_too_long": {key: len(lengths) - len(split.fitting(pairs[key])) for key in readers},
        "prompts_too_long": {key: len(prompts) - split.prompts_within(rooms[key]) for key in samplers},
    }
