"""The frame of methods that learn from recorded feedback (SFT, DPO, KTO, ORPO): all of a run but its loss.

1. `refuse_early`: params that do not fit together, before any work.
2. `open_run`: seeds, policy and tokenizer, the pairs as tokens.
3. `consult_reference`: what π_ref says of the examples and answers in the arena; it leaves memory then.
4. `train_and_write`: train with `MeasuringTrainer` evaluations, keep the best checkpoint, write policy and
   curve, return facts.

The policy starts from `inputs.start` and is tied to `inputs.reference`; where both are one folder it is loaded once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from plumbline.data_contracts.errors import ModelError, ParamsError
from plumbline.tasks.models.callbacks import Patience, stop_reason, usual_callbacks
from plumbline.tasks.models.checkpoints import run_folder, weights_digest
from plumbline.tasks.models.curve import curve_rows, evaluations_of, write_curve
from plumbline.tasks.models.loading import context_length, load_policy, load_tokenizer, seed_everything
from plumbline.tasks.models.pairs import TokenisedPairs, TokenPair, digest_of_tokens, fitting_pairs
from plumbline.tasks.models.training import library_versions, train
from plumbline.tasks.params.finetuning import OfflineParams
from plumbline.tasks.training.finetuning.adapters import save_policy
from plumbline.tasks.training.finetuning.arena import Arena, is_beyond, near_first, open_arena
from plumbline.tasks.training.finetuning.methods import FinetuneInputs
from plumbline.tasks.training.finetuning.reference_logps import reference_logps
from plumbline.tasks.training.finetuning.validation import Validation, draw_pairs

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerControl, TrainerState

WATCHED = ("preference_accuracy", "win_rate")
"""Validation metrics that early stopping looks at."""


@dataclass(frozen=True, slots=True)
class OfflineRun:
    """A run before its training: the policy as loaded, and the validation pairs as its tokens.

    `validation` are all pairs that fit, whose prompts the arena takes; `shown` are those that accuracy is measured on.
    """

    method: str
    inputs: FinetuneInputs
    params: OfflineParams
    tokenizer: PreTrainedTokenizerBase
    policy: PreTrainedModel
    start_weights: str
    reference_weights: str
    context: int
    max_length: int
    validation: TokenisedPairs
    shown: TokenisedPairs

    @property
    def tied_to_start(self) -> bool:
        """True if π_ref is the policy that training starts from."""
        return self.start_weights == self.reference_weights

    def folder(self, examples: str) -> Path:
        """The folder of checkpoints: named by all that the run depends on, `examples` being the digest of its data."""
        inputs = self.inputs
        depends_on = {
            "method": self.method,
            "params": self.params.model_dump(mode="json"),
            "seed": inputs.seed,
            "threads": inputs.threads,
            "start": self.start_weights,
            "reference": self.reference_weights,
            "train": examples,
            # all of it: the arena's prompts are not those of the pairs that are shown
            "validation": digest_of_tokens(self.validation.tokens),
            "judge": [inputs.judge_digest, inputs.judge_length] if inputs.judge else "none",
            "libraries": libraries(),
        }
        return run_folder(inputs.work, depends_on)


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
    if params.best_by == "win_rate" and inputs.judge is None:
        raise ParamsError(
            f"finetune.{method}.best_by is win_rate, which needs a judge, and there is none. "
            f"Set finetune.{method}.best_by: preference_accuracy, or train a reward model first."
        )


def open_run(method: str, inputs: FinetuneInputs, params: OfflineParams) -> OfflineRun:
    """Seed, load the policy to train, and tokenise the validation pairs.

    Raises `ModelError` when start and reference have different tokenizers, and `StageError` when no pair fits.
    """
    seed_everything(inputs.seed, inputs.threads)
    tokenizer = load_tokenizer(inputs.start, trust_remote_code=inputs.trust_remote_code)
    if inputs.start != inputs.reference:
        refuse_other_tokenizer(inputs, tokenizer)
    policy = load_policy(inputs.start, trust_remote_code=inputs.trust_remote_code)
    context = context_length(policy.config, tokenizer)
    max_length = min(params.max_length, context)
    validation = fitting_pairs(inputs.validation, tokenizer, max_length, "validation", f"finetune.{method}")
    start = weights_digest(inputs.start)
    return OfflineRun(
        method=method,
        inputs=inputs,
        params=params,
        tokenizer=tokenizer,
        policy=policy,
        start_weights=start,
        reference_weights=start if inputs.start == inputs.reference else weights_digest(inputs.reference),
        context=context,
        max_length=max_length,
        validation=validation,
        shown=draw_pairs(validation, params.validation.pairs, inputs.seed),
    )


def refuse_other_tokenizer(inputs: FinetuneInputs, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `ModelError` when π_ref reads text as other tokens than the policy, whose tokenizer is given.

    Log-probabilities of a token then mean nothing to the other model.
    """
    other = load_tokenizer(inputs.reference, trust_remote_code=inputs.trust_remote_code)
    differences = {
        "the vocabulary": tokenizer.get_vocab() != other.get_vocab(),
        "the chat template": tokenizer.chat_template != other.chat_template,
        "the special tokens": tokenizer.special_tokens_map != other.special_tokens_map,
    }
    if any(differences.values()):
        raise ModelError(
            f"Expected one tokenizer for the policy to start from ({inputs.start.name}) and for π_ref "
            f"({inputs.reference.name}), found a difference in "
            f"{' and '.join(name for name, differs in differences.items() if differs)}. Start from a policy that was "
            f"tuned from this π_ref, or take the start as the reference."
        )


def consult_reference(
    run: OfflineRun, device: torch.device, *parts: Sequence[TokenPair]
) -> tuple[list[torch.Tensor], Arena | None]:
    """Log π_ref (N, 2) of each part, nats per sequence, and the arena, if there are a judge and prompts."""
    inputs, params = run.inputs, run.params
    run.policy.to(device)
    reference = run.policy
    if not run.tied_to_start:
        reference = load_policy(inputs.reference, trust_remote_code=inputs.trust_remote_code).to(device)
    logps = [
        reference_logps(
            reference,
            run.reference_weights,
            part,
            max_length=run.max_length,
            batch_size=params.eval_batch_size,
            cache=inputs.work / "reference_logps",
            progress=inputs.progress,
        )
        for part in parts
    ]
    if inputs.judge is None or params.validation.prompts == 0:
        return logps, None
    arena = open_arena(
        reference,
        run.tokenizer,
        run.validation.pairs,
        inputs.judge,
        params.validation,
        batch_size=params.eval_batch_size,
        context=run.context,
        seed=inputs.seed,
        judge_length=inputs.judge_length,
        # the policy with its adapter off is what training started from
        adapter=params.lora is not None and run.tied_to_start,
        progress=inputs.progress,
    )
    return logps, arena


def callbacks(run: OfflineRun) -> list[Any]:
    """Early stopping if params ask for it, and the usual ones."""
    stopping = run.params.early_stopping
    patience = [Patience(stopping.patience, stopping.min_delta, WATCHED)] if stopping else []
    return [*patience, *usual_callbacks(run.inputs.progress)]


def keeps_dropout(params: OfflineParams) -> bool:
    """True if dropout stays on in training: that of adapters, which TRL counts to the model's."""
    return params.lora is not None and params.lora.dropout > 0


def train_and_write(run: OfflineRun, trainer: Trainer, runs_in: Path) -> dict[str, Any]:
    """Train to the end, write the best policy and its curve into the run's folder, and return facts.

    Raises `StageError` when training diverges, or disk or memory are full.
    """
    inputs = run.inputs
    trainable = sum(weights.numel() for weights in trainer.model.parameters() if weights.requires_grad)
    state = train(trainer, runs_in)
    rows = curve_rows(state.log_history)
    if trainer.is_world_process_zero():
        save_policy(trainer.model, run.tokenizer, inputs.folder)
        write_curve(inputs.folder, rows)
    return {
        "method": run.method,
        "settings": run.params.model_dump(mode="json"),
        "seed": inputs.seed,
        "libraries": libraries(),
        "start_weights": run.start_weights,
        "reference_weights": run.reference_weights,
        "trained_parameters": trainable,
        **_outcome(state, run.params, rows),
    }


def libraries() -> dict[str, str]:
    """Versions of the libraries that the numbers of a run depend on."""
    return library_versions("peft")


def _outcome(state: TrainerState, params: OfflineParams, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    evaluations = evaluations_of(rows, "preference_accuracy")
    return {
        "steps": {"planned": state.max_steps, "run": evaluations[-1]["step"]},
        "best": _best(state, params, evaluations),
        "stopped": stop_reason(state.stateful_callbacks) or "all steps done",
        "final_loss": rows[-1]["loss"],
        "evaluations": evaluations,
    }


def _best(state: TrainerState, params: OfflineParams, evaluations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found = next(row for row in evaluations if row["step"] == state.best_global_step)
    within = not is_beyond(found.get("kl_per_token"), params.best_within_kl)
    return {"step": found["step"], "metric": params.best_by, "value": found[params.best_by], "within_kl": within}
