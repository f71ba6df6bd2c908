"""The weight β of the KL penalty: fixed or steered to a target, with a ramp for spikes and a stop for runaways.

All KL here is KL(π ‖ π_ref) in nats per response TOKEN, measured on samples of π: the sum over tokens of
log π - log π_ref divided by the number of tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from plumbline.data_contracts.errors import StageError
from plumbline.data_contracts.rounding import rounded
from plumbline.tasks.params.on_policy import KlParams

if TYPE_CHECKING:
    from torch import Tensor

ERROR_CLIP = 0.2
"""Bound of the relative error KL / target - 1 (Ziegler et al. 2019, section 2.2)."""

NOISE_ERRORS = 4.0
"""Standard errors below 0 beyond which a KL estimate is not noise: one chance in 30,000, were it normal."""

ROUNDING = 1e-3
"""Nats per token by which a KL of 0 may come out negative through rounding alone: sampler and full forward differ
by up to 1e-4, and by more in bfloat16."""


class KlController:
    """Holds β for the next rollout. One call of `update` after each rollout, with what that rollout measured.

    `beta` is β at the start.
    """

    def __init__(self, params: KlParams, beta: float) -> None:
        self.params = params
        self.beta = beta
        self._ramp_from: float | None = None  # β where the ramp under way began
        self._updates_above = 0  # in a row above stop_at

    def update(self, kl_per_token: float, episodes: int) -> float:
        """Take the KL (nats per token) of a rollout of `episodes` episodes and return the new β.

        1. A KL above `stop_at`, or no number at all, raises `StageError`.
        2. Above ramp_at · target: β grows by ramp_slope · (β where the ramp began), whatever the horizon.
        3. Otherwise β ← β · (1 + clip(KL / target - 1, ±0.2) · n / horizon) (Ziegler et al. 2019, section 2.2), with
           n / horizon at most 1: a larger rollout says no more about the next one.
        """
        self._refuse_runaway(kl_per_token)
        params = self.params
        if params.mode == "fixed":
            return self.beta
        if params.ramp_at is not None and kl_per_token > params.ramp_at * params.target:
            self._ramp_from = self.beta if self._ramp_from is None else self._ramp_from
            moved = self.beta + params.ramp_slope * self._ramp_from
        else:
            self._ramp_from = None
            error = min(max(kl_per_token / params.target - 1, -ERROR_CLIP), ERROR_CLIP)
            moved = self.beta * (1 + error * min(episodes / params.horizon, 1.0))
        self.beta = min(max(moved, params.beta_min), params.beta_max)
        return self.beta

    def _refuse_runaway(self, kl_per_token: float) -> None:
        params = self.params
        if not math.isfinite(kl_per_token):
            raise StageError(
                f"Expected a finite KL from π_ref, found {kl_per_token} nats per token (β {self.beta:.4g}): "
                "log-probabilities have overflowed. Lower the learning rate, or train in float32 or bfloat16."
            )
        over = params.stop_at is not None and kl_per_token > params.stop_at
        self._updates_above = self._updates_above + 1 if over else 0
        if params.stop_at is not None and self._updates_above >= params.stop_patience:
            target = f"target {params.target:g}, " if params.mode == "adaptive" else ""
            raise StageError(
                f"The policy runs away from π_ref: expected a KL of at most {params.stop_at:.15g} nats per token "
                f"(kl.stop_at), found {rounded(kl_per_token, params.stop_at, '.4g')} over {self._updates_above} "
                f"updates in a row ({target}β {self.beta:.4g}). Lower the learning rate, raise beta"
                + (" or kl.ramp_slope" if params.mode == "adaptive" else " or set kl.mode: adaptive")
                + ", or start again from an earlier checkpoint; raise kl.stop_at only if this distance is meant."
            )

    def log(self) -> dict[str, float]:
        """Figures for a training curve: β for the next rollout, and 1 while the ramp is on."""
        return {"beta": self.beta, "beta_ramp": float(self._ramp_from is not None)}

    def state(self) -> dict[str, Any]:
        """The state for a checkpoint, JSON-able."""
        return {"beta": self.beta, "ramp_from": self._ramp_from, "updates_above": self._updates_above}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state()`."""
        self.beta = float(state["beta"])
        self._ramp_from = None if state["ramp_from"] is None else float(state["ramp_from"])
        self._updates_above = int(state["updates_above"])


def k3(log_ratio: Tensor) -> Tensor:
    """Schulman's estimate r - 1 - log r ≥ 0 of KL(p ‖ q), from log r = log q - log p (nats) of samples of p.

    Unbiased, and never negative (joschu.net/blog/kl-approx.html, 2020).
    """
    return log_ratio.expm1() - log_ratio


def check_kl_sign(mean: float, standard_error: float, *, where: str = "the rollout") -> None:
    """Raise `StageError` when an estimate of KL(π ‖ π_ref) is negative beyond what noise explains.

    mean and standard_error in nats per token (or both per sequence). KL is never negative, and log π - log π_ref
    averaged over samples of π is so only by chance, unless the samples are not of the π that is scored.
    """
    if mean < -max(NOISE_ERRORS * standard_error, ROUNDING):
        raise StageError(
            f"Expected a KL from π_ref that is not negative beyond noise, found {mean:.4g} ± {standard_error:.2g} nats "
            f"in {where}. The samples are not drawn from the policy that is scored: sampling and training disagree "
            "about the temperature, top_p (use 1), dropout (must be off), the chat template, or the weights (a sampler "
            "that was not synchronised)."
        )
