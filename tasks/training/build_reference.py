"""Stage `reference`: the reference policy π_ref, by supervised fine-tuning or as given."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from plumbline.data_contracts.errors import ParamsError
from plumbline.data_contracts.records import CuratedPair, Message, load_conversations, load_jsonl
from plumbline.tasks.params.finetuning import SftParams
from plumbline.tasks.pipeline.stage import Facts, Stage, StageContext

if TYPE_CHECKING:
    from plumbline.tasks.models.renderable import Conversation


def build_reference(
    context: StageContext,
    *,
    seed: int,
    threads: int,
    reference_sft: SftParams,
    reference_trust_remote_code: bool,
    reference_refused_threshold: float,
) -> Facts:
    """Write π_ref. It is frozen: no later stage writes to it.

    Conversations that the chat template refuses are set aside and counted.
    """
    from plumbline.tasks.models.loading import load_tokenizer
    from plumbline.tasks.models.renderable import sift_splits
    from plumbline.tasks.training.finetuning import sft

    base = context.dep("base")
    given = {"train": _conversations(context.dep("data"), reference_sft)}
    tokenizer = load_tokenizer(base, trust_remote_code=reference_trust_remote_code)
    kept, sifted = sift_splits(tokenizer, given, reference_refused_threshold)
    facts = sft.build_reference(
        base,
        [each.messages for each in kept["train"]],
        reference_sft,
        seed,
        threads,
        context.folder,
        context.work,
        context.progress,
        trust_remote_code=reference_trust_remote_code,
    )
    return {**facts, **sifted}


def _conversations(data: Path, params: SftParams) -> list[Conversation]:
    from plumbline.tasks.models.renderable import Conversation

    if not params.enabled:
        return []
    if params.data == "world":
        demonstrations = data / "demonstrations.jsonl"
        if not demonstrations.is_file():
            raise ParamsError(
                "reference.sft.data: found world while sample_world.enabled is false. Set it to curated, or set "
                "reference.sft.enabled: false to take the base as it is."
            )
        read = load_conversations(demonstrations)
        return [Conversation(f"line {number}", messages) for number, messages in enumerate(read, start=1)]
    pairs = load_jsonl(data / "train.jsonl", CuratedPair)
    return [Conversation(pair.id, (*pair.prompt, Message(role="assistant", content=pair.chosen))) for pair in pairs]


STAGE = Stage(
    name="reference",
    title="Reference policy",
    body=build_reference,
    deps={"base": "models/base", "data": "data/${reference.sft.data}"},
    params=(
        "seed",
        "threads",
        "reference.sft",
        "reference.trust_remote_code",
        "reference.refused_threshold",
    ),
    out="models/reference",
    contract="causal_lm",
    trains=True,
)
