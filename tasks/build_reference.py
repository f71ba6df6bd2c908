"""Stage `reference`: the reference policy π_ref, by supervised fine-tuning or as given."""

from __future__ import annotations

from pathlib import Path

from data_contracts.errors import ParamsError
from data_contracts.records import CuratedPair, Message, load_conversations, load_jsonl
from tasks.finetuning.params import SftParams
from tasks.stage import Facts, Stage, StageContext


def build_reference(
    context: StageContext, *, seed: int, threads: int, reference_sft: SftParams, reference_trust_remote_code: bool
) -> Facts:
    """Write π_ref. It is frozen: no later stage writes to it."""
    from tasks.finetuning import sft

    return sft.build_reference(
        context.dep("base"),
        _conversations(context.dep("data"), reference_sft),
        reference_sft,
        seed,
        threads,
        context.folder,
        context.work,
        context.progress,
        trust_remote_code=reference_trust_remote_code,
    )


def _conversations(data: Path, params: SftParams) -> list[list[Message]]:
    if not params.enabled:
        return []
    if params.data == "world":
        demonstrations = data / "demonstrations.jsonl"
        if not demonstrations.is_file():
            raise ParamsError(
                "reference.sft.data: found world while sample_world.enabled is false. Set it to curated, or set "
                "reference.sft.enabled: false to take the base as it is."
            )
        return load_conversations(demonstrations)
    pairs = load_jsonl(data / "train.jsonl", CuratedPair)
    return [[*pair.prompt, Message(role="assistant", content=pair.chosen)] for pair in pairs]


STAGE = Stage(
    name="reference",
    title="Reference policy",
    body=build_reference,
    deps={"base": "models/base", "data": "data/${reference.sft.data}"},
    params=("seed", "threads", "reference.sft", "reference.trust_remote_code"),
    out="models/reference",
    contract="causal_lm",
    trains=True,
)
