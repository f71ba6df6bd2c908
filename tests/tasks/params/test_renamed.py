from __future__ import annotations

import io
import re
from typing import Any

import pytest
from ruamel.yaml import YAML

from plumbline.tasks.params.renamed import GONE, RENAMED, moved, new_name, renamed
from plumbline.tasks.params.section import flatten
from plumbline.tasks.params.whole import Params


def test_every_new_key_is_a_key_and_no_old_one_is() -> None:
    """The lora of a section is null by default, so its keys are those of a section that has one."""
    lora = {"lora": {"r": 1}}
    methods: dict[str, Any] = {name: lora for name in ("sft", "dpo", "kto", "orpo", "grpo", "ppo")}
    known = {key for key, _ in flatten(Params.model_validate({"finetune": methods}).model_dump())}
    known |= {f"finetune.{name}.early_stopping" for name in methods}
    for section, table in RENAMED.items():
        assert {f"{section}.{new}" for new in table.values()} <= known
        assert not {f"{section}.{old}" for old in table} & known
    assert not {f"{section}.{key}" for section, table in GONE.items() for key in table} & known


@pytest.mark.parametrize(
    ("key", "new"),
    [
        ("finetune.dpo.lr", "finetune.dpo.learning_rate"),
        ("finetune.ppo.kl.beta", "finetune.ppo.beta"),
        ("finetune.kto.lora.alpha", "finetune.kto.lora.lora_alpha"),
        ("reward.trainer_args.optim", "reward.optim"),
        ("reference.sft.trainer_args", "reference.sft"),
        ("finetune.dpo.learning_rate", None),
        ("tiny_model.trainer_args", None),
        ("finetune.dpo", None),
        ("evaluation.batch_size", None),
    ],
)
def test_new_names(key: str, new: str | None) -> None:
    assert new_name(key) == new


def test_an_old_key_is_told_with_its_new_name_and_the_cure() -> None:
    assert (
        moved("finetune.dpo.lr")
        == "it is finetune.dpo.learning_rate since 0.2; `plumbline migrate` rewrites params.yaml."
    )
    assert "its arguments stand beside the other keys of reward since 0.2" in (moved("reward.trainer_args") or "")
    assert moved("finetune.dpo.beta") is None
    assert moved("services.worker_standbys") == (
        "it is gone since 0.2, because no process waits for the next flow run; `plumbline migrate` leaves it out."
    )


def test_a_key_that_is_gone_is_left_out_and_said() -> None:
    line = "services.worker_standbys: left out, because no process waits for the next flow run"
    assert renamed({"seed": 1, "services": {"worker_standbys": 2}}) == ({"seed": 1}, [line])
    assert renamed({"services": {"worker_standbys": 2, "mlflow": False}}) == ({"services": {"mlflow": False}}, [line])
    assert renamed({"services": {"mlflow": False}}) == ({"services": {"mlflow": False}}, [])


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            {"reward": {"lr": 0.1, "audit": {"max_ece": 0.2}}},
            {"reward": {"learning_rate": 0.1, "audit": {"max_ece": 0.2}}},
        ),
        (
            {"finetune": {"dpo": {"group_by_length": True}}},
            {"finetune": {"dpo": {"train_sampling_strategy": "group_by_length"}}},
        ),
        (
            {"finetune": {"kto": {"group_by_length": False}}},
            {"finetune": {"kto": {"train_sampling_strategy": "random"}}},
        ),
        ({"finetune": {"ppo": {"sampler": "vllm"}}}, {"finetune": {"ppo": {"use_vllm": True}}}),
        ({"finetune": {"ppo": {"sampler": "own"}}}, {"finetune": {"ppo": {"use_vllm": False}}}),
        ({"finetune": {"ppo": {"kl": {"beta": 0.1}}}}, {"finetune": {"ppo": {"beta": 0.1}}}),
        (
            {"finetune": {"grpo": {"kl": {"beta": 0.1, "target": 0.2}}}},
            {"finetune": {"grpo": {"beta": 0.1, "kl": {"target": 0.2}}}},
        ),
        # a rollout of 3 optimiser steps of 2 forward passes each
        (
            {"finetune": {"grpo": {"steps_per_rollout": 3, "gradient_accumulation": 2}}},
            {"finetune": {"grpo": {"steps_per_generation": 6, "gradient_accumulation_steps": 2}}},
        ),
        ({"reward": {"trainer_args": {}}}, {"reward": {}}),
        (
            {"reward": {"trainer_args": {"optim": "sgd", "adam_beta1": 0.8}}},
            {"reward": {"optim": "sgd", "adam_beta1": 0.8}},
        ),
        (
            {"compare": {"variants": {"hot": {"finetune.dpo.lr": 0.1}, "cold": {"finetune.dpo.beta": 1}}}},
            {"compare": {"variants": {"hot": {"finetune.dpo.learning_rate": 0.1}, "cold": {"finetune.dpo.beta": 1}}}},
        ),
        (
            {"compare": {"variants": {"own": {"finetune": {"ppo": {"sampler": "own", "gamma": 0.9}}}}}},
            {"compare": {"variants": {"own": {"finetune.ppo.use_vllm": False, "finetune.ppo.gamma": 0.9}}}},
        ),
        (
            {
                "compare": {
                    "variants": {
                        "long": {
                            "finetune.grpo.steps_per_rollout": 3,
                            "finetune.grpo.gradient_accumulation": 2,
                            "finetune.grpo.trainer_args": {},
                        }
                    }
                }
            },
            {
                "compare": {
                    "variants": {
                        "long": {
                            "finetune.grpo.steps_per_generation": 6,
                            "finetune.grpo.gradient_accumulation_steps": 2,
                        }
                    }
                }
            },
        ),
    ],
)
def test_a_document_is_rewritten(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Keys keep their places, and the given document stays as it is."""
    given = repr(before)
    found, lines = renamed(before)
    assert repr(found) == repr(after)
    assert lines or before == {"reward": {"trainer_args": {}}}
    assert repr(before) == given
    assert renamed(found) == (found, [])


def test_values_of_a_wrong_kind_are_renamed_as_they_are() -> None:
    grpo = {"steps_per_rollout": "x", "gradient_accumulation": None}
    found, _ = renamed({"finetune": {"grpo": grpo, "ppo": {"sampler": []}, "dpo": {"group_by_length": 3}}})
    assert found["finetune"] == {
        "grpo": {"steps_per_generation": "x", "gradient_accumulation_steps": None},
        "ppo": {"use_vllm": []},
        "dpo": {"train_sampling_strategy": 3},
    }


def test_what_is_set_under_both_names_keeps_the_new_one_and_says_so() -> None:
    found, lines = renamed({"reward": {"lr": 0.1, "learning_rate": 0.2}})
    assert found == {"reward": {"learning_rate": 0.2}}
    assert lines == ["reward.lr: left out, because learning_rate is set"]


@pytest.mark.parametrize(
    "document", [{}, {"reward": None}, {"finetune": {"dpo": 3}}, {"compare": {"variants": {"a": 1}}}]
)
def test_what_is_no_section_is_left_as_it_is(document: dict[str, Any]) -> None:
    assert renamed(document) == (document, [])


def test_comments_and_order_stay() -> None:
    """ruamel keeps the column of a comment behind a value, so spaces before it are not looked at."""
    yaml = YAML()
    document = yaml.load(
        "# mine\nfinetune:\n  dpo:\n    # steep\n    lr: 0.1  # at most\n    # of the paper\n    beta: 0.2\n"
        "  ppo:\n    kl:\n      beta: 0.3  # weak\n      target: 0.1\n    # last\n    lr: 1.0\n"
    )
    found, _ = renamed(document)
    out = io.StringIO()
    yaml.dump(found, out)
    assert re.sub(r"(\S) +#", r"\1  #", out.getvalue()) == (
        "# mine\nfinetune:\n  dpo:\n    # steep\n    learning_rate: 0.1  # at most\n    # of the paper\n    beta: 0.2\n"
        "  ppo:\n    beta: 0.3  # weak\n    kl:\n      target: 0.1\n    # last\n    learning_rate: 1.0\n"
    )
