from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from plumbline.tasks.models.loading import load_tokenizer
from plumbline.tasks.params.finetuning import DpoParams, ImitationParams, KtoParams, OrpoParams
from plumbline.tasks.params.method_sections import ValidationParams
from plumbline.tasks.training.finetuning import dpo, kto, orpo, sft
from plumbline.tasks.training.finetuning.methods import FinetuneInputs
from plumbline.tasks.training.finetuning.tokens import in_all, of_passes
from tests.support.world import in_world

QUICK: dict[str, Any] = {
    "num_train_epochs": 1.0,
    "per_device_train_batch_size": 8,
    "logging_steps": 6,
    "eval_steps": 6,
    "early_stopping": None,
    "validation": in_world(ValidationParams, pairs=8, prompts=2, max_new_tokens=4),
}


@pytest.mark.parametrize(
    ("steps", "processes", "seen"),
    [(3, 1, 100), (6, 1, 200), (1, 1, 33), (2, 2, 100)],
)
def test_tokens_of_passes_and_of_a_part(steps: int, processes: int, seen: int) -> None:
    """Ten examples of ten tokens in batches of 2, two batches a step: 5 batches, 3 steps a pass, the last of them half.
    On two processes it is 3 batches, 2 steps a pass. One step of three is a third of 100 tokens."""
    params = in_world(DpoParams, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    found = of_passes([10] * 10, params, steps=steps, processes=processes)
    assert found == {"seen": seen, "generated": 0}


def test_stages_add_up() -> None:
    assert in_all([{"seen": 3, "generated": 0}, {"seen": 4, "generated": 2}]) == {"seen": 7, "generated": 2}


@pytest.mark.training
@pytest.mark.parametrize(
    ("method", "params", "sides"),
    [
        (sft, in_world(ImitationParams, **QUICK), ("chosen",)),
        (dpo, in_world(DpoParams, **QUICK), ("chosen", "rejected")),
        (orpo, in_world(OrpoParams, **QUICK), ("chosen", "rejected")),
        (kto, in_world(KtoParams, **QUICK), ("chosen", "rejected")),
    ],
    ids=["sft", "dpo", "orpo", "kto"],
)
def test_a_pass_reads_every_response_with_its_prompt(
    method: ModuleType, params: Any, sides: tuple[str, ...], inputs: FinetuneInputs
) -> None:
    """One pass over 48 pairs; the word-level tokenizer gives a token a word, `<|user|>` and `<|assistant|>`, and an end
    to each turn: 4 tokens besides the words."""
    facts = method.run(inputs, params)
    words = sum(
        len(pair.prompt[0].content.split()) + len(getattr(pair, side).split()) + 4
        for pair in inputs.train
        for side in sides
    )
    assert facts["tokens"] == {"seen": words, "generated": 0}
    assert facts["too_long"]["train"] == 0
    assert len(load_tokenizer(inputs.folder)("yes no")["input_ids"]) == 2
