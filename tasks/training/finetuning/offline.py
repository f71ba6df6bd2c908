"""The frame of methods that learn from recorded feedback (SFT, DPO, KTO, ORPO): all of a run but its loss.

1. `refuse_early`: params that do not fit together, before any work.
2. `open_pairs`: the run (`run.open_run`), and the validation pairs as its tokens.
3. `consult_reference`: what π_ref says of the examples and answers in the arena; it leaves memory then.
4. A trainer made of `PairsRun.trainer_arguments`, evaluated as a `MeasuringTrainer`, and `PairsRun.train_and_write`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from plumbline.data_contracts.errors import ParamsError
from plumbline.tasks.models.pairs import TokenisedPairs, TokenPair, digest_of_tokens, fitting_pairs
from plumbline.tasks.params.finetuning import OfflineParams
from plumbline.tasks.training.finetuning.adapters import lora_config
from plumbline.tasks.training.finetuning.arena import Arena, near_first
from plumbline.tasks.training.finetuning.methods import FinetuneInputs
from plumbline.tasks.training.finetuning.reference_logps import reference_logps
from plumbline.tasks.training.finetuning.run import TrainingRun, open_run
from plumbline.tasks.training.finetuning.tokens import of_passes
from plumbline.tasks.training.finetuning.validation import Validation, draw_pairs

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer, TrainerControl, TrainerState, TrainingArguments

WATCHED = ("preference_accuracy", "win_rate")
"""Validation metrics that early stopping looks at."""


@dataclass(frozen=True, slots=True)
class PairsRun:
    """A run before its training, and the validation pairs as its tokens.

    `validation` are all pairs that fit, whose prompts the arena takes; `shown` are those that accuracy is measured on.
    """

    run: TrainingRun
    params: OfflineParams
    max_length: int
    validation: TokenisedPairs
    shown: TokenisedPairs

    def folder(self, examples: str) -> Path:
        """The folder of checkpoints; `examples` is the digest of what is trained on."""
        # all of it: the arena's prompts are not those of the pairs that are shown
        return self.run.folder(train=examples, validation=digest_of_tokens(self.validation.tokens))

    def trainer_arguments(self, config: TrainingArguments) -> dict[str, Any]:
        """Arguments of a `MeasuringTrainer` that no method has of its own."""
        return {
            "model": self.run.policy,
            "args": config,
            "processing_class": self.run.tokenizer,
            "peft_config": lora_config(self.params.lora),
            "callbacks": self.run.callbacks(WATCHED),
            "best_within_kl": self.params.best_within_kl,
        }

    def measured_by(self, logps: torch.Tensor, beta: float, arena: Arena | None) -> Validation:
        """The validation of a policy whose implicit reward is β (log π - log π_ref), with π_ref's `logps` (N, 2)."""
        return Validation(self.shown, logps, beta, self.max_length, self.params.per_device_eval_batch_size, arena)

    def train_and_write(
        self, trainer: Trainer, runs_in: Path, lengths: Sequence[int], too_long: Mapping[str, int]
    ) -> dict[str, Any]:
        """Train, write the policy and return facts (`TrainingRun.train_and_write`).

        `lengths` are the tokens of each example, `too_long` counts examples that were set aside.
        """
        facts = self.run.train_and_write(trainer, trainer.model, runs_in, self.params.metric_for_best_model).facts
        steps, processes = facts["steps"]["run"], trainer.args.world_size
        return facts | {
            "pairs": {"validation": len(self.shown.tokens)},
            "too_long": {**too_long, "validation": self.validation.too_long, "max_length": self.max_length},
            "tokens": of_passes(lengths, self.params, steps=steps, processes=processes),
        }


class MeasuringTrainer:
    """Mixin for a trainer: an evaluation is `validation.measure`, in place of the loss on a dataset."""

    args: Any
    state: TrainerState
    control: TrainerControl
    model: PreTrainedModel

    def __init__(self, *args: Any, validation: Validation, best_within_kl: float | None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.validation = validation
        self.best_within_kl = best_within_kl

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """As transformers, with policies near π_ref before all others (`arena.near_first`)."""
        ranked = near_first(metrics, self.args.metric_for_best_model, self.best_within_kl)
        found: bool = super()._determine_best_metric(ranked, trial)  # type: ignore[misc]
        return found

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Measure the policy on the validation split; names start with `eval_`, as transformers expects."""
        self.model.eval()
        metrics = {f"eval_{name}": value for name, value in self.validation.measure(self.model).items()}
        self.log(metrics)  # type: ignore[attr-defined]
        self.control = self.callback_handler.on_evaluate(  # type: ignore[attr-defined]
            self.args, self.state, self.control, metrics
        )
        return metrics


def refuse_early(method: str, inputs: FinetuneInputs, params: OfflineParams) -> None:
    """Raise `ParamsError` if the best checkpoint is to be chosen by a judge that is not there."""
    if params.metric_for_best_model == "win_rate" and inputs.judge is None:
        raise ParamsError(
            f"finetune.{method}.metric_for_best_model is win_rate, which needs a judge, and there is none. "
            f"Set finetune.{method}.metric_for_best_model: preference_accuracy, or train a reward model first."
        )


def open_pairs(method: str, inputs: FinetuneInputs, params: OfflineParams) -> PairsRun:
    """Open the run and tokenise the validation pairs. Raises `StageError` when no pair fits."""
    run = open_run(method, inputs, params)
    max_length = min(params.max_length, run.context)
    validation = fitting_pairs(inputs.validation, run.tokenizer, max_length, "validation", f"finetune.{method}")
    return PairsRun(run, params, max_length, validation, draw_pairs(validation, params.validation.pairs, inputs.seed))


def consult_reference(
    opened: PairsRun, device: torch.device, *parts: Sequence[TokenPair]
) -> tuple[list[torch.Tensor], Arena | None]:
    """Log π_ref (N, 2) of each part, nats per sequence, and the arena, if there are a judge and prompts."""
    run, params = opened.run, opened.params
    reference = run.reference(device)
    logps = [
        reference_logps(
            reference,
            run.reference_weights,
            part,
            max_length=opened.max_length,
            batch_size=params.per_device_eval_batch_size,
            cache=run.inputs.work / "reference_logps",
            progress=run.inputs.progress,
        )
        for part in parts
    ]
    if run.inputs.judge is None or params.validation.prompts == 0:
        return logps, None
    return logps, run.arena(reference, opened.validation.pairs, adapter=run.holds_reference)


def keeps_dropout(params: OfflineParams) -> bool:
    """True if dropout stays on in training: that of adapters, which TRL counts to the model's."""
    return params.lora is not None and params.lora.lora_dropout > 0
