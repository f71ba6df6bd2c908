"""Variants: each is a name and the settings in which it differs from the run's own params."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from plumbline.data_contracts.errors import ParamsError
from plumbline.tasks.params.comparison import CompareParams

_METHODS = ("dpo", "grpo", "ppo")


@dataclass(frozen=True, slots=True)
class Variant:
    """One contender: `settings` maps dotted keys of params to values."""

    name: str
    settings: Mapping[str, Any]


def variants_of(params: CompareParams, *, ppo_episodes: int, an_update: int) -> list[Variant]:
    """The preset's variants, then the custom ones. Raises `ParamsError` if a name is taken twice.

    `ppo_episodes` is how long PPO alone is, `an_update` how many episodes one of its updates takes.
    """
    found: dict[str, Mapping[str, Any]] = {}
    if params.preset == "beta_sweep":
        found = {
            f"dpo-beta-{beta:g}": {"finetune.methods": ["dpo"], "finetune.dpo.beta": beta} for beta in params.betas
        }
    elif params.preset == "methods":
        updates = max(1, round(params.dpo_ppo_share * ppo_episodes / an_update))
        found = {name: {"finetune.methods": [name]} for name in _METHODS}
        found["dpo_ppo"] = {"finetune.methods": ["dpo", "ppo"], "finetune.ppo.total_episodes": updates * an_update}
    taken = sorted(set(found) & set(params.variants))
    if taken:
        raise ParamsError(
            f"compare.variants: {', '.join(taken)} is already a variant of the preset {params.preset}. Rename it."
        )
    return [Variant(name, settings) for name, settings in {**found, **params.variants}.items()]


def settled(document: Mapping[str, Any], variant: Variant, sections: Collection[str]) -> dict[str, Any]:
    """A copy of a params document under a variant's settings.

    `sections` are the keys that fine-tuning alone reads; what an earlier stage reads too, or the evaluation, has to
    be the same for all. Raises `ParamsError` for any other key, and for one below a plain value.
    """
    merged = deepcopy(dict(document))
    for key, value in variant.settings.items():
        if not any(key == section or key.startswith(f"{section}.") for section in sections):
            raise ParamsError(
                f"compare.variants.{variant.name}: {key}: expected a key of {', '.join(sorted(sections))}, which "
                f"fine-tuning alone reads: variants share data, π_ref, reward model and evaluation. Set {key} for "
                f"the whole run instead."
            )
        *heads, last = key.split(".")
        place: Any = merged
        for part in heads:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise ParamsError(f"compare.variants.{variant.name}: {key}: {part} is no section of params.")
        place[last] = value
    return merged
