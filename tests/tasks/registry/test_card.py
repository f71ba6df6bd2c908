from __future__ import annotations

from typing import Any

from tasks.registry.card import render_card


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
        "| win rate over π_ref, reward model as judge | 0.58 | [0.52, 0.64] | 310 |",
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
