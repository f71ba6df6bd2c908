"""A fine-tuning run of any method: the steps before its training, and what it writes afterwards.

1. `open_run`: seeds, tokenizer and policy, and the weights that the policy is tied to.
2. `TrainingRun.folder`: where checkpoints go, named by all that the run depends on.
3. `TrainingRun.reference` and `TrainingRun.arena`: π_ref, and how it answers validation prompts.
4. `TrainingRun.train_and_write`: train, keep the best checkpoint, write policy and curve, return facts.

The policy starts from `inputs.start` and is tied to `inputs.reference`; one with the same weights is loaded once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plumbline.data_contracts.errors import ModelError
from plumbline.tasks.models.callbacks import Patience, stop_reason, usual_callbacks
from plumbline.tasks.models.checkpoints import run_folder, weights_digest
from plumbline.tasks.models.curve import curve_rows, evaluations_of, write_curve
from plumbline.tasks.models.loading import context_length, load_policy, load_tokenizer, seed_everything
from plumbline.tasks.models.training import library_versions, train
from plumbline.tasks.params.finetuning import OfflineParams
from plumbline.tasks.params.grpo import GrpoParams
from plumbline.tasks.params.ppo import PpoParams
from plumbline.tasks.training.finetuning.adapters import save_policy
from plumbline.tasks.training.finetuning.arena import Arena, is_beyond, open_arena
from plumbline.tasks.training.finetuning.methods import FinetuneInputs

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerState

    from plumbline.data_contracts.records import CuratedPair

Rows = list[dict[str, Any]]
"""The rows of a curve."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A training that has ended: the facts that every method has, the trainer's last state, the curve."""

    facts: dict[str, Any]
    state: TrainerState
    rows: Rows

    def best_with_kl(self) -> dict[str, Any]:
        """The fact `best` with its KL from π_ref, which methods that sample report there."""
        best: dict[str, Any] = self.facts["best"]
        (found,) = (row for row in self.facts["evaluations"] if row["step"] == best["step"])
        return best | {"kl_per_token": found["kl_per_token"]}


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """A run before its training: the policy as loaded, and what its numbers depend on.

    `libraries` are the versions that facts name and that a resumed run must meet again.
    """

    method: str
    inputs: FinetuneInputs
    params: OfflineParams | GrpoParams | PpoParams
    tokenizer: PreTrainedTokenizerBase
    policy: PreTrainedModel
    start_weights: str
    reference_weights: str
    context: int
    libraries: Mapping[str, str]

    @property
    def tied_to_start(self) -> bool:
        """True if π_ref is the policy that training starts from."""
        return self.start_weights == self.reference_weights

    @property
    def holds_reference(self) -> bool:
        """True if the policy with its adapter off is π_ref."""
        return self.params.lora is not None and self.tied_to_start

    def folder(self, **own: Any) -> Path:
        """The folder of checkpoints, named by all that the run depends on; `own` is the method's part (JSON-able)."""
        inputs = self.inputs
        depends_on = {
            "method": self.method,
            "params": self.params.model_dump(mode="json"),
            "seed": inputs.seed,
            "threads": inputs.threads,
            "start": self.start_weights,
            "reference": self.reference_weights,
            "judge": [inputs.judge_digest, inputs.judge_length] if inputs.judge else "none",
            "libraries": dict(self.libraries),
        }
        return run_folder(inputs.work, depends_on | own)

    def reference(self, device: torch.device) -> PreTrainedModel:
        """π_ref on `device`, where the policy goes too: the policy itself if it is tied to its start."""
        self.policy.to(device)
        if self.tied_to_start:
            return self.policy
        return load_policy(self.inputs.reference, trust_remote_code=self.inputs.trust_remote_code).to(device)

    def arena(self, reference: PreTrainedModel, pairs: Sequence[CuratedPair], *, adapter: bool) -> Arena:
        """Let π_ref answer the prompts of `pairs`; `adapter` as in `open_arena`. There must be a judge."""
        inputs = self.inputs
        assert inputs.judge is not None
        return open_arena(
            reference,
            self.tokenizer,
            pairs,
            inputs.judge,
            self.params.validation,
            batch_size=self.params.per_device_eval_batch_size,
            context=self.context,
            seed=inputs.seed,
            judge_length=inputs.judge_length,
            adapter=adapter,
            progress=inputs.progress,
        )

    def callbacks(self, watched: Sequence[str], *own: Any) -> list[Any]:
        """Early stopping by the `watched` validation metrics if params ask for it, the method's own, the usual ones."""
        stopping = self.params.early_stopping
        patience = [Patience(stopping.patience, stopping.min_delta, watched)] if stopping else []
        return [*patience, *own, *usual_callbacks(self.inputs.progress)]

    def train_and_write(
        self,
        trainer: Trainer,
        policy: PreTrainedModel,
        runs_in: Path,
        best_by: str,
        *,
        rows_of: Callable[[Sequence[Mapping[str, Any]]], Rows] = curve_rows,
    ) -> Ended:
        """Train to the end, write the best policy and its curve into the run's folder.

        `policy` is what `trainer` trains, `best_by` the validation metric of the best checkpoint, `rows_of` makes the
        curve of the trainer's log. Raises `StageError` when training diverges, or disk or memory are full.
        """
        inputs = self.inputs
        trainable = sum(weights.numel() for weights in policy.parameters() if weights.requires_grad)
        state = train(trainer, runs_in)
        rows = rows_of(state.log_history)
        if trainer.is_world_process_zero():
            save_policy(policy, self.tokenizer, inputs.folder)
            write_curve(inputs.folder, rows)
        facts = {
            "method": self.method,
            "settings": self.params.model_dump(mode="json"),
            "seed": inputs.seed,
            "libraries": dict(self.libraries),
            "start_weights": self.start_weights,
            "reference_weights": self.reference_weights,
            "trained_parameters": trainable,
            **self._outcome(state, rows, best_by),
        }
        return Ended(facts, state, rows)

    def _outcome(self, state: TrainerState, rows: Rows, best_by: str) -> dict[str, Any]:
        evaluations = evaluations_of(rows, best_by)
        best = next(row for row in evaluations if row["step"] == state.best_global_step)
        within = not is_beyond(best.get("kl_per_token"), self.params.best_within_kl)
        return {
            "steps": {"planned": state.max_steps, "run": evaluations[-1]["step"]},
            "best": {
                "step": best["step"],
                "metric": best_by,
                "value": best[best_by],
                "within_kl": within,
            },
            "stopped": stop_reason(state.stateful_callbacks) or "all steps done",
            "final_loss": rows[-1]["loss"],
            "evaluations": evaluations,
        }


def open_run(
    method: str, inputs: FinetuneInputs, params: OfflineParams | GrpoParams | PpoParams, *packages: str
) -> TrainingRun:
    """Seed, and load tokenizer and policy; `packages` are libraries that the method's numbers depend on besides.

    Raises `ModelError` when start and reference have different tokenizers.
    """
    seed_everything(inputs.seed, inputs.threads)
    tokenizer = load_tokenizer(inputs.start, trust_remote_code=inputs.trust_remote_code)
    if inputs.start != inputs.reference:
        refuse_other_tokenizer(inputs, tokenizer)
    policy = load_policy(inputs.start, trust_remote_code=inputs.trust_remote_code)
    start = weights_digest(inputs.start)
    return TrainingRun(
        method=method,
        inputs=inputs,
        params=params,
        tokenizer=tokenizer,
        policy=policy,
        start_weights=start,
        reference_weights=start if inputs.start == inputs.reference else weights_digest(inputs.reference),
        context=context_length(policy.config, tokenizer),
        libraries=library_versions("peft", *packages),
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
