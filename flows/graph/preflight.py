"""Checks before a whole run: params that contradict one another, or name a thing that is not there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ruamel.yaml.comments import CommentedMap

from plumbline.data_contracts.errors import ParamsError
from plumbline.flows.graph import environment
from plumbline.flows.graph.variants import validated_variants
from plumbline.tasks.params.document import save_params
from plumbline.tasks.params.layers import load_params, resolve_overlays
from plumbline.tasks.params.whole import Params
from plumbline.tasks.pipeline.stage import importable
from plumbline.tasks.training.build_base import NO_BASE
from plumbline.tasks.training.finetune_policy import STAGE as FINETUNE


def settle_params(
    root: Path,
    overlays: Sequence[str | Path],
    settings: Sequence[str],
    once: Sequence[str] = (),
    *,
    comparing: bool = False,
) -> tuple[Params, list[str]]:
    """Refuse wrong params before they reach `params.yaml` (`check_params`), then write them there, but not `once`.

    Returns the params and a line for each key that changed. Raises `ParamsError`.
    """
    params, document = check_params(root, overlays, settings, once, comparing=comparing)
    return params, save_params(root, document)


def check_params(
    root: Path,
    overlays: Sequence[str | Path],
    settings: Sequence[str],
    once: Sequence[str] = (),
    *,
    comparing: bool = False,
) -> tuple[Params, CommentedMap]:
    """The params of a run and their document, which is written nowhere. Raises `ParamsError`.

    `comparing`: what the variants of `compare` train by must be there, in place of what the run's own methods do.
    """
    params, document = load_params(root, resolve_overlays(root, overlays), settings, once)
    environment.prepare(params.threads, root)
    check_sources(params)
    check_splits(params)
    check_trainer_arguments(params)
    variants = validated_variants(params)
    for _, own in variants:
        check_trainer_arguments(own)
    if not comparing:
        check_teachers(root, params)
    for variant, own in variants if comparing else ():
        try:
            check_teachers(root, own)
        except ParamsError as error:
            raise ParamsError(f"compare.variants.{variant.name}: {error}") from error
    return params, document


def check_sources(params: Params) -> None:
    """Raise `ParamsError` if params ask for data or a model of the sample world, which is switched off."""
    if params.sample_world.enabled:
        return
    if params.reference.base is None:
        raise ParamsError(NO_BASE)
    if params.reference.sft.enabled and params.reference.sft.data == "world":
        raise ParamsError(
            "reference.sft.data: found world while sample_world.enabled is false. Set it to curated, or set "
            "reference.sft.enabled: false to take the base as it is."
        )


def check_splits(params: Params) -> None:
    """Raise `ParamsError` if a split that a whole run needs has no share of the pairs."""
    uses = {
        "train": "the policy and the reward model learn from it",
        "validation": "training chooses its best checkpoint on it",
        "test": "the reward model is audited, and the policy evaluated, on it",
    }
    for split, share in params.curation.split.fractions().items():
        if share == 0:
            raise ParamsError(
                f"curation.split.{split}: expected a share above 0, because {uses[split]}; found 0. A run would stop "
                f"without it after hours of work."
            )


def check_trainer_arguments(params: Params) -> None:
    """Raise `ParamsError` for further arguments of trainers that TRL refuses.

    Only TRL can tell, and importing it takes seconds: sections without such arguments are not looked at.
    """
    if params.reference.sft.further_arguments:
        from plumbline.tasks.training.finetuning import sft

        sft.check_params(params.reference.sft)
    if params.reward.further_arguments:
        from plumbline.tasks.training.rewards import bradley_terry

        bradley_terry.check_params(params.reward)
    for name in params.finetune.methods:
        if getattr(params.finetune, name).further_arguments:
            from plumbline.tasks.training.finetuning.methods import METHODS

            METHODS[name].check(params.finetune)


def check_teachers(root: Path, params: Params) -> None:
    """Raise `ParamsError` for what the methods train by and is not there, which stage `finetune` finds hours later.

    Functions, classifiers, judges, their rubric and key, and vLLM, each only where a method of the run uses it.
    """
    from plumbline.tasks.training.finetuning.methods import needs_of
    from plumbline.tasks.training.rewards.checks import check_judge, check_terms

    needs = needs_of(params.finetune)
    if needs.vllm:
        from plumbline.tasks.training.finetuning.on_policy.vllm import check_vllm

        check_vllm()
    with importable(root):
        if needs.mixture:
            check_terms("mixture.terms", params.mixture.terms)
        if needs.ranker:
            check_judge(params.judge, root / FINETUNE.deps["reward"])
