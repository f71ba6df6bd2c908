"""Params of comparisons and of self-play: sections `compare` and `self_play`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from plumbline.tasks.params.lengths import FOLLOWS, MOST
from plumbline.tasks.params.section import Section, flatten, plain

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,47}")


class RecommendParams(Section):
    """Thresholds of the recommendation. Those of data size are of "what are PPO, GRPO, DPO" (its FAQ)."""

    enough_pairs: int = Field(
        10_000,
        ge=1,
        description="Training pairs from which DPO is known to gain noticeably (10k to 50k, mid-size models).",
    )
    enough_prompts: int = Field(
        100_000,
        ge=1,
        description="Distinct training prompts below which PPO and GRPO may overfit to quirks of the reward model.",
    )
    min_list_share: float = Field(
        0.5, ge=0, le=1, description="Share of training prompts with three or more judged responses that makes lists."
    )
    min_reward_accuracy: float = Field(
        0.6,
        ge=0,
        le=1,
        description="Lower end of the reward model's held-out accuracy from which PPO and GRPO may rely on it. Ours; "
        "published reward models reach 0.65 to 0.75 on human pairs.",
    )
    min_judge_agreement: float = Field(
        0.7, ge=0, le=1, description="Least agreement of judge and gold on a policy's own samples, where gold is known."
    )
    max_kl_nats_per_token: float = Field(
        0.2, gt=0, description="Upper end of the KL band, nats per token; PPO's usual targets are 0.05-0.2."
    )
    alpha: float = Field(
        0.05, gt=0, lt=0.5, description="Significance level of all paired tests together (Bonferroni)."
    )
    min_gain: float = Field(
        0.01, ge=0, lt=1, description="Smallest difference of two win rates that is worth a higher cost."
    )
    same_cost: float = Field(
        1.1, ge=1, description="Costs within this factor count as equal: measured seconds vary between runs."
    )
    same_budget: float = Field(
        1.5,
        ge=1,
        description="CPU seconds of training within this factor count as one budget. The lead of a dearer variant "
        "counts only if its evaluations during training show it at the cheaper one's seconds too.",
    )


class CompareParams(Section):
    """What `plumbline compare` runs side by side, on the same data, π_ref, reward model and prompts."""

    preset: Literal["beta_sweep", "methods"] | None = Field(
        "beta_sweep",
        description="beta_sweep: DPO at each of `betas`; methods: DPO, GRPO, PPO and DPO → PPO (dpo_ppo), each "
        "as long as its section says; null: only `variants`.",
    )
    betas: tuple[float, ...] = Field(
        (0.05, 0.1, 0.2, 0.5), min_length=1, description="β of each variant of beta_sweep."
    )
    dpo_ppo_share: float = Field(
        0.33,
        gt=0,
        le=1,
        description="Share of finetune.ppo.total_episodes that dpo_ppo takes after a whole DPO, so that the two stay "
        "near the budget of one method.",
    )
    variants: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="Further variants, {name: {key: value}}, such as {hot: {finetune.dpo.learning_rate: 0.001}}.",
    )
    seeds: tuple[int, ...] = Field(
        (), description="Seeds of fine-tuning; each variant runs once under each. Empty: the run's own seed."
    )
    parallel: int | None = Field(
        None, ge=1, le=64, description="Variants at work at once. null: half the cores by `threads`, so 1 on 2 cores."
    )
    budget_cpu_seconds: float | None = Field(
        None,
        gt=0,
        description="Most CPU seconds of training; what took more is shown, never recommended. null: no limit.",
    )
    price_cpu_hour: float = Field(
        0.045, gt=0, description="Price of a core hour. 0.045 USD is about what AWS asks for one on demand (c7i)."
    )
    price_gpu_hour: float = Field(
        1.0, ge=0, description="Price of a GPU hour. 1 USD is about an A10G on demand (AWS g5)."
    )
    recommend: RecommendParams = Field(default_factory=RecommendParams, description="Thresholds of the recommendation.")

    @field_validator("variants", mode="before")
    @classmethod
    def _dotted(cls, given: Any) -> Any:
        """Nested settings as dotted keys, so that `--set compare.variants.hot.finetune.dpo.beta=0.1` works too."""
        if not isinstance(given, Mapping):
            return given
        return {
            name: {key: plain(value) for key, value in flatten(settings)} if isinstance(settings, Mapping) else settings
            for name, settings in given.items()
        }

    @model_validator(mode="after")
    def _something_to_compare(self) -> Self:
        wrong = [name for name in self.variants if not _NAME.fullmatch(name)]
        if wrong:
            raise ValueError(f"variants: a name is letters, digits, '.', '_', '-', at most 48; found {wrong[:3]}.")
        if self.preset is None and not self.variants:
            raise ValueError(
                "preset is null and variants is empty: nothing to compare. Name variants, or set a preset."
            )
        for field, values in (("betas", self.betas), ("seeds", self.seeds)):
            if len(set(values)) < len(values):
                raise ValueError(f"{field}: expected different values, found {list(values)}.")
        if any(not 0 <= seed < 2**31 for seed in self.seeds):
            raise ValueError(f"seeds: expected numbers from 0 to 2^31 - 1, found {list(self.seeds)}.")
        return self


class SelfPlayParams(Section):
    """How the tuned policy meets π_ref on training prompts, for new judged pairs."""

    prompts: int = Field(512, ge=1, description="Distinct prompts of the train split, drawn with the run's seed.")
    max_new_tokens: int | None = Field(
        None, ge=1, le=MOST, description=f"Longest answer in tokens; one that does not end is left out. {FOLLOWS}"
    )
    temperature: float = Field(1.0, gt=0, le=5, description="Logits of both policies are divided by this.")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus that is sampled from, as probability mass; 1 is all.")
    batch_size: int = Field(32, ge=1, description="Prompts sampled at once.")
    tie_margin: float = Field(
        0.0,
        ge=0,
        lt=0.5,
        description="A judged pair is a tie where P(win) is within this of ½. 0: only ½ itself, for judges that order.",
    )
