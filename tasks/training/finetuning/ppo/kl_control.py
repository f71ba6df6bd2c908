"""The weight β of the KL penalty: fixed or steered to a target, with a ramp for spikes and a stop for runaways.

All KL here is KL(π ‖ π_ref) in nats per response TOKEN, measured on samples of π: the sum over tokens of
log π - log π_ref divided by the number of tokens. Nothing here knows of PPO: GRPO uses the same controller.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from plumbline.data_contracts.errors import StageError
from plumbline.data_contracts.params import Section
from plumbline.data_contracts.rounding import rounded

ERROR_CLIP = 0.2
"""Bound of the relative error KL / target - 1 (Ziegler et al. 2019, section 2.2)."""

NOISE_ERRORS = 4.0
"""Standard errors below 0 beyond which a KL estimate is not noise: one chance in 30,000, were it normal."""

ROUNDING = 1e-3
"""Nats per token by which a KL of 0 may come out negative through rounding alone: sampler and full forward differ
by up to 1e-4, and by more in bfloat16."""


class KlParams(Section):
    """Control of the KL divergence from π_ref, in nats per response token."""

    mode: Literal["fixed", "adaptive"] = Field(
        "adaptive", description="fixed: β never moves; adaptive: β follows the target (Ziegler et al. 2019)."
    )
    beta: float = Field(
        0.04, ge=0, le=10, description="β at the start: reward lost per nat. 0.01 to 0.05 is usual for real models."
    )
    target: float = Field(
        0.1, gt=0, le=10, description="Target of the adaptive mode in nats per token; 0.05 to 0.2 is usual."
    )
    horizon: int = Field(
        256,
        ge=1,
        description="Episodes in which an error of 20 % or more moves β by about 20 %. At 64 episodes an update this "
        "is 5 % a step. Ziegler et al. took 10,000 of 2 million episodes; 1,000 hardly moved β in the sample "
        "world's 3,840.",
    )
    ramp_at: float | None = Field(
        2.0,
        gt=1,
        description="Multiple of the target above which β grows in a straight line (adaptive mode); null: never.",
    )
    ramp_slope: float = Field(
        0.5, gt=0, le=10, description="Growth of β per update on the ramp, as a share of β where the ramp began."
    )
    stop_at: float | None = Field(
        1.0, gt=0, description="KL in nats per token above which the run has run away and stops; null: never."
    )
    stop_patience: int = Field(3, ge=1, description="Updates in a row above stop_at that end the run; 1: the first.")
    beta_min: float = Field(1e-4, ge=0, description="Smallest β that the adaptive mode may reach.")
    beta_max: float = Field(1.0, gt=0, le=10, description="Largest β that the adaptive mode or the ramp may reach.")

    @model_validator(mode="after")
    def _beta_can_move(self) -> Self:
        if self.mode == "adaptive" and not 0 < self.beta_min <= self.beta <= self.beta_max:
            raise ValueError(
                f"the adaptive mode multiplies β, so it needs 0 < beta_min <= beta <= beta_max, found "
                f"{self.beta_min}, {self.beta}, {self.beta_max}. Move the bounds, or set mode: fixed."
            )
        return self

    @model_validator(mode="after")
    def _stop_is_above_the_rest(self) -> Self:
        working = self.target * (self.ramp_at or 1.0)
        if self.mode == "adaptive" and self.stop_at is not None and self.stop_at <= working:
            raise ValueError(
                f"stop_at {self.stop_at} must be above {working:g} nats per token, where the controller still works "
                "(target, times ramp_at if set). Raise stop_at or lower the target."
            )
        return self


class KlController:
    """Holds β for the next rollout. One call of `update` after each rollout, with what that rollout measured."""

    def __init__(self, params: KlParams) -> None:
        self.params = params
        self.beta = params.beta
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
                f"updates in a row ({target}β {self.beta:.4g}). Lower the learning rate, raise kl.beta"
                + (" or kl.ramp_slope" if params.mode == "adaptive" else " or set kl.mode: adaptive")
                + ", or start again from an earlier checkpoint; raise kl.stop_at only if this distance is meant."
            )

    def log(self) -> dict[str, float]:
        """What a training curve shows: β for the next rollout, and 1 while the ramp is on."""
        return {"beta": self.beta, "beta_ramp": float(self._ramp_from is not None)}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, JSON-able."""
        return {"beta": self.beta, "ramp_from": self._ramp_from, "updates_above": self._updates_above}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state()`."""
        self.beta = float(state["beta"])
        self._ramp_from = None if state["ramp_from"] is None else float(state["ramp_from"])
        self._updates_above = int(state["updates_above"])


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
