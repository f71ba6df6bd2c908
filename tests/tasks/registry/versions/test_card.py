from __future__ import annotations

from typing import Any

import pytest

from plumbline.tasks.registry.versions.card import render_card


def manifest(**changes: Any) -> dict[str, Any]:
    """What a card needs of a manifest; figures by hand."""
    return {
        "model": {"name": "assistant", "key": "k"},
        "git": {"commit": "c", "dirty": False},
        "program": {"version": "0.1.0", "git_commit": "p"},
        "environment": {"python": "3.11", "sha256": "e" * 64},
        "counts": {"read": 2000, "accepted": 1900, "merged": 60, "quarantined": 40, "splits": {"train": 1300}},
        "raw_batches": [{"path": "data/raw/human_pairs/1.jsonl", "md5": "m"}],
        "objects": {},
        "settings": {"evaluation": {"confidence": 0.9}},
        "as_run": {
            "sample_world": {"enabled": False},
            "base": {"source": "some/model", "revision": None, "architecture": "Llama", "parameters": 1_500_000},
            "finetune": {
                "method": "dpo",
                "settings": {"beta": 0.1, "loss_type": "sigmoid", "sft_weight": 0.0, "lora": None},
                "steps": {"planned": 1200, "run": 900},
                "best": {"metric": "win_rate", "step": 800},
            },
        },
        "evaluation": {
            "win_rate": {"judge": {"value": 0.58, "low": 0.52, "high": 0.64, "n": 310}},
            "counts": {"pairs": 394, "pairs_over_context": 123},
            "text": {"policy": {"finished": {"value": 0.25, "low": 0.2, "high": 0.3, "n": 310}}},
        },
        "gate": {"passed": True, "reasons": []},
        **changes,
    }


def test_the_card_opens_with_what_the_model_is_and_its_key_figures() -> None:
    opening = render_card(manifest()).split("## Data")[0]
    for line in (
        "| base | some/model, Llama, 1,500,000 parameters |",
        "| method | dpo, β 0.1, loss sigmoid, SFT weight 0.0, 900 of 1,200 steps, "
        "best checkpoint by win_rate at step 800 |",
        "| data | 2,000 records read, 1,900 accepted, 1,300 for training |",
        "| figure | value | 90 % interval | n |",
        "| win rate over π_ref (reward model) | 0.58 | [0.52, 0.64] | 310 |",
    ):
        assert line in opening.splitlines()
    assert "LoRA" not in opening
    assert "gold" not in opening


def test_limits_tell_what_was_not_measured_or_cut() -> None:
    limits = render_card(manifest()).split("## Limits")[1].split("## ")[0]
    assert "123 of 394 test pairs exceed the context" in limits
    assert "75% of the sampled responses were cut" in limits
    assert "40 records were set aside" in limits


def test_a_model_of_the_sample_world_alone_is_called_a_demonstration() -> None:
    world = {"sample_world": {"enabled": True}}
    assert "A demonstration." in render_card(manifest(as_run=world, raw_batches=[]))
    both = render_card(manifest(as_run=world))
    assert "A demonstration." not in both
    assert "Part of the feedback is Plumbline's made-up sample world." in both


def test_the_same_manifest_gives_the_same_card() -> None:
    assert render_card(manifest()) == render_card(manifest())


STEPS = {"steps": {"planned": 120, "run": 120}, "best": {"metric": "win_rate", "step": 80}}
KL = {"mode": "adaptive", "target": 0.15}
TERMS = [{"name": "reward_model", "weight": 1.0}, {"name": "brevity", "weight": 0.25}]
FINDING = {"kind": "length", "update": 40, "message": "responses grew 2.3 times", "values": {}}
RANKING = {"judge": "llm", "kappa": 0.421, "noise": {"value": 0.2895, "low": 0.2, "high": 0.3}, "gains": "dcg"}
PPO = {
    "method": "ppo",
    "settings": {"beta": 0.04, "kl": KL, "lora": None},
    "implied_beta": 0.0712,
    "prompts": {"train": 1300},
    "episodes": 7680,
    "findings": [FINDING],
    **STEPS,
}
GRPO = {
    "method": "grpo",
    "settings": {
        "beta": 0.04,
        "kl": {**KL, "mode": "fixed"},
        "num_generations": 8,
        "reward_weight": 0.0,
        "lora": {"r": 16},
    },
    "implied_beta": None,
    "prompts": {"train": 1300},
    "findings": [],
    **STEPS,
}
OF_0_1 = {"kl": {**KL, "mode": "fixed", "beta": 0.04}, "candidates": 8, "reward_weight": 0.0, "lora": {"r": 16}}
"""Settings as they were recorded before params took the names of TRL."""
STEPS_TEXT = "120 of 120 steps, best checkpoint by win_rate at step 80"


def of_method(**finetune: Any) -> str:
    return render_card(manifest(as_run={"finetune": finetune}))


@pytest.mark.parametrize(
    ("finetune", "row"),
    [
        (
            {
                "method": "kto",
                "settings": {"beta": 0.1, "loss_type": "kto"},
                "examples": {"desirable": 9, "undesirable": 7},
            },
            "kto, β 0.1, loss kto, 9 desirable and 7 undesirable examples",
        ),
        ({"method": "orpo", "settings": {"beta": 0.2}, "pairs": {"train": 9}}, "orpo, β 0.2, odds-ratio loss, 9 pairs"),
        (
            {**PPO, "reward_terms": TERMS},
            "ppo, reward 1 x reward_model + 0.25 x brevity, KL target 0.15 nats per token, final β 0.0712, "
            f"1,300 prompts, 7,680 episodes, {STEPS_TEXT}, 1 finding of the monitors",
        ),
        (
            {**GRPO, "ranking": RANKING},
            "grpo, 8 candidates a prompt, ranked by the judge llm, κ 0.42 with people, noise 0.29, gains dcg, "
            f"β fixed at 0.04, LoRA of rank 16, 1,300 prompts, {STEPS_TEXT}, no findings of the monitors",
        ),
        (
            {**GRPO, "settings": OF_0_1},
            f"grpo, 8 candidates a prompt, β fixed at 0.04, LoRA of rank 16, 1,300 prompts, {STEPS_TEXT}, "
            "no findings of the monitors",
        ),
        (
            {**GRPO, "settings": {**GRPO["settings"], "reward_weight": 0.5}, "ranking": RANKING, "reward_terms": TERMS},
            "grpo, 8 candidates a prompt, ranked by the judge llm, κ 0.42 with people, noise 0.29, gains dcg, "
            "reward 1 x reward_model + 0.25 x brevity at weight 0.5, "
            f"β fixed at 0.04, LoRA of rank 16, 1,300 prompts, {STEPS_TEXT}, no findings of the monitors",
        ),
    ],
    ids=lambda value: value["method"] if isinstance(value, dict) else "",
)
def test_each_method_is_told_by_what_matters_to_it(finetune: dict[str, Any], row: str) -> None:
    assert f"| method | {row} |" in of_method(**finetune).splitlines()


def test_a_stack_is_a_row_a_stage() -> None:
    """The judge and the reward are facts of the whole stack, and each stage tells those that it used."""
    sft = {"method": "sft", "settings": {"lora": None}, "examples": {"used": 600}, **STEPS}
    card = of_method(
        method="sft+ppo+grpo",
        stages={"1-sft": sft, "2-ppo": PPO, "3-grpo": GRPO},
        ranking=RANKING,
        reward_terms=TERMS,
    )
    rows = [line for line in card.splitlines() if line.startswith("| method ")]
    assert [row.split(" | ")[0] for row in rows] == ["| method 1-sft", "| method 2-ppo", "| method 3-grpo"]
    assert rows[0] == f"| method 1-sft | sft, loss on chosen responses, 600 examples, {STEPS_TEXT} |"
    assert "reward 1 x reward_model + 0.25 x brevity" in rows[1]
    assert "judge llm" not in rows[1]
    assert "judge llm" in rows[2]
    assert "brevity" not in rows[2]
    assert "- The monitors of 2-ppo found at step 40: responses grew 2.3 times" in card.splitlines()


def test_of_many_findings_the_first_are_told_and_the_rest_counted() -> None:
    findings = [{**FINDING, "update": step} for step in range(1, 8)]
    lines = [line for line in of_method(**{**PPO, "findings": findings}).splitlines() if "The monitors of" in line]
    assert len(lines) == 6
    assert lines[-1] == "- The monitors of ppo found 2 more signs, in the manifest."


OPTIMISED = "The policy was optimised against the very judge that reports its win rate"
HELD_OUT = "No policy was trained against the held-out judge"


@pytest.mark.parametrize(
    ("judge", "optimised", "said"),
    [
        ("reward_model", True, OPTIMISED),
        ("reward_model", False, None),
        ("held_out", False, HELD_OUT),
        (None, None, None),
    ],
)
def test_limits_tell_who_judged(judge: str | None, optimised: bool | None, said: str | None) -> None:
    figures = {"win_rate": {"judge": {"value": 0.58}}, "counts": {}} | ({"held_out_judge": judge} if judge else {})
    card = render_card(manifest(as_run={"finetune": {**PPO, "optimised_against_judge": optimised}}, evaluation=figures))
    limits = card.split("## Limits")[1].split("## ")[0]
    assert [words for words in (OPTIMISED, HELD_OUT) if words in limits] == ([said] if said else [])
    name = "held-out judge" if judge == "held_out" else "reward model"
    assert f"| win rate over π_ref ({name}) | 0.58 |" in card
