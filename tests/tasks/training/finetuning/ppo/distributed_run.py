"""Run by test_distributed.py, alone or under torchrun: three updates; the main process writes the curve."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from safetensors.torch import save_file

from plumbline.tasks.models.judging import Completions, Scored
from plumbline.tasks.models.loading import load_policy, load_reward, load_tokenizer
from plumbline.tasks.training.finetuning.ppo.config import PPOConfig
from plumbline.tasks.training.finetuning.ppo.trainer import PPOTrainer

WORDS = ["one", "one cat two dog", "bird", "red bird please", "green green green two two two", "yes no"]


class Words:
    """Reward: the number of words, less that of π_ref's answers."""

    digest = "words"
    max_length = None
    mean = 0.0

    def score(self, answers: Completions) -> Scored:
        return Scored(np.array([float(len(text.split())) for text in answers.texts]) - self.mean, {}, {})

    def calibrate(self, answers: Completions) -> None:
        self.mean = float(np.mean([len(text.split()) for text in answers.texts]))

    def state(self) -> dict[str, float]:
        return {"mean": self.mean}

    def restore(self, state: dict[str, float]) -> None:
        self.mean = state["mean"]


def main(reference: str, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(1)
    trainer = PPOTrainer(
        model=load_policy(reference),
        ref_model=None,
        value_model=load_reward(reference, new_head=True),
        reward=Words(),
        args=PPOConfig(
            output_dir=str(folder / "run"),
            total_episodes=36,
            episodes_per_update=12,
            num_ppo_epochs=2,
            num_mini_batches=2,
            per_device_train_batch_size=2,
            learning_rate=1e-3,
            max_completion_length=6,
            calibration_prompts=4,
            critic_warmup_updates=1,
            eval_strategy="steps",
            eval_every=3,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            seed=5,
        ),
        train_dataset=Dataset.from_dict({"prompt": [[{"role": "user", "content": each}] for each in WORDS]}),
        processing_class=load_tokenizer(reference),
        evaluate_with=lambda policy: {"weights": float(sum(each.double().sum() for each in policy.parameters()))},
    )
    trainer.train()
    if trainer.is_world_process_zero():
        (folder / "curve.json").write_text(json.dumps(trainer.state.log_history))
        save_file(
            {name: weights.contiguous() for name, weights in trainer.model.critic.state_dict().items()},
            folder / "critic.safetensors",
        )
        (folder / "processes.json").write_text(json.dumps(trainer.accelerator.num_processes))


main(sys.argv[1], Path(sys.argv[2]))
