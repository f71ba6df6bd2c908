from __future__ import annotations

from typing import Any

from plumbline.tasks.training.finetuning.signs import signs_of

WHOLE: dict[str, Any] = {"method": "ppo", "stopped": "all steps done", "findings": [], "best": {"within_kl": True}}
ROWS = [{"step": 1, "eos_rate": 0.4}, {"step": 2, "eos_rate": 0.5, "validation_finished": 0.0}]


def test_a_training_without_signs_warns_of_nothing() -> None:
    assert signs_of(WHOLE, ROWS) == []
    assert signs_of({"method": "dpo", "stopped": "all steps done", "best": {"within_kl": True}}, [{"step": 1}]) == []


def test_rollouts_in_which_nothing_ended_are_counted() -> None:
    (sign,) = signs_of(WHOLE, [*ROWS, {"step": 3, "eos_rate": 0.0}])
    assert sign.startswith("ppo: no response ended within max_completion_length in 1 of 3 logged steps")
    assert "Raise finetune.ppo.max_completion_length" in sign
    (sign,) = signs_of({**WHOLE, "method": "grpo"}, [{"step": 1, "finished": 0.0}])
    assert sign.startswith("grpo: no response ended within max_completion_length in 1 of 1")


def test_findings_stops_and_a_checkpoint_beyond_the_band_are_told() -> None:
    findings = [{"update": number, "message": f"sign {number}"} for number in range(7)]
    facts = {**WHOLE, "findings": findings, "stopped": "kl at update 7: too far", "best": {"within_kl": False}}
    signs = signs_of(facts, ROWS)
    assert signs[0] == "ppo: the monitors found at step 0: sign 0"
    assert signs[5] == "ppo: the monitors found 2 more signs."
    assert signs[6] == "ppo: training ended before its last step: kl at update 7: too far"
    assert signs[7].startswith("ppo: no checkpoint was within best_within_kl")


def test_a_stack_names_the_stage() -> None:
    dpo = {"method": "dpo", "stopped": "all steps done", "best": {"within_kl": True}}
    rows = [{"step": 1, "stage": "1-dpo", "loss": 1.0}, {"step": 2, "stage": "2-ppo", "eos_rate": 0.0}]
    (sign,) = signs_of({"method": "dpo+ppo", "stages": {"1-dpo": dpo, "2-ppo": WHOLE}}, rows)
    assert sign.startswith("2-ppo: no response ended")
    assert "Raise finetune.ppo.max_completion_length" in sign
