"""The real trainer in a world of two answers, where the optimum is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from plumbline.tasks.models.chat import encode_prompts
from plumbline.tasks.models.judging import Completions, Scored
from plumbline.tasks.models.loading import load_policy, load_reward, load_tokenizer
from plumbline.tasks.params.on_policy import KlParams, ShapingParams
from plumbline.tasks.training.finetuning.ppo.config import PPOConfig
from plumbline.tasks.training.finetuning.ppo.trainer import PPOTrainer

pytestmark = pytest.mark.training

PROMPT = [{"role": "user", "content": "please"}]
YES, NO = 15, 16


class Likes:
    """Reward 1 for `yes`, 0 for anything else; not normalised."""

    digest = "likes"
    max_length = None

    def score(self, answers: Completions) -> Scored:
        return Scored(np.array([float(text == "yes") for text in answers.texts]), {}, {})

    def calibrate(self, answers: Completions) -> None:
        raise AssertionError("calibration_prompts is 0")

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Any) -> None:
        pass


@pytest.fixture
def two_armed(reference: Path) -> torch.nn.Module:
    """π_ref that says one token, `yes` with probability 0.2 or `no` with 0.8, whatever it is asked.

    The output head gets a bias and no weight: 0 and log 4 for the two words, -30 for every other token.
    """
    policy = load_policy(reference)
    head = torch.nn.Linear(policy.config.hidden_size, policy.config.vocab_size)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.fill_(-30.0)
        head.bias[YES], head.bias[NO] = 0.0, math.log(4)
    policy.config.tie_word_embeddings = False
    policy.set_output_embeddings(head)
    return policy


@pytest.fixture
def play(two_armed: Any, reference: Path, tmp_path: Path) -> Callable[[float], tuple[float, list[dict[str, Any]]]]:
    """Train at a fixed β on one-token answers; P(yes) afterwards, and the log."""

    def train(beta: float) -> tuple[float, list[dict[str, Any]]]:
        torch.manual_seed(0)
        tokenizer = load_tokenizer(reference)
        trainer = PPOTrainer(
            model=two_armed,
            ref_model=None,
            value_model=load_reward(reference, new_head=True),
            reward=Likes(),
            args=PPOConfig(
                output_dir=str(tmp_path / "run"),
                total_episodes=256 * 40,
                episodes_per_update=256,
                per_device_train_batch_size=256,
                per_device_eval_batch_size=256,
                num_ppo_epochs=2,
                learning_rate=0.05,
                critic_learning_rate=0.01,
                max_completion_length=1,
                calibration_prompts=0,
                cliprange_value=None,
                beta=beta,
                kl=KlParams(mode="fixed", stop_at=None),
                # one token never ends: its score stays as it is
                shaping=ShapingParams(missing_eos="none"),
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                seed=3,
            ),
            train_dataset=Dataset.from_dict({"prompt": [PROMPT]}),
            processing_class=tokenizer,
        )
        trainer.train()
        ids = torch.tensor(encode_prompts(tokenizer, trainer.prompts.messages))
        with torch.no_grad():
            probabilities = two_armed(input_ids=ids.to(two_armed.device)).logits[0, -1].softmax(-1)
        return float(probabilities[YES]), trainer.state.log_history

    return train


@pytest.mark.long
def test_without_kl_penalty_the_better_arm_is_all_that_is_left(play: Callable[[float], Any]) -> None:
    """β = 0: the expected reward P(yes) is largest at 1; it starts at 0.2."""
    chosen, log = play(0.0)
    assert log[0]["reward"] == pytest.approx(0.2, abs=0.1)
    assert chosen > 0.98


@pytest.mark.long
def test_with_kl_penalty_the_policy_reaches_the_regularised_optimum(play: Callable[[float], Any]) -> None:
    """max E[r] - β KL(π ‖ π_ref) is at π* ∝ π_ref · exp(r / β) (Ziegler et al. 2019, section 2.1).

    With π_ref = (0.2, 0.8), r = (1, 0) and β = 0.5: 0.2 e² = 1.47781 against 0.8, so P(yes) = 0.64878, odds e² times
    those of π_ref. There, KL = 0.64878 ln(0.64878 / 0.2) + 0.35122 ln(0.35122 / 0.8) = 0.76349 - 0.28914 = 0.47435
    nats.
    """
    assert 0.2 * math.e**2 / (0.2 * math.e**2 + 0.8) == pytest.approx(0.64878, abs=1e-5)
    chosen, log = play(0.5)
    assert chosen == pytest.approx(0.64878, abs=0.04)
    late = [row["kl_per_token"] for row in log if "kl_per_token" in row][-20:]
    assert sum(late) / len(late) == pytest.approx(0.474, abs=0.05)
