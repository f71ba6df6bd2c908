"""What a whole run is refused for before it starts: params that contradict one another, or unknown to TRL."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_contracts.errors import ParamsError
from flows import environment
from flows.params import Params, load_params, resolve_overlays, save_params
from flows.variants import validated_variants


def settle_params(root: Path, overlays: Sequence[str | Path], settings: Sequence[str]) -> tuple[Params, list[str]]:
    """Refuse wrong params before they reach `params.yaml`, then write them there.

    Returns the params and a line for each key that changed. Raises `ParamsError`.
    """
    params, document = load_params(root, resolve_overlays(root, overlays), settings)
    environment.prepare(params.threads)
    check_sources(params)
    check_trainer_arguments(params)
    for _, own in validated_variants(params):
        check_trainer_arguments(own)
    return params, save_params(root, document)


def check_sources(params: Params) -> None:
    """Raise `ParamsError` where params ask for data or a model of the sample world, which is switched off."""
    if params.sample_world.enabled:
        return
    if params.reference.base is None:
        raise ParamsError(
            "reference.base: expected a model name or folder, found null while sample_world.enabled is false. "
            "Set reference.base to any Hugging Face model, or enable the sample world."
        )
    if params.reference.sft.enabled and params.reference.sft.data == "world":
        raise ParamsError(
            "reference.sft.data: found world while sample_world.enabled is false. Set it to curated, or set "
            "reference.sft.enabled: false to take the base as it is."
        )


def check_trainer_arguments(params: Params) -> None:
    """Raise `ParamsError` for `trainer_args` that TRL does not know (naming the nearest that it does) or refuses.

    Only TRL can tell, and importing it takes seconds: sections without such arguments are not looked at.
    """
    if params.reference.sft.trainer_args:
        from tasks.finetuning import sft

        sft.check_params(params.reference.sft)
    if params.reward.trainer_args:
        from tasks.rewards import bradley_terry

        bradley_terry.check_params(params.reward)
    for name in params.finetune.methods:
        if getattr(params.finetune, name).trainer_args:
            from tasks.finetuning.methods import METHODS

            METHODS[name].check(params.finetune)
