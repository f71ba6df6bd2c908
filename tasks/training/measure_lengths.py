"""Stage `lengths`: how long π_ref's own completions are, from which every length follows that params leave open."""

from __future__ import annotations

import logging

from plumbline.data_contracts.artifact import write_json
from plumbline.data_contracts.records import CuratedPair, load_jsonl
from plumbline.tasks.models.completion_lengths import QUANTILE
from plumbline.tasks.pipeline.stage import Facts, Stage, StageContext

FILE = "lengths.json"
"""The tokens of each completion, null for one that did not end, in the order drawn."""

logger = logging.getLogger(__name__)


def measure_lengths(
    context: StageContext,
    *,
    seed: int,
    threads: int,
    derived_measures_lengths: bool,
    derived_longest_sequence: int,
    reference_trust_remote_code: bool,
) -> Facts:
    """Write the lengths of π_ref's completions of training prompts; nothing is sampled where params set every length.

    Prompts that the chat template refuses are passed over; the stages that train on them count them.
    """
    if not derived_measures_lengths:
        return {"enabled": False, "max_new_tokens": None}
    from plumbline.tasks.models import completion_lengths
    from plumbline.tasks.models.loading import load_policy, load_tokenizer, seed_everything

    seed_everything(seed, threads)
    folder = context.dep("reference")
    tokenizer = load_tokenizer(folder, trust_remote_code=reference_trust_remote_code)
    model = load_policy(folder, trust_remote_code=reference_trust_remote_code).eval()
    pairs = load_jsonl(context.dep("curated") / "train.jsonl", CuratedPair)
    prompts = list(dict.fromkeys(pair.prompt for pair in pairs))
    measured = completion_lengths.measure_lengths(
        model, tokenizer, prompts, seed, derived_longest_sequence, context.progress
    )
    write_json(context.folder / FILE, measured.lengths)
    facts = {"enabled": True, **measured.facts()}
    return {**facts, "warnings": length_warnings(facts)}


def length_warnings(facts: Facts) -> list[str]:
    """A warning if too few completions end for a length to follow from them."""
    if facts["quantiles"][f"{QUANTILE:g}"] is not None:
        return []
    text = (
        f"{facts['ended']:.0%} of {facts['completions']} completions of π_ref end within {facts['cap']} tokens, so the "
        f"longest completion is {facts['cap']} tokens: those that are longer are cut. Set "
        f"training.max_completion_length if they are meant to be longer, or train π_ref on completions that end."
    )
    logger.warning("%s", text)
    return [text]


STAGE = Stage(
    name="lengths",
    title="Completion lengths",
    body=measure_lengths,
    deps={"reference": "models/reference", "curated": "data/curated"},
    params=("seed", "threads", "derived.measures_lengths", "derived.longest_sequence", "reference.trust_remote_code"),
    out="reports/lengths",
    contract="completion_lengths",
    trains=True,
)
