"""Whole updates of the trainer against PPO written out in plain loops.

The naive side shares nothing with the code but the sampled tokens and which rows make a minibatch. Log-probabilities
come from a full forward pass a token without a cache or padding, in float64; values from the critic's own pooled output
on the prompt and the tokens before; everything else is Python arithmetic on single tokens. Weights are compared after
two updates, so the second rollout, its β and its optimiser state hang on the first.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

import plumbline.tasks.training.finetuning.ppo.trainer as trainer_module
from plumbline.tasks.models.judging import Completions, Scored
from plumbline.tasks.models.loading import load_policy, load_reward, load_tokenizer
from plumbline.tasks.params.on_policy import KlParams, ShapingParams
from plumbline.tasks.training.finetuning.ppo.config import PPOConfig
from plumbline.tasks.training.finetuning.ppo.experience import Episodes
from plumbline.tasks.training.finetuning.ppo.trainer import PPOTrainer

pytestmark = pytest.mark.training

PROMPTS = ["red cat", "one", "blue dog please two", "two bird three", "yes no", "green", "three three cat one", "dog"]
BETA = 0.3
KL = KlParams(target=0.05, horizon=16, stop_at=None, beta_max=5.0, ramp_at=None)
SHAPING = ShapingParams(clip=1.5, missing_eos="subtract", missing_eos_penalty=0.7)
BASE: dict[str, Any] = {
    "total_episodes": 16,
    "episodes_per_update": 8,
    "per_device_train_batch_size": 3,  # micro-batches of 3, 3 and 2 rows of other lengths
    "per_device_eval_batch_size": 3,
    "num_ppo_epochs": 2,
    "num_mini_batches": 1,
    "temperature": 1.4,
    "gamma": 0.9,
    "lam": 0.8,
    "cliprange": 0.1,
    "cliprange_value": 0.05,
    "vf_coef": 0.5,
    "entropy_coef": 0.02,
    "max_completion_length": 12,
    "learning_rate": 0.3,
    "critic_learning_rate": 0.1,
    "optim": "sgd",
    "max_grad_norm": 1e9,
}
"""Nothing at a value that would hide it: no weight, discount, temperature or penalty is 0 or 1."""


def count_yes(texts: Sequence[str]) -> list[float]:
    """Up to 1.5 and beyond: 2 for each `yes`, -1 for each `no`, 0.25 for any answer."""
    return [2.0 * text.split().count("yes") - text.split().count("no") + 0.25 for text in texts]


class CountsYes:
    """`count_yes` as a reward without normalisation."""

    digest = "counts-yes"
    max_length = None

    def score(self, answers: Completions) -> Scored:
        return Scored(np.array(count_yes(answers.texts)), {}, {})

    def calibrate(self, answers: Completions) -> None:
        raise AssertionError("calibration_prompts is 0")

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Any) -> None:
        pass


# ---- PPO in plain loops ----


def cut(value: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """The value itself inside the bounds, with its gradient; a constant outside."""
    if low <= value.item() <= high:
        return value
    return torch.tensor(low if value.item() < low else high, dtype=value.dtype)


def larger(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return one if one.item() >= other.item() else other


@dataclass
class Naive:
    """Networks in float64, and β for the next rollout."""

    policy: Any
    reference: Any
    critic: Any
    settings: dict[str, Any]
    beta: float
    optimizers: dict[str, torch.optim.Optimizer]

    def token_terms(self, model: Any, prompt: list[int], answer: Sequence[int]) -> list[tuple[Any, Any]]:
        """(log-probability, entropy) of each token at the temperature, from a forward pass a token."""
        terms = []
        for step, token in enumerate(answer):
            logits = model(input_ids=torch.tensor([[*prompt, *answer[:step]]]), use_cache=False).logits[0, -1]
            logps = torch.log_softmax(logits / self.settings["temperature"], dim=-1)
            terms.append((logps[token], -(logps.exp() * logps).sum()))
        return terms

    def values(self, prompt: list[int], answer: Sequence[int]) -> list[Any]:
        """Value of the state before each token: the critic has read the prompt and the tokens before it."""
        return [
            self.critic(input_ids=torch.tensor([[*prompt, *answer[:step]]]), use_cache=False).logits[0, 0]
            for step in range(len(answer))
        ]

    def update(self, number: int, episodes: Episodes, minibatches: list[list[int]]) -> None:
        rows = [
            (list(prompt), list(each.token_ids))
            for prompt, each in zip(episodes.prompts, episodes.completions, strict=True)
        ]
        scores = count_yes([each.text for each in episodes.completions])
        with torch.no_grad():
            old = [[float(logp) for logp, _ in self.token_terms(self.policy, *row)] for row in rows]
            ref = [[float(logp) for logp, _ in self.token_terms(self.reference, *row)] for row in rows]
            old_values = [[float(value) for value in self.values(*row)] for row in rows]
        # the sampler's numbers are those of a full forward pass of this very policy
        for at, row in enumerate(old):
            assert episodes.logps[at, : len(row)].tolist() == pytest.approx(row, abs=1e-4)
            assert episodes.reference_logps[at, : len(row)].tolist() == pytest.approx(ref[at], abs=1e-4)
            assert episodes.values[at, : len(row)].tolist() == pytest.approx(old_values[at], abs=1e-4)

        rewards = []
        for at, (score, each) in enumerate(zip(scores, episodes.completions, strict=True)):
            score = min(max(score, -1.5), 1.5) - (0.0 if each.finished else 0.7)
            row = [-self.beta * (logp - other) for logp, other in zip(old[at], ref[at], strict=True)]
            row[-1] += score
            rewards.append(row)
        advantages = [self.advantages(*pair) for pair in zip(rewards, old_values, strict=True)]
        returns = [
            [advantage + value for advantage, value in zip(*pair, strict=True)]
            for pair in zip(advantages, old_values, strict=True)
        ]
        flat = [value for row in advantages for value in row]
        mean = sum(flat) / len(flat)
        deviation = math.sqrt(sum((value - mean) ** 2 for value in flat) / len(flat) + 1e-8)
        advantages = [[(value - mean) / deviation for value in row] for row in advantages]

        for chosen in minibatches:
            trains_policy = number >= self.settings.get("critic_warmup_updates", 0)
            total = torch.zeros((), dtype=torch.float64)
            for at in chosen:
                total = total + self.row_loss(
                    rows[at], old[at], old_values[at], advantages[at], returns[at], trains_policy
                )
            total = total / sum(len(rows[at][1]) for at in chosen)
            for network in (self.policy, self.critic):
                network.zero_grad()
            total.backward()
            self.step()

        kl = sum(a - b for pair in zip(old, ref, strict=True) for a, b in zip(*pair, strict=True)) / len(flat)
        error = min(max(kl / KL.target - 1, -0.2), 0.2)
        self.beta *= 1 + error * len(rows) / KL.horizon

    def advantages(self, rewards: list[float], values: list[float]) -> list[float]:
        """The recursion A_t = δ_t + gamma lam A_{t+1}, from the last token back."""
        found: list[float] = []
        for step in reversed(range(len(rewards))):
            last = step == len(rewards) - 1
            delta = rewards[step] + (0.0 if last else self.settings["gamma"] * values[step + 1]) - values[step]
            found.insert(0, delta + (0.0 if last else self.settings["gamma"] * self.settings["lam"] * found[0]))
        return found

    def row_loss(
        self,
        row: tuple[list[int], list[int]],
        old: list[float],
        old_values: list[float],
        advantages: list[float],
        returns: list[float],
        trains_policy: bool,
    ) -> Any:
        """Sum over the tokens of one response."""
        epsilon, value_epsilon = self.settings["cliprange"], self.settings["cliprange_value"]
        total: Any = 0.0
        values = self.values(*row)
        for step, (logp, entropy) in enumerate(self.token_terms(self.policy, *row)):
            if trains_policy:
                ratio = torch.exp(logp - old[step])
                near = cut(ratio, 1 - epsilon, 1 + epsilon)
                total = total + larger(-advantages[step] * ratio, -advantages[step] * near)
                total = total - self.settings["entropy_coef"] * entropy
            value = values[step]
            near = cut(value, old_values[step] - value_epsilon, old_values[step] + value_epsilon)
            error = larger((value - returns[step]) ** 2, (near - returns[step]) ** 2)
            total = total + self.settings["vf_coef"] * 0.5 * error
        return total

    def step(self) -> None:
        """Gradients of each network scaled down to the norm that is allowed, each apart; then the optimiser."""
        for name, network in (("policy", self.policy), ("critic", self.critic)):
            gradients = [each.grad for each in network.parameters() if each.grad is not None]
            norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in gradients))
            for gradient in gradients:
                gradient *= min(1.0, self.settings["max_grad_norm"] / (norm + 1e-6))
            self.optimizers[name].step()


CASES: dict[str, dict[str, Any]] = {
    "everything": {},
    "one forward pass a step": {"per_device_train_batch_size": 8},
    "two minibatches, critic first": {
        "num_mini_batches": 2,
        "per_device_train_batch_size": 2,
        "critic_warmup_updates": 1,
        "episodes_per_update": 6,
        "total_episodes": 12,
    },
    "adam and clipped gradients": {
        "optim": "adamw_torch",
        "adam_epsilon": 1e-3,
        "max_grad_norm": 0.2,
        "learning_rate": 0.01,
        "critic_learning_rate": 0.02,
    },
}


@pytest.fixture
def networks(reference: Path, reward_model: Path) -> Callable[[], tuple[Any, Any]]:
    return lambda: (load_policy(reference), load_reward(reward_model))


@pytest.mark.parametrize("case", CASES)
def test_two_updates_equal_plain_loops(
    case: str,
    networks: Callable[[], tuple[Any, Any]],
    reference: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = BASE | CASES[case]
    policy, critic = networks()
    naive = naive_side(policy, critic, settings)
    before = [copy.deepcopy(network.state_dict()) for network in (policy, critic)]
    tokenizer = load_tokenizer(reference)
    trainer = PPOTrainer(
        model=policy,
        ref_model=None,
        value_model=critic,
        reward=CountsYes(),
        args=PPOConfig(
            output_dir=str(tmp_path / "run"),
            calibration_prompts=0,
            beta=BETA,
            kl=KL,
            shaping=SHAPING,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            seed=5,
            **settings,
        ),
        train_dataset=Dataset.from_dict({"prompt": [[{"role": "user", "content": words}] for words in PROMPTS]}),
        processing_class=tokenizer,
    )
    rollouts, cuts = recorded(trainer, monkeypatch)
    trainer.train()

    assert len(rollouts) == 2
    finished = [each.finished for each in rollouts[0].completions]
    assert len(set(finished)) == 2, "with and without an end"
    assert len({len(each.token_ids) for each in rollouts[0].completions}) > 1, "of several lengths"
    steps = settings["num_ppo_epochs"] * settings["num_mini_batches"]
    for number, episodes in enumerate(rollouts):
        naive.update(number, episodes, cuts[number * steps : (number + 1) * steps])
    for each, network, old in zip((naive.policy, naive.critic), (policy, critic), before, strict=True):
        moved = max(float((network.state_dict()[name] - old[name]).abs().max()) for name in old)
        away = max(
            float((network.state_dict()[name].double() - weights).abs().max())
            for name, weights in each.state_dict().items()
        )
        assert moved > 1e-2
        assert away < 1e-4 * max(moved, 1.0)
    assert trainer.kl.beta == pytest.approx(naive.beta, rel=1e-4)
    assert naive.beta != pytest.approx(BETA, rel=0.05)
    rows = [row for row in trainer.state.log_history if "clip_fraction" in row]
    assert rows[-1]["clip_fraction"] > 0, "the policy loss is clipped somewhere"
    assert rows[-1]["value_clip_fraction"] > 0, "the value loss is clipped somewhere"


def naive_side(policy: Any, critic: Any, settings: dict[str, Any]) -> Naive:
    ours, reference, critic = (copy.deepcopy(each).double().eval() for each in (policy, policy, critic))
    critic.config.pad_token_id = None  # one sequence at a time, none of it padding: the last token is pooled
    rates = {"policy": settings["learning_rate"], "critic": settings["critic_learning_rate"]}
    optimizers: dict[str, torch.optim.Optimizer] = {}
    for name, network in (("policy", ours), ("critic", critic)):
        if settings["optim"] == "sgd":
            optimizers[name] = torch.optim.SGD(network.parameters(), lr=rates[name])
        else:
            optimizers[name] = torch.optim.AdamW(
                network.parameters(), lr=rates[name], eps=settings["adam_epsilon"], weight_decay=0.0
            )
    return Naive(ours, reference, critic, settings, BETA, optimizers)


def recorded(trainer: PPOTrainer, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Episodes], list[list[int]]]:
    """What the trainer samples, and the rows of each of its optimiser steps."""
    rollouts: list[Episodes] = []
    cuts: list[list[int]] = []
    make, cut = trainer.rollouts.make, trainer_module.minibatch_rows

    def making(*args: Any, **kwargs: Any) -> Episodes:
        rollouts.append(make(*args, **kwargs))
        return rollouts[-1]

    def cutting(*args: Any, **kwargs: Any) -> Any:
        steps = cut(*args, **kwargs)
        cuts.extend([int(row) for rows in mine for row in rows] for _, mine in steps)
        return steps

    monkeypatch.setattr(trainer.rollouts, "make", making)
    monkeypatch.setattr(trainer_module, "minibatch_rows", cutting)
    return rollouts, cuts
