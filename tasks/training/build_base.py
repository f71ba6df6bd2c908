"""Stage `base`: the model that everything starts from, given or trained from scratch."""

from __future__ import annotations

from pathlib import Path

from plumbline.data_contracts.errors import ParamsError
from plumbline.data_contracts.records import load_conversations
from plumbline.tasks.params.tiny_model import TinyModelParams
from plumbline.tasks.pipeline.stage import Facts, Stage, StageContext

NO_BASE = (
    "reference.base: expected a model name or folder, found null. Name your model, such as `plumbline params set "
    "reference.base=MODEL`; or try the loop on the sample world: `plumbline init DIR --sample-world`."
)
"""The error where no base was named and there is no sample world to train one on."""


def build_base(
    context: StageContext,
    *,
    seed: int,
    threads: int,
    reference_base: str | None,
    reference_revision: str | None,
    reference_trust_remote_code: bool,
    tiny_model: TinyModelParams,
) -> Facts:
    """Write the given checkpoint, or a tiny one trained on the sample world's demonstrations."""
    if reference_base is not None:
        from plumbline.tasks.models.loading import materialise_base

        return materialise_base(
            _inside(context.root, reference_base),
            context.folder,
            reference_revision,
            reference_trust_remote_code,
        )
    demonstrations = context.dep("world") / "demonstrations.jsonl"
    if not demonstrations.is_file():
        raise ParamsError(NO_BASE)
    from plumbline.tasks.models.tiny import train_base

    conversations = load_conversations(demonstrations)
    return train_base(conversations, tiny_model, seed, threads, context.folder, context.progress)


def _inside(root: Path, model: str) -> str:
    """A relative folder is one of the workspace; anything else is an absolute folder or a hub name."""
    return str(root / model) if (root / model).is_dir() else model


STAGE = Stage(
    name="base",
    title="Base model",
    body=build_base,
    deps={"world": "data/world"},
    params=(
        "seed",
        "threads",
        "reference.base",
        "reference.revision",
        "reference.trust_remote_code",
        "tiny_model",
    ),
    out="models/base",
    contract="causal_lm",
    trains=True,
)
