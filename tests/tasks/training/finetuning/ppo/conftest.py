"""A reward that counts words, a reward model for the critic to start from, and inputs of small PPO runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plumbline.data_contracts.records import CuratedPair
from plumbline.tasks.models.judging import Completions, Scored, TermValues
from plumbline.tasks.params.method_sections import ValidationParams
from plumbline.tasks.params.ppo import PpoKlParams, PpoParams
from plumbline.tasks.training.finetuning.methods import FinetuneInputs
from tests.support.world import in_world


class CountYes:
    """Likes `yes` and dislikes `no`, less their mean on π_ref, plus a second term that is always 0.25."""

    max_length: int | None = None

    def __init__(self) -> None:
        self.mean = 0.0
        self.calibrations = 0

    @property
    def digest(self) -> str:
        return "count-yes"

    def raw(self, answers: Completions) -> np.ndarray:
        words = [text.split() for text in answers.texts]
        return np.array([each.count("yes") - each.count("no") for each in words], dtype=np.float64)

    def score(self, answers: Completions) -> Scored:
        raw = self.raw(answers)
        constant = np.full(len(raw), 0.25)
        terms = {"yes": TermValues(raw, raw - self.mean, 1.0), "constant": TermValues(constant, constant, 1.0)}
        return Scored(raw - self.mean + 0.25, terms, {})

    def calibrate(self, answers: Completions) -> None:
        self.calibrations += 1
        self.mean = float(self.raw(answers).mean())

    def state(self) -> dict[str, Any]:
        return {"mean": self.mean}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.mean = state["mean"]


@pytest.fixture(scope="session")
def reward_model(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sequence-classification model on the body of π_ref, and its tokenizer."""
    import torch

    from plumbline.tasks.models.loading import load_reward, load_tokenizer

    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("reward")
    load_reward(reference, new_head=True).save_pretrained(folder)
    load_tokenizer(reference).save_pretrained(folder)
    return folder


@pytest.fixture
def ppo_inputs(inputs: FinetuneInputs, reward_model: Path) -> FinetuneInputs:
    """Inputs with a reward and a reward model."""
    return dataclasses.replace(inputs, reward=CountYes(), reward_model=reward_model)


@pytest.fixture
def ppo_elsewhere(elsewhere: Callable[..., FinetuneInputs], reward_model: Path) -> Callable[..., FinetuneInputs]:
    """The same inputs with another output folder, and a reward that has seen nothing."""

    def make(name: str, **changes: Any) -> FinetuneInputs:
        return elsewhere(name, **({"reward": CountYes(), "reward_model": reward_model} | changes))

    return make


QUICK = in_world(
    PpoParams,
    total_episodes=48,
    episodes_per_update=8,
    num_ppo_epochs=2,
    num_mini_batches=1,
    per_device_train_batch_size=4,
    per_device_eval_batch_size=8,
    learning_rate=5e-3,
    critic_learning_rate=1e-2,
    max_completion_length=8,
    calibration_prompts=16,
    logging_steps=1,
    eval_steps=2,
    kl=in_world(PpoKlParams, target=0.1, stop_at=None),
    best_within_kl=None,
    validation=in_world(ValidationParams, pairs=8, prompts=6, max_new_tokens=8),
)
"""Six updates of two steps, with evaluations and checkpoints after steps 4, 8 and 12."""


@pytest.fixture
def quick() -> PpoParams:
    """Params of a run of twelve steps."""
    return QUICK


@pytest.fixture
def few_pairs(pairs: Callable[..., list[CuratedPair]]) -> list[CuratedPair]:
    """Five training pairs."""
    return pairs(5, seed=11)
