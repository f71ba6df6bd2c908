"""Every tunable of Plumbline as one typed whole: `Params`, a section a stage or service."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from plumbline.tasks.params.comparison import CompareParams, SelfPlayParams
from plumbline.tasks.params.curation import CurationParams
from plumbline.tasks.params.evaluation import EvaluationParams, GateParams
from plumbline.tasks.params.feedback import FeedbackParams
from plumbline.tasks.params.finetuning import FinetuneParams, ReferenceParams
from plumbline.tasks.params.intake import IntakeParams
from plumbline.tasks.params.judge import JudgeParams
from plumbline.tasks.params.lengths import lacks_length
from plumbline.tasks.params.mixture import MixtureParams
from plumbline.tasks.params.monitor import MonitorParams
from plumbline.tasks.params.operations import OperationsParams
from plumbline.tasks.params.promotion import PromotionParams
from plumbline.tasks.params.registry import RegistryParams
from plumbline.tasks.params.reward import RewardParams
from plumbline.tasks.params.sample_world import SampleWorldParams
from plumbline.tasks.params.schedule import ScheduleParams
from plumbline.tasks.params.section import Section
from plumbline.tasks.params.services import ServicesParams
from plumbline.tasks.params.serving import ServingParams
from plumbline.tasks.params.tiny_model import TinyModelParams
from plumbline.tasks.params.training import TrainingParams, share
from plumbline.tasks.params.trigger import TriggerParams


class DerivedParams(Section):
    """Values that follow from other params, so that a stage runs again only where they change."""

    measures_lengths: bool = Field(description="True if a length of sampled completions follows from π_ref's own.")
    longest_sequence: int = Field(
        description="Most tokens of a prompt with its sampled completion: `max_length` of the reward model, which "
        "judges it, and of GRPO if it runs."
    )


class Params(Section):
    """Every tunable of a retraining run, a section a stage."""

    recipe: str | None = Field(
        default=None,
        description="A recipe in params/, by its name: its values stand below those of params.yaml.",
    )
    seed: int = Field(default=17, ge=0, lt=2**31, description="Seed of every stage.")
    threads: int = Field(default=1, ge=1, le=256, description="Torch threads of a training stage, on CPU.")
    sample_world: SampleWorldParams = Field(
        default_factory=SampleWorldParams, description="The embedded world with a known truth."
    )
    feedback: FeedbackParams = Field(
        default_factory=FeedbackParams, description="What feedback is read, and how strictly."
    )
    curation: CurationParams = Field(
        default_factory=CurationParams, description="Leaks, duplicates, contradictions, lengths, splits."
    )
    tiny_model: TinyModelParams = Field(
        default_factory=TinyModelParams, description="The model trained from scratch where reference.base is null."
    )
    training: TrainingParams = Field(
        default_factory=TrainingParams,
        description="What reference.sft, reward and the methods of finetune share; each may set its own.",
    )
    reference: ReferenceParams = Field(default_factory=ReferenceParams, description="The reference policy, pi_ref.")
    reward: RewardParams = Field(default_factory=RewardParams, description="The reward model and its audit.")
    mixture: MixtureParams = Field(
        default_factory=MixtureParams, description="What on-policy training maximises: a weighted mixture of terms."
    )
    judge: JudgeParams = Field(default_factory=JudgeParams, description="Who ranks candidates, and what a rank gains.")
    finetune: FinetuneParams = Field(
        default_factory=FinetuneParams, description="The fine-tuning method and its settings."
    )
    evaluation: EvaluationParams = Field(
        default_factory=EvaluationParams, description="Sampling and statistics on the test split."
    )
    gate: GateParams = Field(
        default_factory=GateParams, description="Thresholds a model must meet to be registered as passed."
    )
    compare: CompareParams = Field(
        default_factory=CompareParams, description="What `plumbline compare` runs side by side."
    )
    self_play: SelfPlayParams = Field(
        default_factory=SelfPlayParams, description="How `plumbline self-play` makes judged pairs."
    )
    registry: RegistryParams = Field(
        default_factory=RegistryParams, description="Where and under which name models are registered."
    )
    operations: OperationsParams = Field(
        default_factory=OperationsParams,
        description="Where the outbox, the ledger and the log of served answers are kept.",
    )
    services: ServicesParams = Field(
        default_factory=ServicesParams, description="What `plumbline up` starts, and on which ports."
    )
    schedule: ScheduleParams = Field(
        default_factory=ScheduleParams, description="When the server retrains, polls and monitors by itself."
    )
    trigger: TriggerParams = Field(
        default_factory=TriggerParams, description="When fresh feedback, age or a finding starts a run."
    )
    intake: IntakeParams = Field(
        default_factory=IntakeParams, description="The watched inbox and the HTTP endpoint that take feedback in."
    )
    promotion: PromotionParams = Field(
        default_factory=PromotionParams, description="Gates between a registered version and an alias that serves."
    )
    serving: ServingParams = Field(
        default_factory=ServingParams, description="The serving process, its shadow and its canary."
    )
    monitor: MonitorParams = Field(
        default_factory=MonitorParams, description="What is watched, and at which rate of false alarms."
    )

    @property
    def derived(self) -> DerivedParams:
        """The values that stages read and nobody sets."""
        return DerivedParams(
            measures_lengths=any(map(lacks_length, (self.finetune, self.evaluation, self.self_play))),
            longest_sequence=min(
                [self.reward.max_length]
                + [self.finetune.grpo.max_length for name in self.finetune.methods if name == "grpo"]
            ),
        )

    @model_validator(mode="before")
    @classmethod
    def _sections_take_what_they_share(cls, given: Any) -> Any:
        return share(given) if isinstance(given, Mapping) else given
