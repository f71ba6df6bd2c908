"""The variants of a comparison with the params that each runs under, and the stages that all of them share."""

from __future__ import annotations

from pathlib import Path

from plumbline.flows.graph.stages import STAGES
from plumbline.tasks.evaluation.comparison.variants import Variant, settled, variants_of
from plumbline.tasks.params.validation import validate_params
from plumbline.tasks.params.whole import Params
from plumbline.tasks.pipeline.stage import Stage, fill


def validated_variants(params: Params) -> list[tuple[Variant, Params]]:
    """Every variant of `compare` with its own params, validated. Raises `ParamsError` naming variant and key.

    Defaults stay out of what the settings are merged into: a variant's methods take what `training` says of them.
    """
    sections, document, ppo = _own_keys(params), params.model_dump(mode="json", exclude_unset=True), params.finetune.ppo
    variants = variants_of(params.compare, ppo_episodes=ppo.total_episodes, an_update=ppo.episodes_per_update)
    return [
        (variant, validate_params(settled(document, variant, sections), Path(f"compare.variants.{variant.name}")))
        for variant in variants
    ]


def shared_stages(params: Params) -> list[Stage]:
    """The stages that make what fine-tuning and evaluation read, in order, without fine-tuning itself."""
    wanted = {fill(path, params) for name in ("finetune", "evaluate") for path in STAGES[name].deps.values()}
    found: list[Stage] = []
    for stage in reversed(STAGES.values()):
        if stage.out in wanted and stage.name != "finetune":
            found.insert(0, stage)
            wanted |= {fill(path, params) for path in stage.deps.values()}
    return found


def _own_keys(params: Params) -> set[str]:
    """Keys of params that fine-tuning alone reads, so that variants may differ in them."""
    read = {key for stage in [*shared_stages(params), STAGES["evaluate"]] for key in stage.params}

    def apart(key: str) -> bool:
        return not any(f"{one}.".startswith(f"{other}.") for mine in read for one, other in ((key, mine), (mine, key)))

    return {key for key in STAGES["finetune"].params if apart(key)}
