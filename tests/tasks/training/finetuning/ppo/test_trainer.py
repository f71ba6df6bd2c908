from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

import plumbline.tasks.training.finetuning.ppo.model as model_module
import plumbline.tasks.training.finetuning.ppo.rollouts as rollouts_module
from plumbline.data_contracts.errors import ParamsError, StageError
from plumbline.tasks.models.judging import Completions, Scored
from plumbline.tasks.models.loading import load_policy, load_reward, load_tokenizer
from plumbline.tasks.training.finetuning.ppo.config import PPOConfig
from plumbline.tasks.training.finetuning.ppo.trainer import PPOTrainer

pytestmark = pytest.mark.training


class Words:
    """Reward: the number of words."""

    digest = "words"
    max_length = None

    def __init__(self) -> None:
        self.seen: list[Completions] = []

    def score(self, answers: Completions) -> Scored:
        self.seen.append(answers)
        return Scored(np.array([float(len(text.split())) for text in answers.texts]), {}, {})

    def calibrate(self, answers: Completions) -> None:
        self.seen.append(answers)

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Any) -> None:
        pass


QUESTIONS = ["one", "one cat two dog", "bird", "red bird please", "green green green two two two", "yes no"]


@pytest.fixture
def make(reference: Path, tmp_path: Path) -> Callable[..., PPOTrainer]:
    def build(prompts: Sequence[Any] | None = None, reward: Any = None, **changes: Any) -> PPOTrainer:
        torch.manual_seed(1)
        extra = {
            name: changes.pop(name) for name in ("peft_config", "evaluate_with", "temperatures") if name in changes
        }
        arguments: dict[str, Any] = {
            "output_dir": str(tmp_path / "run"),
            "total_episodes": 24,
            "episodes_per_update": 8,
            "num_ppo_epochs": 2,
            "num_mini_batches": 1,
            "per_device_train_batch_size": 8,
            "learning_rate": 1e-2,
            "max_completion_length": 6,
            "calibration_prompts": 4,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "seed": 5,
        }
        prompts = prompts or [[{"role": "user", "content": question}] for question in QUESTIONS]
        return PPOTrainer(
            model=load_policy(reference),
            ref_model=None,
            value_model=load_reward(reference, new_head=True),
            reward=reward or Words(),
            args=PPOConfig(**(arguments | changes)),
            train_dataset=Dataset.from_dict({"prompt": prompts}),
            processing_class=load_tokenizer(reference),
            **extra,
        )

    return build


def trained(trainer: PPOTrainer) -> dict[str, torch.Tensor]:
    trainer.train()
    return {name: weights.detach().clone() for name, weights in trainer.model.state_dict().items()}


def test_accumulating_eight_single_rows_equals_one_batch_of_eight(make: Callable[..., PPOTrainer]) -> None:
    """Rows have different lengths, so a mean of micro-batch means would differ; Adam makes full steps of either."""
    whole, single, uneven = (make(per_device_train_batch_size=rows, learning_rate=2e-4) for rows in (8, 1, 3))
    assert [each.args.gradient_accumulation_steps for each in (whole, single, uneven)] == [1, 8, 3]
    one, eight, three = trained(whole), trained(single), trained(uneven)
    assert whole.state.global_step == single.state.global_step == 6
    start = make().model.state_dict()
    assert max(float((one[name] - start[name]).abs().max()) for name in one) > 2e-4
    for name, weights in one.items():
        assert torch.allclose(weights, eight[name], atol=1e-6, rtol=0), name
        assert torch.allclose(weights, three[name], atol=1e-6, rtol=0), name
    for left, right in zip(whole.state.log_history, single.state.log_history, strict=True):
        for name in ("loss", "approx_kl", "grad_norm", "entropy"):
            assert left.get(name) == pytest.approx(right.get(name), abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "passes"),
    [
        ({}, 1 + 1),  # one that scores the rollout and is the first step's, one of the second epoch
        ({"per_device_eval_batch_size": 3}, 3 + 1),
        ({"num_ppo_epochs": 1}, 1),
        ({"bf16": True}, 1 + 1),
        ({"critic_warmup_updates": 2}, 1 + 1),
        ({"num_mini_batches": 2, "per_device_train_batch_size": 4}, 1 + 4),
        ({"per_device_train_batch_size": 4}, 1 + 4),
    ],
)
def test_the_critic_reads_a_whole_rollout_once_before_its_first_step(
    make: Callable[..., PPOTrainer], monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], passes: int
) -> None:
    """Naive: a critic that forgets what it said of the rollout, and says it again in the first step."""
    calls = []
    say = model_module.response_values

    def counted(*args: Any) -> torch.Tensor:
        calls.append(args)
        return say(*args)

    for module in (model_module, rollouts_module):
        monkeypatch.setattr(module, "response_values", counted)
    changes = {"per_device_eval_batch_size": 8, "optim": "sgd", "learning_rate": 0.1} | changes
    trainer = make(**changes)
    kept = trained(trainer)
    assert len(calls) == 3 * passes

    monkeypatch.setattr(PPOConfig, "keeps_critic_pass", False)
    naive = trained(make(**changes))
    start = make(**changes).model.state_dict()
    head = "critic.score.weight"
    assert not torch.allclose(kept[head], start[head], atol=1e-2)
    # bfloat16 has 8 bits, and rows stand in another order in the two passes
    atol = 1e-2 if changes.get("bf16") else 1e-6
    assert all(torch.allclose(kept[name], naive[name], atol=atol, rtol=0) for name in kept)


def test_first_pass_over_a_rollout_has_ratio_one(make: Callable[..., PPOTrainer]) -> None:
    """Sampler and update agree, so at the first step of an update the ratio is 1: nothing clipped, approx KL 0.

    The policy loss is then -mean(A), and whitened advantages have mean 0.
    """
    trainer = make(num_ppo_epochs=1, temperature=0.7)
    trainer.train()
    for row in trainer.state.log_history[:-1]:
        assert row["clip_fraction"] == 0
        assert row["approx_kl"] == pytest.approx(0, abs=1e-6)
        assert row["ratio_variance"] == pytest.approx(0, abs=1e-6)
        assert row["policy_loss"] == pytest.approx(0, abs=1e-5)


def test_critic_warm_up_leaves_the_policy_alone(make: Callable[..., PPOTrainer]) -> None:
    """Two of three updates train the critic only: no policy loss in their rows, no weight moved before the third."""
    trainer = make(critic_warmup_updates=2, total_episodes=16)
    before = {name: weights.clone() for name, weights in trainer.model.state_dict().items()}
    after = trained(trainer)
    assert all(torch.equal(after[name], before[name]) for name in after if name.startswith("policy"))
    assert any(not torch.equal(after[name], before[name]) for name in after if name.startswith("critic"))
    assert "policy_loss" not in trainer.state.log_history[0]
    longer = make(critic_warmup_updates=2, total_episodes=24)
    moved = trained(longer)
    assert any(not torch.equal(moved[name], before[name]) for name in moved if name.startswith("policy"))
    assert "policy_loss" in longer.state.log_history[2]


def test_two_optimiser_groups_and_their_rates(make: Callable[..., PPOTrainer]) -> None:
    trainer = make(critic_learning_rate=3e-2, weight_decay=0.1, lr_scheduler_type="constant")
    groups = trainer.create_optimizer().param_groups
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [
        (1e-2, 0.1),
        (1e-2, 0),
        (3e-2, 0.1),
        (3e-2, 0),
    ]
    assert sum(len(group["params"]) for group in groups) == len(list(trainer.model.parameters()))
    assert groups[0]["eps"] == 1e-5
    trainer.train()
    assert trainer.state.log_history[0]["critic_learning_rate"] == pytest.approx(3e-2)


def test_policy_and_critic_gradients_are_clipped_apart(make: Callable[..., PPOTrainer]) -> None:
    """A critic gradient a million times larger must leave the policy's as it is."""
    trainer = make(max_grad_norm=1.0)
    for weights in trainer.model.policy.parameters():
        weights.grad = torch.full_like(weights, 1e-4)
    for weights in trainer.model.critic.parameters():
        weights.grad = torch.full_like(weights, 1e2)
    count = sum(weights.numel() for weights in trainer.model.policy.parameters())
    assert float(trainer._clip_grad_norm(trainer.model)) == pytest.approx(1e-4 * count**0.5, rel=1e-4)
    assert all(torch.allclose(weights.grad, torch.tensor(1e-4)) for weights in trainer.model.policy.parameters())
    norm = sum(float(weights.grad.square().sum()) for weights in trainer.model.critic.parameters()) ** 0.5
    assert norm == pytest.approx(1, rel=1e-3)


def test_gradients_that_are_not_clipped_are_measured_all_the_same(make: Callable[..., PPOTrainer]) -> None:
    """At a limit that nothing reaches, the same training reports the same norms of policy and critic."""
    rows = []
    for limit in (0.0, 1e9):
        trainer = make(max_grad_norm=limit)
        trainer.train()
        rows.append(trainer.state.log_history)
    names = ("grad_norm", "critic_grad_norm")
    unclipped, clipped = ([row[name] for row in log[:-1] for name in names] for log in rows)
    assert unclipped == pytest.approx(clipped, rel=1e-5)
    assert len(unclipped) == 6 and min(unclipped) > 0


def test_standard_prompts_are_plain_text(make: Callable[..., PPOTrainer]) -> None:
    """TRL's standard format: tokenised as it stands; a reward sees a message of the user."""
    reward = Words()
    trainer = make(prompts=["one cat", "two"], reward=reward, total_episodes=8)
    vocabulary = trainer.processing_class.get_vocab()
    assert trainer.prompts.ids == [[vocabulary["one"], vocabulary["cat"]], [vocabulary["two"]]]
    trainer.train()
    assert len(reward.seen[0].texts) == 2, "calibration on π_ref's answers to the two prompts there are"
    assert {prompt[0].content for prompt in reward.seen[1].prompts} == {"one cat", "two"}


def test_each_update_draws_its_temperature(make: Callable[..., PPOTrainer]) -> None:
    trainer = make(temperatures=(0.5, 1.0, 2.0), total_episodes=64, learning_rate=1e-4)
    drawn = [trainer.rollouts.temperature(update) for update in range(30)]
    assert set(drawn) == {0.5, 1.0, 2.0}
    assert drawn == [make(temperatures=(0.5, 1.0, 2.0)).rollouts.temperature(update) for update in range(30)]
    trainer.train()
    # were a loss to divide by another temperature than the sampler, ratios would be far from 1
    assert max(row["ratio_variance"] for row in trainer.state.log_history[:-1]) < 1e-3


def test_bf16_and_gradient_checkpointing_train(make: Callable[..., PPOTrainer]) -> None:
    """Recomputed activations give the same weights but for rounding, a thousandth of an AdamW step; bf16 near ones.

    How kernels round depends on the processor: by up to 1e-6 here, 2e-6 on one with AVX2 alone. A step is 5e-3.
    """
    plain = trained(make(total_episodes=8))
    trainer = make(total_episodes=8, activation_checkpointing=True)
    assert not trainer.args.keeps_critic_pass
    recomputed = trained(trainer)
    rounding = trainer.args.learning_rate / 1000
    assert all(torch.allclose(plain[name], recomputed[name], atol=rounding) for name in plain)
    trainer = make(total_episodes=8, bf16=True)
    half = trained(trainer)
    assert all(weights.dtype == torch.float32 for weights in half.values())
    assert any(not torch.equal(plain[name], half[name]) for name in plain)
    assert trainer.state.log_history[0]["approx_kl"] < 0.1


def test_entropy_bonus_raises_entropy(make: Callable[..., PPOTrainer]) -> None:
    def last_entropy(weight: float) -> float:
        trainer = make(total_episodes=64, entropy_coef=weight)
        trainer.train()
        return float(trainer.state.log_history[-2]["entropy"])

    assert last_entropy(1.0) > last_entropy(0.0) + 0.05


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_mini_batches": 3}, r"must be a multiple of num_mini_batches x processes \(3 x 1\).* Set it to 9"),
        ({"log_every": 2, "eval_every": 3}, "must divide eval_every"),
        ({"gradient_accumulation_steps": 2}, "follows from episodes_per_update"),
        ({"eval_strategy": "steps"}, "nothing to evaluate with"),
        ({"prompt_tokens_per_update": 10, "per_device_train_batch_size": 2}, "fewer than its 4 micro-batches"),
    ],
)
def test_batches_that_do_not_divide(make: Callable[..., PPOTrainer], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        make(**changes)


def test_prompts_by_tokens_give_smaller_updates(make: Callable[..., PPOTrainer]) -> None:
    """Prompts of 4 to 9 tokens under a cap of 30: each update takes whole prompts up to it, and none is skipped."""
    trainer = make(prompt_tokens_per_update=30, per_device_train_batch_size=8)
    sizes = [sum(len(trainer.prompts.ids[row]) for row in rows) for rows in trainer.plan]
    assert max(sizes) <= 30
    assert sum(len(rows) for rows in trainer.plan) >= 24
    assert sorted(np.concatenate(trainer.plan)[:6].tolist()) == list(range(6)), "one pass over all prompts comes first"
    trainer.train()
    assert trainer.state.log_history[-2]["episodes"] == sum(len(rows) for rows in trainer.plan)


def test_a_loss_that_is_no_number_ends_the_run(
    make: Callable[..., PPOTrainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make(per_device_train_batch_size=4)
    forward = trainer.model.forward
    monkeypatch.setattr(
        trainer.model,
        "forward",
        lambda **inputs: forward(**inputs)._replace(values=forward(**inputs).values * torch.nan),
    )
    with pytest.raises(StageError, match="'value_loss': nan"):
        trainer.train()
