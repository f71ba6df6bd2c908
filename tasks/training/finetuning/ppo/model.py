"""Policy and critic in one module, so that the Trainer, DDP and an optimiser step see one model.

What a forward pass of a micro-batch returns is flat over its M response tokens: nothing is computed for prompts
and padding beyond the transformer blocks themselves (`responses`). Dropout is off: PPO's ratio compares a policy with
itself, not with a thinned one (sampler and update must agree).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from plumbline.data_contracts.errors import ModelError
from plumbline.data_contracts.records import Message
from plumbline.tasks.models.chat import render_pair
from plumbline.tasks.models.completions import Layout, completion_logits, completion_states, head_is_last, unadapted
from plumbline.tasks.models.distributions import logps_and_entropies, target_logps
from plumbline.tasks.models.fast_linear import use_fast_linears
from plumbline.tasks.models.fast_norm import use_fast_norms
from plumbline.tasks.models.loading import load_reward
from plumbline.tasks.models.packing import backbone, can_pack

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_PROBE = (Message(role="system", content="Be brief."), Message(role="user", content="Is 2 < 10?"))


class TokenOutputs(NamedTuple):
    """Of each of M response tokens: log-probability and entropy of its distribution (nats), value of its state."""

    logps: Tensor | None
    entropies: Tensor | None
    values: Tensor | None


class ActorCritic(nn.Module):
    """A policy (causal language model, with or without adapters) and a critic (one output a token)."""

    accepts_loss_kwargs = False

    def __init__(self, policy: PreTrainedModel, critic: PreTrainedModel) -> None:
        super().__init__()
        disable_dropout(policy)
        disable_dropout(critic)
        self.policy = policy
        self.critic = critic
        for network in (policy, critic):
            use_fast_linears(network)
            use_fast_norms(network)
        self.direct = head_is_last(policy)
        self.packed = can_pack(unadapted(policy)) and can_pack(critic)

    def forward(
        self,
        ids: Tensor,
        rows: Tensor,
        positions: Tensor,
        targets: Tensor,
        temperature: float,
        policy: bool = True,
        critic: bool = True,
        entropies: bool = True,
    ) -> TokenOutputs:
        """Ids (B, L), right-padded; rows, positions, targets (M,) place and name the response tokens in them."""
        layout = Layout.of(ids, rows, positions, packed=self.packed)
        logps = spread = values = None
        if policy:
            logits = completion_logits(self.policy, layout, direct=self.direct)
            logits = logits.float() if temperature == 1 else logits.float() / temperature
            if entropies:
                logps, spread = logps_and_entropies(logits, targets)
            else:
                logps = target_logps(logits, targets)
        if critic:
            values = response_values(self.critic, layout)
        return TokenOutputs(logps, spread, values)

    def train(self, mode: bool = True) -> Self:
        """Switch both networks; the Trainer does so before each micro-batch, mostly with nothing to switch."""
        if any(each.training is not mode for each in (self, self.policy, self.critic)):
            super().train(mode)
        return self

    def activation_checkpointing_enable(self, **kwargs: Any) -> None:
        """Recompute activations of both networks in the backward pass."""
        self.packed = False  # packing does not reach into the second forward pass
        for network in (self.policy, self.critic):
            network.activation_checkpointing_enable(**kwargs)
            if hasattr(network, "enable_input_require_grads") and hasattr(network, "peft_config"):
                network.enable_input_require_grads()


def response_values(critic: PreTrainedModel, layout: Layout) -> Tensor:
    """Values (M,) float32 of the state before each response token: prompt and response up to it, without it."""
    values: Tensor = critic.score(completion_states(backbone(critic), layout))
    return values.squeeze(-1).float()


def disable_dropout(model: nn.Module) -> None:
    """Switch dropout off in every mode: modules, and the rates that attention functions read (not the config)."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def new_value_head(critic: PreTrainedModel, generator: torch.Generator) -> None:
    """Draw the critic's head anew: normal, std 1/√(h + 1), bias 0 (summarize_from_feedback_details)."""
    head = critic.score
    with torch.no_grad():
        drawn = torch.randn(head.weight.shape, generator=generator) / (head.in_features + 1) ** 0.5
        head.weight.copy_(drawn)
        if head.bias is not None:
            head.bias.zero_()


def load_critic(
    folder: Path,
    *,
    policy_tokenizer: PreTrainedTokenizerBase,
    critic_tokenizer: PreTrainedTokenizerBase,
    seed: int,
    from_policy: bool = False,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """A critic with the weights of a reward model (or, with `from_policy`, of a causal model) and a new head.

    Raises `ModelError` when its tokenizer is not the policy's, since it reads the policy's token ids.
    """
    check_same_tokens(policy_tokenizer, critic_tokenizer, str(folder.name))
    critic = load_reward(folder, trust_remote_code=trust_remote_code, new_head=from_policy)
    new_value_head(critic, torch.Generator().manual_seed(seed))
    return critic


def check_same_tokens(policy: PreTrainedTokenizerBase, critic: PreTrainedTokenizerBase, name: str) -> None:
    """Raise `ModelError` unless both tokenizers give a conversation the same ids."""
    ours, theirs = policy.get_vocab(), critic.get_vocab()
    if ours != theirs:
        differing = sorted(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
        raise ModelError(
            f"A critic reads the policy's token ids, so {name} needs the policy's tokenizer; found {len(ours)} tokens "
            f"in the policy's and {len(theirs)} in its own, {len(differing)} of them different (e.g. {differing[:3]}). "
            "Train the reward model from the same base, or set finetune.ppo.critic_init: reference."
        )
    if policy.chat_template is None and critic.chat_template is None:
        return
    rendered = [render_pair(tokenizer, _PROBE[1:], "Yes.") for tokenizer in (policy, critic)]
    if rendered[0] != rendered[1]:
        raise ModelError(
            f"The chat template of {name} is not the policy's: one conversation renders as {rendered[0][:120]!r} for "
            f"the policy and as {rendered[1][:120]!r} for it, so the critic would read a format that it was not "
            "trained on. Train the reward model with the policy's template, or set finetune.ppo.critic_init: reference."
        )
