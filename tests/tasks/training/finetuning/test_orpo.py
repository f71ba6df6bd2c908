from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from plumbline.tasks.models.loading import load_tokenizer
from plumbline.tasks.models.pairs import TokenisedPairs, tokenise_pairs
from plumbline.tasks.params.finetuning import OrpoParams
from plumbline.tasks.params.method_sections import ValidationParams
from plumbline.tasks.training.finetuning import orpo
from plumbline.tasks.training.finetuning.methods import FinetuneInputs
from plumbline.tasks.training.finetuning.orpo import OddsValidation
from tests.support.world import in_world

pytestmark = pytest.mark.training

ONE_STEP = in_world(
    OrpoParams,
    learning_rate=1e-9,
    per_device_train_batch_size=48,
    logging_steps=1,
    eval_steps=1,
    per_device_eval_batch_size=16,
    early_stopping=None,
    validation=in_world(ValidationParams, pairs=4, prompts=4, max_new_tokens=4),
)


def first_row(inputs: FinetuneInputs, **changes: Any) -> dict[str, Any]:
    orpo.run(inputs, ONE_STEP.model_copy(update=changes))
    row: dict[str, Any] = json.loads((inputs.folder / "training.jsonl").read_text().splitlines()[0])
    return row


def log_odds(logps: list[float]) -> float:
    mean = math.exp(sum(logps) / len(logps))
    return math.log(mean / (1 - mean))


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_first_loss_of_a_policy_that_knows_nothing(
    beta: float, inputs: FinetuneInputs, drifted: Path, tmp_path: Path
) -> None:
    """With a head of zeros each of 18 tokens has probability 1/18 everywhere: the likelihood term is log 18, both
    responses have the same odds, x is 0, and the loss is log 18 + beta * log 2."""
    weights = load_file(drifted / "model.safetensors")
    folder = tmp_path / "zeros"
    folder.mkdir()
    for file in drifted.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    head = "lm_head.weight" if "lm_head.weight" in weights else "model.embed_tokens.weight"
    save_file(
        weights | {head: torch.zeros_like(weights[head])}, folder / "model.safetensors", metadata={"format": "pt"}
    )
    row = first_row(dataclasses.replace(inputs, start=folder), beta=beta)
    assert weights[head].shape[0] == 18
    assert row["loss"] == pytest.approx(math.log(18) + beta * math.log(2), abs=1e-5)
    assert row["log_odds_chosen"] == pytest.approx(0, abs=1e-6)


def test_first_loss_is_the_naive_one(inputs: FinetuneInputs, naive_logps: Callable[..., list[float]]) -> None:
    """The likelihood is that of the chosen response a token, averaged over pairs; prompts have no part in it."""
    folder = inputs.reference
    tokens = tokenise_pairs(inputs.train, load_tokenizer(folder), 64).tokens
    likelihood, ratios, odds = [], [], []
    for pair in tokens:
        chosen = naive_logps(folder, pair.prompt_ids, pair.chosen_ids)
        likelihood.append(sum(chosen) / len(chosen))
        x = log_odds(chosen) - log_odds(naive_logps(folder, pair.prompt_ids, pair.rejected_ids))
        odds.append(x)
        ratios.append(-math.log(1 + math.exp(-x)))
    expected = -sum(likelihood) / len(likelihood) - 0.1 * sum(ratios) / len(ratios)
    row = first_row(inputs)
    assert row["loss"] == pytest.approx(expected, abs=1e-5)
    assert row["log_odds_chosen"] == pytest.approx(sum(odds) / len(odds), abs=1e-4)


def test_a_policy_is_validated_by_its_own_log_odds() -> None:
    """Chosen: two tokens of probability 0.8, odds 4. Rejected: 0.5 and 0.5, odds 1. Their logs are 1.386294 and 0."""
    validation = OddsValidation(TokenisedPairs([], [], 0), torch.zeros((1, 2)), 1.0, 64, 8, None)
    rewards = validation.rewards([torch.tensor([0.8, 0.8]).log(), torch.tensor([0.5, 0.5]).log()])
    assert rewards.tolist() == [pytest.approx([1.386294, 0.0], abs=1e-5)]


def test_validation_while_training_has_no_part_of_the_reference(
    inputs: FinetuneInputs, drifted: Path, naive_logps: Callable[..., list[float]]
) -> None:
    given = dataclasses.replace(inputs, start=drifted, validation=inputs.validation[:4])
    facts = orpo.run(given, ONE_STEP)
    margins = []
    for pair in tokenise_pairs(given.validation, load_tokenizer(drifted), 64).tokens:
        chosen, rejected = (
            log_odds(naive_logps(drifted, pair.prompt_ids, ids)) for ids in (pair.chosen_ids, pair.rejected_ids)
        )
        margins.append(chosen - rejected)
    assert facts["evaluations"][0]["margin"] == pytest.approx(sum(margins) / 4, abs=1e-4)
    assert "implied_beta" not in facts


def test_rows_are_whole_and_label_responses_only() -> None:
    rows = orpo.TokenRows([orpo.TokenPair([1, 2], [3, 4], [5])])
    assert rows.map(None) is rows
    assert len(rows) == 1
    assert rows[0] == {
        "chosen_input_ids": [1, 2, 3, 4],
        "chosen_attention_mask": [1, 1, 1, 1],
        "chosen_labels": [-100, -100, 3, 4],
        "rejected_input_ids": [1, 2, 5],
        "rejected_attention_mask": [1, 1, 1],
        "rejected_labels": [-100, -100, 5],
    }
