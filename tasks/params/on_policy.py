"""Sections of params that the methods on sampled completions share: KL control, shaping, monitors, vLLM, the arena."""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from plumbline.tasks.params.lengths import FOLLOWS, MOST
from plumbline.tasks.params.section import Section


class KlParams(Section):
    """Control of the KL divergence from π_ref, in nats per response token."""

    mode: Literal["fixed", "adaptive"] = Field(
        "adaptive", description="fixed: β never moves; adaptive: β follows the target (Ziegler et al. 2019)."
    )
    target: float = Field(
        0.1, gt=0, le=10, description="Target of the adaptive mode in nats per token; 0.05 to 0.2 is usual."
    )
    horizon: int = Field(
        256,
        ge=1,
        description="Episodes in which an error of 20 % or more moves β by about 20 %: at 64 episodes an update, 5 % a "
        "step. Ziegler et al. 2019 took 10,000 of 2 million episodes.",
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

    def require_movable(self, beta: float) -> None:
        """Raise `ValueError` if the adaptive mode could not move β from `beta` on."""
        if self.mode == "adaptive" and not 0 < self.beta_min <= beta <= self.beta_max:
            raise ValueError(
                f"the adaptive mode multiplies β, so it needs 0 < kl.beta_min <= beta <= kl.beta_max, found "
                f"{self.beta_min}, {beta}, {self.beta_max}. Move the bounds, or set kl.mode: fixed."
            )

    @model_validator(mode="after")
    def _stop_is_above_the_rest(self) -> Self:
        working = self.target * (self.ramp_at or 1.0)
        if self.mode == "adaptive" and self.stop_at is not None and self.stop_at <= working:
            raise ValueError(
                f"stop_at {self.stop_at} must be above {working:g} nats per token, where the controller still works "
                "(target, times ramp_at if set). Raise stop_at or lower the target."
            )
        return self


class HackingMonitorParams(Section):
    """When training is suspected of hacking its reward."""

    on_finding: Literal["warn", "stop"] = Field(
        "warn", description="warn: log the finding and go on; stop: end training, keeping the best checkpoint."
    )
    window: int = Field(8, ge=5, le=64, description="Latest evaluations over which trends are tested.")
    significance: float = Field(
        0.005,
        gt=0,
        lt=0.5,
        description="One-sided level, per evaluation, at which the held-out measure counts as falling (Mann-Kendall). "
        "At 0.005 a trend takes 6 evaluations at least, and a healthy run of 20 is suspected in at most 5 of 100 cases "
        "(simulated in the tests).",
    )
    fall: float | None = Field(
        0.25,
        gt=0,
        description="Fall of the held-out measure below its best, in its own unit, that needs no trend: found at once, "
        "and where a run has few evaluations. 0.25 of a win rate is more than 4 standard errors of a difference at 128 "
        "prompts and a win rate of 0.7; null: never.",
    )
    length_factor: float | None = Field(
        2.0,
        gt=1,
        description="Growth (or its inverse, shrinkage) of the mean response length that is reported; null: never.",
    )
    repetition_rise: float | None = Field(
        0.2,
        gt=0,
        le=1,
        description="Rise of the share of repeated n-grams that is reported (0.2 = 20 points); null: never.",
    )
    entropy_share: float | None = Field(
        0.2, gt=0, lt=1, description="Share of the first entropy below which it has collapsed; null: never."
    )

    @model_validator(mode="after")
    def _window_can_be_significant(self) -> Self:
        if 1 / math.factorial(self.window) > self.significance:
            raise ValueError(
                f"over {self.window} evaluations even a strict fall has a chance of 1 in "
                f"{math.factorial(self.window)}, above significance {self.significance:g}. Take a larger "
                "window or a larger significance."
            )
        return self


class ShapingParams(Section):
    """How the score of a response becomes a reward for each of its tokens."""

    clip: float | None = Field(
        10.0,
        gt=0,
        description="Scores beyond ± this are cut to it, before the missing-EOS rule; null: never (±10 is usual).",
    )
    missing_eos: Literal["replace", "subtract", "none"] = Field(
        "replace",
        description="What happens to the score of a response without an end token: replaced by -missing_eos_penalty "
        "(summarize_from_feedback_details), lowered by missing_eos_penalty (TRL), or kept.",
    )
    missing_eos_penalty: float = Field(
        1.0,
        ge=0,
        description="In units of the score; 1 is usual. Where honest answers score below -1, `replace` rewards never "
        "ending: take a larger value, or subtract.",
    )
    kl_estimator: Literal["k1", "k3"] = Field(
        "k1",
        description="KL penalty of a token (Schulman 2020): k1 = log π - log π_ref, unbiased; k3 = π_ref/π - 1 + k1, "
        "never negative, but biased as a reward.",
    )
    whiten_rewards: bool = Field(
        False,
        description="Scale the rewards of all tokens of an update to variance 1, keeping their mean (Ziegler et al. "
        "2019; off in most later work, since β then means less).",
    )


class VllmParams(Section):
    """How vLLM samples rollouts."""

    mode: Literal["colocate", "server"] = Field(
        "colocate",
        description="colocate: in the training process, sharing its GPUs; server: a running `trl vllm-serve`.",
    )
    server_base_url: str | None = Field(None, description="Address of the server, such as http://host:8000.")
    server_timeout: float = Field(240.0, gt=0, description="Seconds to wait for the server (TRL's default).")
    gpu_memory_utilization: float = Field(
        0.3, gt=0, le=1, description="Share of GPU memory for vLLM when colocated (default of TRL's GRPO)."
    )
    tensor_parallel_size: int = Field(1, ge=1, description="GPUs that share one vLLM engine when colocated.")
    enable_sleep_mode: bool = Field(False, description="Free vLLM's memory during optimiser steps when colocated.")
    max_mismatch: float = Field(
        0.2,
        gt=0,
        description="Largest mean |difference|, nats per token, between vLLM's log-probabilities and the policy's; "
        "bfloat16 gives some hundredths.",
    )

    @model_validator(mode="after")
    def _server_has_an_address(self) -> Self:
        if (self.mode == "server") != (self.server_base_url is not None):
            raise ValueError(
                f"vllm.mode is {self.mode}, vllm.server_base_url is {self.server_base_url}: the address belongs to "
                "mode server, and only there. Set both, or neither."
            )
        return self


class ArenaParams(Section):
    """How the policy is measured on validation prompts while training: against π_ref, by the held-out judge."""

    prompts: int = Field(256, ge=1, le=4096, description="Validation prompts that policy and π_ref both answer.")
    max_new_tokens: int | None = Field(
        None, ge=1, le=MOST, description=f"Longest sampled completion in tokens; {FOLLOWS}"
    )
    temperature: float = Field(1.0, gt=0, le=2, description="Sampling temperature; KL is of the model as sampled at 1.")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus sampling threshold; 1 samples the full distribution.")
