"""Checks before a whole run: params that contradict one another, or name a thing that is not there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ruamel.yaml.comments import CommentedMap

from plumbline.data_contracts.errors import ModelError, ParamsError, PlumblineError
from plumbline.flows.graph import environment
from plumbline.flows.graph.variants import validated_variants
from plumbline.tasks.params.document import load_params, resolve_overlays, save_params
from plumbline.tasks.params.judge import JudgeParams
from plumbline.tasks.params.mixture import FunctionTermParams, SafetyTermParams, TermParams
from plumbline.tasks.params.whole import Params
from plumbline.tasks.pipeline.stage import importable
from plumbline.tasks.training.finetune_policy import STAGE as FINETUNE
from plumbline.tasks.training.finetune_policy import maximises_mixture

REWARD_FACTS = "reward.json"
"""The file that marks a folder of a reward model (`tasks.training.rewards.scoring.FACTS`, whose module needs torch)."""

HELD_OUT = "held_out"
"""Folder of the held-out judge in that of the reward model (`tasks.training.rewards.held_out.HELD_OUT`, likewise)."""

DEFAULT_LABELS = {0: "LABEL_0", 1: "LABEL_1"}
"""The labels that transformers takes, and leaves out of config.json, if a classifier names none."""


def settle_params(
    root: Path, overlays: Sequence[str | Path], settings: Sequence[str], *, comparing: bool = False
) -> tuple[Params, list[str]]:
    """Refuse wrong params before they reach `params.yaml` (`check_params`), then write them there.

    Returns the params and a line for each key that changed. Raises `ParamsError`.
    """
    params, document = check_params(root, overlays, settings, comparing=comparing)
    return params, save_params(root, document)


def check_params(
    root: Path, overlays: Sequence[str | Path], settings: Sequence[str], *, comparing: bool = False
) -> tuple[Params, CommentedMap]:
    """The params of a run and their document, which is written nowhere. Raises `ParamsError`.

    `comparing`: what the variants of `compare` train by must be there, in place of what the run's own methods do.
    """
    params, document = load_params(root, resolve_overlays(root, overlays), settings)
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
        raise ParamsError(
            "reference.base: expected a model name or folder, found null while sample_world.enabled is false. "
            "Set reference.base to any Hugging Face model, or enable the sample world."
        )
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
    """Raise `ParamsError` for `trainer_args` that TRL does not know (naming the nearest that it does) or refuses.

    Only TRL can tell, and importing it takes seconds: sections without such arguments are not looked at.
    """
    if params.reference.sft.trainer_args:
        from plumbline.tasks.training.finetuning import sft

        sft.check_params(params.reference.sft)
    if params.reward.trainer_args:
        from plumbline.tasks.training.rewards import bradley_terry

        bradley_terry.check_params(params.reward)
    for name in params.finetune.methods:
        if getattr(params.finetune, name).trainer_args:
            from plumbline.tasks.training.finetuning.methods import METHODS

            METHODS[name].check(params.finetune)


def check_teachers(root: Path, params: Params) -> None:
    """Raise `ParamsError` for what the methods train by and is not there, which stage `finetune` finds hours later.

    Functions, classifiers, judges, their rubric and key, and vLLM, each only where a method of the run uses it.
    """
    methods, grpo = params.finetune.methods, params.finetune.grpo
    if ("ppo" in methods and params.finetune.ppo.sampler == "vllm") or ("grpo" in methods and grpo.use_vllm):
        from plumbline.tasks.training.finetuning.on_policy.vllm import check_vllm

        check_vllm()
    with importable(root):
        if maximises_mixture(params.finetune):
            _check_terms("mixture.terms", params.mixture.terms)
        if "grpo" in methods:
            _check_judge(root, params.judge)


def _check_terms(where: str, terms: Sequence[TermParams]) -> None:
    for term in terms:
        try:
            if isinstance(term, FunctionTermParams):
                _check_function(term)
            if isinstance(term, SafetyTermParams) and term.classifier is not None:
                _check_classifier(term)
        except PlumblineError as error:
            raise ParamsError(f"{where}: `{term.title}`: {error}") from error


def _check_function(term: FunctionTermParams) -> None:
    from plumbline.tasks.training.rewards.terms import build_term

    try:
        build_term(term, None)
    except PlumblineError:
        raise
    except Exception as error:  # whatever a user's module raises while it is imported
        raise ParamsError(
            f"{term.function}: expected an importable reward function, found {type(error).__name__} on import: "
            f"{error}. Mend its module."
        ) from error


def _check_classifier(term: SafetyTermParams) -> None:
    """Raise `ModelError` unless the folder holds a classifier with the label; its weights are not read."""
    folder = Path(str(term.classifier))
    try:
        config = json.loads((folder / "config.json").read_bytes())
        labels = sorted(config.get("id2label", DEFAULT_LABELS).values())
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(
            f"{folder}: expected the folder of a text-classification model with its config.json, found "
            f"{type(error).__name__}: {error}. Correct `classifier`, or set it to null for patterns."
        ) from error
    if not list(folder.glob("*.safetensors")):
        raise ModelError(f"{folder}: expected weights (*.safetensors), found none. Save the classifier there whole.")
    if term.classifier_label not in labels:
        raise ModelError(
            f"{folder}: expected a classifier with the label {term.classifier_label!r}, found {labels[:10]}. Set "
            "classifier_label to the one of a request to refuse."
        )


def _check_judge(root: Path, judge: JudgeParams) -> None:
    if judge.kind == "rule":
        _check_terms("judge.rule.terms", judge.rule.terms)
    elif judge.kind == "reward_model" and judge.reward_model.path is not None:
        _check_reward_model(root, Path(judge.reward_model.path))
    elif judge.kind == "llm":
        from plumbline.tasks.training.rewards.judges.chat_client import ChatClient
        from plumbline.tasks.training.rewards.judges.rubric import load_rubric

        try:
            load_rubric(judge.llm.rubric)
            ChatClient(judge.llm)  # reads the key's variable
        except PlumblineError as error:
            raise ParamsError(f"judge.llm: {error}") from error


def _check_reward_model(root: Path, folder: Path) -> None:
    if folder.resolve() == (root / FINETUNE.deps["reward"] / HELD_OUT).resolve():
        raise ParamsError(
            f"judge.reward_model.path: found the held-out judge ({folder}), which reports win rates because no policy "
            "is trained by it. Name another reward model, or null for the trained one."
        )
    missing = [name for name in ("config.json", REWARD_FACTS) if not (folder / name).is_file()]
    if missing or not list(folder.glob("*.safetensors")):
        raise ParamsError(
            f"judge.reward_model.path: expected the folder of a reward model that Plumbline trained, found {folder} "
            f"without {', '.join(missing) or 'weights (*.safetensors)'}. Correct the path, or set it to null for the "
            "model of this run."
        )
