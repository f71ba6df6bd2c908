from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from plumbline.tasks.params.optimisation import OWNED_ARGS, EvaluatedOptimisation, Optimisation, whole_steps


def test_refused_arguments_exist_in_trl() -> None:
    """A name that TRL does not know would be refused anyway, with a worse message: the tables would be stale."""
    from trl import DPOConfig, RewardConfig, SFTConfig

    configs = [set(config.__dataclass_fields__) for config in (DPOConfig, RewardConfig, SFTConfig)]
    assert set.union(*configs) >= OWNED_ARGS
    assert (
        set.intersection(*configs) >= set(EvaluatedOptimisation.model_fields) | EvaluatedOptimisation.elsewhere.keys()
    )


def test_arguments_that_stand_elsewhere_name_fields() -> None:
    for section in (Optimisation, EvaluatedOptimisation):
        assert set(section.elsewhere.values()) <= set(section.model_fields)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seed": 1}, "seed\n  set by Plumbline, because resuming"),
        ({"save_steps": 1}, "Set `eval_steps` instead"),
        ({"logging_steps": 30}, r"logging_steps \(30\) must divide eval_steps \(100\)"),
    ],
)
def test_wrong_params_are_refused_with_what_to_choose(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EvaluatedOptimisation(learning_rate=1e-3, num_train_epochs=1, **given)


@pytest.mark.parametrize("steps", [0.0, 0.05, 0.999, 1, 100.0])
def test_a_warm_up_is_a_share_or_a_whole_number_of_steps(steps: float) -> None:
    assert whole_steps(steps) == steps
