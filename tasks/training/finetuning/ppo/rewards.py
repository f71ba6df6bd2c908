"""Per-token rewards of PPO: a KL penalty on every token, the score on the last one."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from plumbline.data_contracts.errors import RewardError
from plumbline.tasks.params.on_policy import ShapingParams
from plumbline.tasks.training.finetuning.on_policy.kl_control import k3
from plumbline.tasks.training.finetuning.ppo.advantages import whiten


@dataclass(frozen=True, slots=True)
class ShapedRewards:
    """Rewards of N responses of up to T tokens, with what they are made of; 0 if masked."""

    rewards: Tensor  # (N, T) float32
    kl: Tensor  # (N, T) the penalty of each token before β, nats
    scores: Tensor  # (N,) as they entered: clipped, missing EOS applied
    missing_eos: int  # responses that did not end


def shape_rewards(
    scores: Tensor,
    logps: Tensor,
    ref_logps: Tensor,
    mask: Tensor,
    finished: Tensor,
    *,
    beta: float,
    params: ShapingParams,
) -> ShapedRewards:
    """Rewards r_t = -β·kl_t of each token, plus the score at the last one (Ziegler et al. 2019, section 2.2).

    scores (N,); logps, ref_logps (N, T) nats, of the policy that sampled and of π_ref at the same temperature;
    mask (N, T) bool, True = a response token, a prefix of each row; finished (N,) bool, True = ended by a stop token.
    Raises `RewardError` for scores that are not finite and for a response
    without tokens. The naive equivalent stands in the tests.
    """
    _check(scores, mask)
    # 1. scores: clip, then the missing-EOS rule
    used = scores.detach().float()
    if params.clip is not None:
        used = used.clamp(-params.clip, params.clip)
    unended = ~finished.bool()
    if params.missing_eos == "replace":
        used = used.masked_fill(unended, -params.missing_eos_penalty)
    elif params.missing_eos == "subtract":
        used = used - params.missing_eos_penalty * unended
    # 2. the KL penalty of each token
    kl = (logps.detach().float() - ref_logps.detach().float()).masked_fill(~mask, 0.0)
    if params.kl_estimator == "k3":
        kl = k3(-kl)
    # 3. the score at the last token
    last = mask.sum(1, keepdim=True) - 1  # (N, 1)
    rewards = (-beta * kl).scatter_add(1, last, used.unsqueeze(1))
    # 4. whitening, mean kept
    if params.whiten_rewards:
        rewards = whiten(rewards, mask, shift_mean=False)
    return ShapedRewards(rewards, kl, used, int(unended.sum()))


def _check(scores: Tensor, mask: Tensor) -> None:
    finite = scores.isfinite()
    if not bool(finite.all()):
        raise RewardError(
            f"Expected a finite score for each of {len(scores)} responses, found {int((~finite).sum())} that are not "
            f"(e.g. rows {(~finite).nonzero().flatten()[:3].tolist()}). State a fallback for "
            "the reward term that gave them."
        )
    empty = mask.sum(1) == 0
    if bool(empty.any()):
        raise RewardError(
            f"Expected at least one token in each of {len(mask)} responses, found {int(empty.sum())} without any "
            f"(e.g. rows {empty.nonzero().flatten()[:3].tolist()}), which have no place for a score. Leave them "
            "out first."
        )
