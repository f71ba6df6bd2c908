"""Keys of params that are gone or had another name before 0.2: most took those of transformers, TRL and peft then.

`renamed` rewrites a document, `moved` is what to say of an old key.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from copy import deepcopy
from typing import Any

from ruamel.yaml.comments import CommentedMap

from plumbline.tasks.params.section import flatten

_FURTHER = "trainer_args"
"""Held the further arguments of a trainer, which now stand beside its other keys."""

_WITHOUT_FURTHER = "tiny_model"
"""The section whose trainer is our own, and took none."""

_TRAINER = {
    "lr": "learning_rate",
    "epochs": "num_train_epochs",
    "batch_size": "per_device_train_batch_size",
    "gradient_accumulation": "gradient_accumulation_steps",
    "warmup_ratio": "warmup_steps",
    "lr_schedule": "lr_scheduler_type",
    "group_by_length": "train_sampling_strategy",
    "log_every": "logging_steps",
}
_EVALUATED = _TRAINER | {"eval_every": "eval_steps", "eval_batch_size": "per_device_eval_batch_size"}
_OFFLINE = _EVALUATED | {
    "best_by": "metric_for_best_model",
    "lora.alpha": "lora.lora_alpha",
    "lora.dropout": "lora.lora_dropout",
}

RENAMED: Mapping[str, Mapping[str, str]] = {
    "tiny_model": {
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "ffn_size": "intermediate_size",
        "context_length": "max_position_embeddings",
        "epochs": "num_train_epochs",
        "batch_size": "per_device_train_batch_size",
        "lr": "learning_rate",
        "warmup_ratio": "warmup_steps",
        "log_every": "logging_steps",
    },
    "reference.sft": _TRAINER | {"save_every": "save_steps"},
    "reward": _EVALUATED | {"center_rewards": "center_rewards_coefficient"},
    "finetune.sft": _OFFLINE,
    "finetune.dpo": _OFFLINE,
    "finetune.kto": _OFFLINE,
    "finetune.orpo": _OFFLINE,
    "finetune.grpo": _EVALUATED
    | {
        "candidates": "num_generations",
        "steps_per_rollout": "steps_per_generation",
        "passes": "num_iterations",
        "max_new_tokens": "max_completion_length",
        "scale_by": "scale_rewards",
        "clip_range": "epsilon",
        "entropy_bonus": "entropy_coef",
        "kl.beta": "beta",
        "lora.alpha": "lora.lora_alpha",
        "lora.dropout": "lora.lora_dropout",
    },
    "finetune.ppo": {
        "lr": "learning_rate",
        "critic_lr": "critic_learning_rate",
        "lr_schedule": "lr_scheduler_type",
        "warmup_ratio": "warmup_steps",
        "batch_size": "per_device_train_batch_size",
        "eval_batch_size": "per_device_eval_batch_size",
        "episodes": "total_episodes",
        "ppo_epochs": "num_ppo_epochs",
        "minibatches": "num_mini_batches",
        "clip_range": "cliprange",
        "value_clip_range": "cliprange_value",
        "value_weight": "vf_coef",
        "entropy_weight": "entropy_coef",
        "max_new_tokens": "max_completion_length",
        "sampler": "use_vllm",
        "kl.beta": "beta",
        "shaping.whiten": "shaping.whiten_rewards",
        "log_every": "logging_steps",
        "eval_every": "eval_steps",
        "best_by": "metric_for_best_model",
        "lora.alpha": "lora.lora_alpha",
        "lora.dropout": "lora.lora_dropout",
    },
    "promotion": {"min_win_rate_vs_reference_low": "min_win_rate_low"},
}
"""Section -> old key -> new key, each dotted from its section; `trainer_args.X` is `X` in all but tiny_model."""

GONE: Mapping[str, Mapping[str, str]] = {
    "services": {"worker_standbys": "no process waits for the next flow run"},
}
"""Section -> key that is gone -> why."""

BEFORE: Mapping[str, Any] = {"curation.split.by": "size"}
"""Dotted key that came later -> what was done before there was such a key, if that is not its default."""

_VALUES: Mapping[str, Callable[[Any, int], Any]] = {
    "group_by_length": lambda value, _: "group_by_length" if value is True else "random" if value is False else value,
    "sampler": lambda value, _: value == "vllm" if value in ("own", "vllm") else value,
    # it counted optimiser steps, and TRL's name forward passes; null is one step
    "steps_per_rollout": lambda value, accumulation: (
        None if value == 1 else value * accumulation if isinstance(value, int) else value
    ),
}
"""Old key -> its value and the forward passes of an optimiser step -> the value under the new key."""


def new_name(key: str) -> str | None:
    """Return the key, dotted from the top, that an old dotted key is now; None for a key that was never renamed.

    For `SECTION.trainer_args` this is the section.
    """
    for section, table in RENAMED.items():
        old = key.removeprefix(f"{section}.")
        if old == key:
            continue
        if new := table.get(old):
            return f"{section}.{new}"
        if section != _WITHOUT_FURTHER and old.split(".")[0] == _FURTHER:
            return section + old.removeprefix(_FURTHER)
    return None


def moved(key: str) -> str | None:
    """Return what to say of an old dotted key that was found; None for a key that never was."""
    new = new_name(key)
    if new is None:
        section, _, last = key.rpartition(".")
        why = GONE.get(section, {}).get(last)
        return f"it is gone since 0.2, because {why}; `plumbline migrate` leaves it out." if why else None
    told = f"its arguments stand beside the other keys of {new}" if key == f"{new}.{_FURTHER}" else f"it is {new}"
    return f"{told} since 0.2; `plumbline migrate` rewrites params.yaml."


def renamed(document: Mapping[str, Any]) -> tuple[Mapping[str, Any], list[str]]:
    """Return a copy of a params document under the new names, comments kept, and a line for each change."""
    copy: Any = deepcopy(document)
    lines: list[str] = []
    for section, table in RENAMED.items():
        place = _at(copy, section.split("."))
        if place is not None:
            lines += [f"{section}.{line}" for line in _rename_section(place, table)]
    lines += [f"{section}.{line}" for section, table in GONE.items() for line in _leave_out(copy, section, table)]
    variants = _at(copy, ["compare", "variants"])
    for name, settings in (variants or {}).items():
        if isinstance(settings, MutableMapping):
            lines += [f"compare.variants.{name}.{line}" for line in _rename_variant(settings)]
    return copy, lines


def _rename_section(section: MutableMapping[str, Any], table: Mapping[str, str]) -> list[str]:
    """Rename the keys of a section in place; return a line for each."""
    accumulation = _accumulation(section)
    further = _at(section, [_FURTHER]) or {}
    moves = dict(table) | {f"{_FURTHER}.{name}": name for name in further}
    lines = [line for old, new in moves.items() for line in _move(section, old, new, accumulation)]
    for emptied in {_FURTHER, *(old.split(".")[0] for old in moves if "." in old)}:
        if section.get(emptied) == {}:
            del section[emptied]
    return lines


def _leave_out(document: MutableMapping[str, Any], section: str, table: Mapping[str, str]) -> list[str]:
    """Delete the keys of a section that are gone, and a section that is then empty; return a line for each key."""
    place = _at(document, [section]) or {}
    found = [key for key in table if key in place]
    for key in found:
        del place[key]
    if found and not place:
        del document[section]
    return [f"{key}: left out, because {table[key]}" for key in found]


def _move(section: MutableMapping[str, Any], old: str, new: str, accumulation: int) -> list[str]:
    """Move a value from one dotted key of a section to another, in place; a value that stands there stays."""
    *heads, last = old.split(".")
    *new_heads, name = new.split(".")
    holder, target = _at(section, heads), _at(section, new_heads)
    if holder is None or target is None or last not in holder:
        return []
    if name in target:
        del holder[last]
        return [f"{old}: left out, because {new} is set"]
    value = _converted(last, holder[last], accumulation)
    _put_before(target, old.split(".")[len(new_heads)], name, value)
    _take_comment(holder, last, target, name)
    del holder[last]
    return [f"{old} -> {new}: {value!r}"]


def _accumulation(section: Mapping[str, Any]) -> int:
    """Forward passes of an optimiser step, by the old or by the new name."""
    found = section.get("gradient_accumulation", section.get("gradient_accumulation_steps"))
    return found if isinstance(found, int) else 1


def _converted(old: str, value: Any, accumulation: int) -> Any:
    return _VALUES[old](value, accumulation) if old in _VALUES else value


def _put_before(target: MutableMapping[str, Any], before: str, name: str, value: Any) -> None:
    """Insert a key before another, so that the keys of a section keep their order."""
    if isinstance(target, CommentedMap):
        target.insert(list(target).index(before), name, value)
        return
    items = list(target.items())
    place = [key for key, _ in items].index(before)
    target.clear()
    target.update([*items[:place], (name, value), *items[place:]])


def _take_comment(holder: Any, last: str, target: Any, name: str) -> None:
    """Give the new key the comment behind the old one."""
    if isinstance(holder, CommentedMap) and isinstance(target, CommentedMap) and last in holder.ca.items:
        target.ca.items[name] = holder.ca.items.pop(last)


def _rename_variant(settings: MutableMapping[str, Any]) -> list[str]:
    """Rename the settings of a variant of `compare`, nested or dotted; they become dotted if any changes."""
    flat = dict(flatten(settings))
    grpo = {key.removeprefix("finetune.grpo."): value for key, value in flat.items()}
    lines, found = [], {}
    for key, value in flat.items():
        new, last = new_name(key), key.rpartition(".")[2]
        if new and last == _FURTHER:
            lines.append(f"{key}: left out, because it is empty")
            continue
        found[new or key] = _converted(last, value, _accumulation(grpo)) if new else value
        lines += [f"{key} -> {new}: {found[new]!r}"] if new else []
    if lines:
        settings.clear()
        settings.update(found)
    return lines


def _at(document: Any, path: Sequence[str]) -> MutableMapping[str, Any] | None:
    """The mapping at a path; None if there is none."""
    for part in path:
        document = document.get(part) if isinstance(document, Mapping) else None
    return document if isinstance(document, MutableMapping) else None
