"""Checkpoints of policy, critic and everything that PPO has learned besides.

    checkpoint-<step>/                 the policy as its library saves it (weights and config, or an adapter), tokenizer
    checkpoint-<step>/critic/          the critic
    checkpoint-<step>/ppo.json         KL controller, reward normalisation, monitors, counters
    checkpoint-<step>/…                optimiser, schedule, random states, trainer_state.json: as transformers writes
    them

The policy stands at the root, so a checkpoint loads with `from_pretrained` like that of any other trainer. Weights are
read back through the same class: shards, tied embeddings and renamed parameters are its business.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import torch
from transformers import Trainer

from plumbline.data_contracts.artifact import write_json
from plumbline.data_contracts.errors import ModelError
from plumbline.data_contracts.private_names import require_names

if TYPE_CHECKING:
    from transformers import PreTrainedModel

require_names("transformers", Trainer, "_save", "_load_from_checkpoint", "_load_best_model")

CRITIC = "critic"
STATE = "ppo.json"


class SavesActorCritic(Trainer):  # type: ignore[misc]
    """Saving and loading by transformers' Trainer, for an `ActorCritic`."""

    def ppo_state(self) -> dict[str, Any]:
        """The state for a checkpoint beside weights, JSON-able."""
        raise NotImplementedError

    def restore_ppo_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `ppo_state()`."""
        raise NotImplementedError

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        save_network(self.model.policy, folder)
        save_network(self.model.critic, folder / CRITIC)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)
        write_json(folder / STATE, self.ppo_state())

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder = Path(resume_from_checkpoint)
        load_network(self.model.policy, folder)
        load_network(self.model.critic, folder / CRITIC)
        try:
            state = orjson.loads((folder / STATE).read_bytes())
        except (OSError, orjson.JSONDecodeError) as error:
            raise ModelError(
                f"{folder}: expected a checkpoint of PPOTrainer with a readable {STATE}, found {error}. Resume from "
                "another checkpoint, or start anew."
            ) from error
        self.restore_ppo_state(state)

    def _load_best_model(self) -> None:
        """The policy of the best checkpoint; critic and counters stay those of the end, which facts report."""
        load_network(self.model.policy, Path(self.state.best_model_checkpoint))


def save_network(model: PreTrainedModel, folder: Path) -> None:
    """Write a network, or its adapter alone (its base is not trained)."""
    folder.mkdir(parents=True, exist_ok=True)
    extra = {"save_embedding_layers": False} if hasattr(model, "peft_config") else {}
    model.save_pretrained(folder, **extra)
    # a card that the adapter's library writes, with a path of this machine
    (folder / "README.md").unlink(missing_ok=True)


@torch.no_grad()
def load_network(model: PreTrainedModel, folder: Path) -> None:
    """Overwrite the weights of a network with those that `save_network` wrote, bit by bit."""
    if hasattr(model, "peft_config"):
        from peft import load_peft_weights, set_peft_model_state_dict

        set_peft_model_state_dict(model, load_peft_weights(str(folder), device=str(model.device)))
        return
    saved = type(model).from_pretrained(folder, dtype=model.dtype, local_files_only=True, use_safetensors=True)
    model.load_state_dict(saved.state_dict())
