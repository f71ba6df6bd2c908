from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from plumbline.tasks.params.optimisation import (
    EVALUATED_KEYS,
    OWN_KEYS,
    OWNED_ARGS,
    EvaluatedOptimisation,
    Optimisation,
)


def test_refused_arguments_exist_in_trl() -> None:
    """A name that TRL does not know would be refused anyway, with a worse message: the tables would be stale."""
    from trl import DPOConfig, RewardConfig, SFTConfig

    configs = [set(config.__dataclass_fields__) for config in (DPOConfig, RewardConfig, SFTConfig)]
    assert set.union(*configs) >= OWNED_ARGS
    assert set.intersection(*configs) >= OWN_KEYS.keys() | EVALUATED_KEYS.keys()


def test_own_keys_name_fields() -> None:
    assert set(OWN_KEYS.values()) <= set(Optimisation.model_fields)
    assert set(EVALUATED_KEYS.values()) <= set(EvaluatedOptimisation.model_fields)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"trainer_args": {"seed": 1}}, "trainer_args.seed: set by Plumbline"),
        ({"trainer_args": {"learning_rate": 1}}, "has its own key. Set `lr` instead"),
        ({"trainer_args": {"save_steps": 1}}, "has its own key. Set `eval_every` instead"),
        ({"log_every": 30}, r"log_every \(30\) must divide eval_every \(100\)"),
    ],
)
def test_wrong_params_are_refused_with_what_to_choose(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EvaluatedOptimisation(lr=1e-3, epochs=1, **given)
