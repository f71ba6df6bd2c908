"""Params section `training`: what the trainings of a run share, each of which may set a value of its own."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pydantic import Field, ValidationError

from plumbline.tasks.params.finetuning import FinetuneParams, SftParams
from plumbline.tasks.params.lengths import COMPLETION, MOST, NEW_TOKENS, share_length
from plumbline.tasks.params.method_sections import EarlyStoppingParams, LoraParams
from plumbline.tasks.params.optimisation import LrScheduler, SamplingStrategy, WarmupSteps
from plumbline.tasks.params.reward import RewardParams
from plumbline.tasks.params.section import Section

METHODS: Mapping[str, type[Section]] = {
    name: field.annotation
    for name, field in FinetuneParams.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section) and name != "formats"
}
"""Method -> its section."""

_IN_UPDATES = {"ppo": ("logging_steps", "eval_steps")}
"""Method -> fields that count something else under the same name: PPO's intervals are updates."""


class TrainingParams(Section):
    """Values for `reference.sft`, `reward` and each method of `finetune`, null: each one's own.

    A section takes those that it has a field for, and its own value in the document comes first. Learning rates, epochs
    and β differ by method and are not here. The longest completion is that of everything that samples: methods, their
    evaluation while training, `evaluation` and `self_play`.
    """

    per_device_train_batch_size: int | None = Field(
        None, ge=1, le=4096, description="Examples a device and forward pass (PPO: rows)."
    )
    gradient_accumulation_steps: int | None = Field(
        None, ge=1, le=4096, description="Forward passes an optimiser step; PPO's follow from its batch size."
    )
    per_device_eval_batch_size: int | None = Field(
        None, ge=1, le=8192, description="Sequences a device and forward pass without gradients."
    )
    max_length: int | None = Field(None, ge=8, description="Longest prompt plus completion in tokens.")
    max_completion_length: int | None = Field(
        None,
        ge=1,
        le=MOST,
        description="Longest sampled completion in tokens, of methods, evaluations and self-play; null: what π_ref's "
        "own completions need, measured by stage `lengths`.",
    )
    bf16: bool | None = Field(None, description="bfloat16 autocast over float32 weights.")
    gradient_checkpointing: bool | None = Field(None, description="Recompute activations to save memory.")
    lora: LoraParams | None = Field(None, description="Adapters for each method; its own `lora: null` trains all.")
    lr_scheduler_type: LrScheduler | None = Field(None, description="How learning rates move after the warm-up.")
    warmup_steps: WarmupSteps | None = Field(
        None, ge=0, description="Steps of the warm-up: below 1 a share of all steps, from 1 on their number."
    )
    weight_decay: float | None = Field(
        None, ge=0, le=1, description="AdamW's weight decay, a share of the weight a unit of learning rate."
    )
    adam_epsilon: float | None = Field(None, gt=0, le=1e-2, description="Epsilon of AdamW.")
    train_sampling_strategy: SamplingStrategy | None = Field(None, description="The order of training examples.")
    logging_steps: int | None = Field(
        None, ge=1, description="Optimiser steps between two rows of training.jsonl; not for PPO, which counts updates."
    )
    eval_steps: int | None = Field(
        None, ge=1, description="Optimiser steps between two evaluations; not for PPO, which counts updates."
    )
    early_stopping: EarlyStoppingParams | None = Field(None, description="When a method ends early.")
    best_within_kl: float | None = Field(
        None, gt=0, le=10, description="KL from π_ref (nats per token) up to which a method's checkpoint is preferred."
    )


def share(document: Mapping[str, Any], methods: Collection[str] | None = None) -> Mapping[str, Any]:
    """Return a document in which sections hold the shared values that they do not set themselves.

    `methods` are those that take them. If it is None, a method outside of the document's `finetune.methods` takes them
    only if they fit it, so that they refuse no run without it.
    """
    try:
        values = TrainingParams.model_validate(document.get("training", {})).model_dump(exclude_none=True)
    except ValidationError:  # told where the section itself is validated
        return document
    if not values:
        return document
    reference, finetune = document.get("reference", {}), document.get("finetune", {})
    shared = dict(document) | {"reward": _filled(document.get("reward", {}), RewardParams, values)}
    if COMPLETION in values:
        shared |= share_length(document, values[COMPLETION])
    if isinstance(reference, Mapping):
        shared["reference"] = {**reference, "sft": _filled(reference.get("sft", {}), SftParams, values)}
    if isinstance(finetune, Mapping):
        shared["finetune"] = {**finetune, **_methods(finetune, values, methods)}
    return shared


def shared_key(path: Sequence[str]) -> list[str] | None:
    """The key of `training` whose value a key of a training takes; None for one that takes none."""
    match list(path):
        case ["reward", name, *rest] if name in RewardParams.model_fields:
            left_out: Sequence[str] = ()
        case ["reference", "sft", name, *rest] if name in SftParams.model_fields:
            left_out = ()
        case ["finetune", _, "validation", "max_new_tokens"] | ["evaluation" | "self_play", "max_new_tokens"]:
            return ["training", COMPLETION]
        case ["finetune", method, name, *rest] if method in METHODS and name in METHODS[method].model_fields:
            left_out = _IN_UPDATES.get(method, ())
        case _:
            return None
    return ["training", name, *rest] if name in TrainingParams.model_fields and name not in left_out else None


def _methods(finetune: Mapping[str, Any], values: Mapping[str, Any], methods: Collection[str] | None) -> dict[str, Any]:
    """The section of each method, filled."""
    named = finetune.get("methods", FinetuneParams.model_fields["methods"].default)
    used = methods if methods is not None else named if isinstance(named, list | tuple) else ()
    found = {}
    for name, kind in METHODS.items():
        own = finetune.get(name, {})
        left_out = _IN_UPDATES.get(name, ())
        filled = _filled(own, kind, {key: value for key, value in values.items() if key not in left_out})
        found[name] = filled if name in used or (methods is None and fits(name, filled)) else own
    return found


def _filled(section: Any, kind: type[Section], values: Mapping[str, Any]) -> Any:
    """The section with values for those of its fields that it does not set; what is no mapping stays as it is."""
    if not isinstance(section, Mapping):
        return section
    own = {name: value for name, value in values.items() if name in kind.model_fields} | dict(section)
    arena = own.get("validation", {})
    if COMPLETION in values and "validation" in kind.model_fields and isinstance(arena, Mapping):
        own["validation"] = {NEW_TOKENS: values[COMPLETION], **arena}
    return own


def fits(method: str, section: Any) -> bool:
    """Tell if a method could run with this section."""
    try:
        METHODS[method].model_validate(section)
    except ValidationError:
        return False
    return True
