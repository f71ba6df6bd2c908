"""The models that both sides of `benchmarks.ppo_vs_trl` start from, by size.

- `0.15M`: π_ref of a demo workspace; the critic is its reward model with a new head.
- `2M`, `8M`: trained briefly on the workspace's demonstrations with its tokenizer; the critic is the same weights with
  a new head.

At every size the reward is the workspace's reward model, so that the gold reward tells what was learned.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

SIZES: dict[str, dict[str, Any]] = {
    "0.15M": {},
    "2M": {
        "hidden_size": 192,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "intermediate_size": 512,
        "learning_rate": 2e-3,
    },
    "8M": {
        "hidden_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "intermediate_size": 1152,
        "learning_rate": 1e-3,
    },
}
"""Shapes of the models that are not the workspace's own (`TinyModelParams`)."""

CONVERSATIONS = 4800
"""Demonstrations that a larger model is trained on, once."""


def prepare(size: str, workspace: Path, cache: Path, threads: int) -> dict[str, str]:
    """Folders of policy, reward model and critic of a size, made in `cache` when they are not there."""
    folder = cache / size
    policy = workspace / "models" / "reference" if size == "0.15M" else folder / "policy"
    reward = workspace / "models" / "reward"
    critic = folder / "critic"
    if not (critic / "config.json").is_file():
        if size != "0.15M":
            _train_policy(size, workspace, policy, threads)
        _with_random_head(reward if size == "0.15M" else policy, critic, seed=2)
    return {"policy": str(policy), "reward": str(reward), "critic": str(critic)}


def _train_policy(size: str, workspace: Path, folder: Path, threads: int) -> None:
    from plumbline.data_contracts.records import load_conversations
    from plumbline.tasks.models.loading import load_tokenizer
    from plumbline.tasks.models.tiny import train_base
    from plumbline.tasks.params.tiny_model import TinyModelParams

    conversations = load_conversations(workspace / "data" / "world" / "demonstrations.jsonl")[:CONVERSATIONS]
    folder.mkdir(parents=True, exist_ok=True)
    train_base(
        conversations,
        TinyModelParams(**SIZES[size], num_train_epochs=1),
        seed=1,
        threads=threads,
        folder=folder,
        tokenizer=load_tokenizer(workspace / "models" / "reference"),
    )


def _with_random_head(source: Path, folder: Path, seed: int) -> None:
    """A sequence-classification model of the weights in `source`, its head drawn with std 1/√(h + 1)."""
    import torch

    from plumbline.tasks.models.loading import load_reward, load_tokenizer, save_model
    from plumbline.tasks.training.rewards.layout import FACTS

    torch.manual_seed(seed)
    trained_head = (source / FACTS).is_file()
    model = load_reward(source, new_head=not trained_head)
    with torch.no_grad():
        model.score.weight.normal_(std=1 / math.sqrt(model.score.in_features + 1))
    save_model(model, load_tokenizer(source), folder)
    (folder / FACTS).write_text('{"max_length": 256}')
