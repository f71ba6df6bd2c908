"""Direct preference optimisation with TRL: π_ref in, policy out.

The loss of a pair (Rafailov et al. 2023, eq. 7), with r = beta * (log π - log π_ref) summed over completion
tokens, is -logsigmoid(r_chosen - r_rejected); added is sft_weight times the mean negative log-likelihood of
the chosen tokens of the batch.

Not covered: vision-language models, iterable datasets, a reference that moves (`sync_ref_model`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from data_contracts.errors import ParamsError
from tasks.finetuning.arena import open_arena
from tasks.finetuning.methods import FinetuneInputs
from tasks.finetuning.params import DpoParams
from tasks.finetuning.reference_logps import reference_logps
from tasks.finetuning.sections import LoraParams
from tasks.finetuning.validation import Validation, draw_pairs
from tasks.models.callbacks import Patience, stop_reason, usual_callbacks
from tasks.models.checkpoints import run_folder, weights_digest
from tasks.models.curve import curve_rows, write_curve
from tasks.models.full_disk import full_disk_named
from tasks.models.length_groups import GroupsByLength
from tasks.models.loading import context_length, load_policy, load_tokenizer, save_model, seed_everything
from tasks.models.pairs import TokenPair, digest_of_tokens, fitting_pairs
from tasks.models.trainer_args import trainer_config
from tasks.models.training import library_versions, train

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerControl, TrainerState

WHERE = "finetune.dpo"
WATCHED = ("preference_accuracy", "win_rate")
"""Validation metrics that early stopping looks at."""


class PairTrainer(GroupsByLength, DPOTrainer):  # type: ignore[misc]
    """TRL's DPOTrainer on pairs that are tokens already and know their reference log-probabilities.

    The loss, its metrics and the loop are TRL's own. Replaced are the two steps that prepare the data
    (TRL would render, tokenise and score again, and keep the scores in the Hugging Face cache) and what
    an evaluation measures.
    """

    control: TrainerControl

    def __init__(self, *, validation: Validation, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.validation = validation

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Measure the policy on the validation split; names start with `eval_`, as transformers expects."""
        self.model.eval()
        metrics = {f"eval_{name}": value for name, value in self.validation.measure(self.model).items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def check_params(params: DpoParams) -> None:
    """Raise `ParamsError` for TRL arguments that are unknown (with the nearest valid name) or refused by TRL."""
    _config(params, seed=0, folder=Path("unused"))


def run(inputs: FinetuneInputs, params: DpoParams) -> dict[str, Any]:
    """Train the policy, write it into `inputs.folder` with its curve, and return facts for the manifest.

    Raises `ParamsError` before any work when params do not fit together, and `StageError` when no pair
    fits the context, the training diverges, or the disk is full.
    """
    # 1. refuse early
    check_params(params)
    if params.best_by == "win_rate" and inputs.judge is None:
        raise ParamsError(
            f"{WHERE}.best_by is win_rate, which needs a judge, and there is none. "
            f"Set {WHERE}.best_by: preference_accuracy, or train a reward model first."
        )

    # 2. π_ref, and the pairs as its tokens
    seed_everything(inputs.seed, inputs.threads)
    tokenizer = load_tokenizer(inputs.reference, trust_remote_code=inputs.trust_remote_code)
    model = load_policy(inputs.reference, trust_remote_code=inputs.trust_remote_code)
    context = context_length(model.config, tokenizer)
    max_length = min(params.max_length, context)
    training = fitting_pairs(inputs.train, tokenizer, max_length, "training", WHERE)
    validation = fitting_pairs(inputs.validation, tokenizer, max_length, "validation", WHERE)
    shown = draw_pairs(validation, params.validation.pairs, inputs.seed)

    # 3. what π_ref says of the pairs, and how it answers validation prompts
    digest = weights_digest(inputs.reference)
    runs_in = run_folder(inputs.work, _depends_on(inputs, params, digest, training.tokens, validation.tokens))
    config = _config(params, inputs.seed, runs_in)
    model.to(config.device)
    logps = [
        reference_logps(
            model,
            digest,
            part.tokens,
            max_length=max_length,
            batch_size=params.eval_batch_size,
            cache=inputs.work / "reference_logps",
            progress=inputs.progress,
        )
        for part in (training, shown)
    ]
    arena = None
    if inputs.judge is not None:
        arena = open_arena(
            model,
            tokenizer,
            validation.pairs,
            inputs.judge,
            params.validation,
            batch_size=params.eval_batch_size,
            context=context,
            seed=inputs.seed,
            judge_length=inputs.judge_length,
            adapter=params.lora is not None,
            progress=inputs.progress,
        )

    # 4. train, evaluate, keep the best
    trainer = PairTrainer(
        model=model,
        args=config,
        processing_class=tokenizer,
        train_dataset=_dataset(training.tokens, logps[0]),
        eval_dataset=_dataset(shown.tokens, logps[1]),
        lengths=[pair.longest for pair in training.tokens] if params.group_by_length else None,
        peft_config=_lora_config(params.lora),
        callbacks=_callbacks(inputs, params),
        validation=Validation(shown, logps[1], params.beta, max_length, params.eval_batch_size, arena),
    )
    trainable = sum(weights.numel() for weights in trainer.model.parameters() if weights.requires_grad)
    state = train(trainer, runs_in)

    # 5. write
    _save(trainer.model, tokenizer, inputs.folder)
    rows = curve_rows(state.log_history)
    write_curve(inputs.folder, rows)
    return {
        "method": "dpo",
        "settings": params.model_dump(mode="json"),
        "seed": inputs.seed,
        "libraries": _libraries(),
        "reference_weights": digest,
        "pairs": {"train": len(training.tokens), "validation": len(shown.tokens)},
        "too_long": {"train": training.too_long, "validation": validation.too_long, "max_length": max_length},
        "trained_parameters": trainable,
        **_outcome(state, params, rows),
    }


def _config(params: DpoParams, seed: int, folder: Path) -> DPOConfig:
    mixed = params.sft_weight > 0
    return trainer_config(
        DPOConfig,
        WHERE,
        params,
        output_dir=str(folder),
        seed=seed,
        # without it the order of the pairs would hang on the global generator, and a resumed run on its luck
        data_seed=seed,
        beta=params.beta,
        loss_type=[params.loss_type, "sft"] if mixed else [params.loss_type],
        loss_weights=[1.0, params.sft_weight] if mixed else None,
        label_smoothing=params.label_smoothing,
        precompute_ref_log_probs=True,
        # TRL counts the adapter's dropout to the model's
        disable_dropout=params.lora is None or params.lora.dropout == 0,
        metric_for_best_model=f"eval_{params.best_by}",
        # goes into the saved config.json; the trainer passes use_cache=False to each forward itself
        use_cache=True,
    )


def _depends_on(
    inputs: FinetuneInputs, params: DpoParams, digest: str, train: Sequence[TokenPair], validation: Sequence[TokenPair]
) -> dict[str, Any]:
    return {
        "method": "dpo",
        "params": params.model_dump(mode="json"),
        "seed": inputs.seed,
        "threads": inputs.threads,
        "reference": digest,
        "train": digest_of_tokens(train),
        # all of it: the arena's prompts are not those of the pairs that are shown
        "validation": digest_of_tokens(validation),
        "judge": [inputs.judge_digest, inputs.judge_length] if inputs.judge else "none",
        "libraries": _libraries(),
    }


def _libraries() -> dict[str, str]:
    return library_versions("peft")


def _dataset(tokens: Sequence[TokenPair], logps: torch.Tensor) -> Dataset:
    return Dataset.from_dict(
        {
            "prompt_ids": [pair.prompt_ids for pair in tokens],
            "chosen_ids": [pair.chosen_ids for pair in tokens],
            "rejected_ids": [pair.rejected_ids for pair in tokens],
            "ref_chosen_logps": logps[:, 0].tolist(),
            "ref_rejected_logps": logps[:, 1].tolist(),
        }
    )


def _lora_config(lora: LoraParams | None) -> Any:
    if lora is None:
        return None
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules),
    )


def _callbacks(inputs: FinetuneInputs, params: DpoParams) -> list[Any]:
    stopping = params.early_stopping
    patience = [Patience(stopping.patience, stopping.min_delta, WATCHED)] if stopping else []
    return [*patience, *usual_callbacks(inputs.progress)]


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the policy as one model; an adapter is kept beside it and merged into the weights."""
    if not hasattr(model, "merge_and_unload"):
        save_model(model, tokenizer, folder)
        return
    # as it was loaded, this would be a path of this machine
    model.peft_config["default"].base_model_name_or_path = "models/reference"
    with full_disk_named(folder):
        model.save_pretrained(folder / "adapter", save_embedding_layers=False)
    (folder / "adapter" / "README.md").unlink(missing_ok=True)
    save_model(model.merge_and_unload(), tokenizer, folder)


def _outcome(state: TrainerState, params: DpoParams, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    evaluations = [
        {
            name.removeprefix("validation_"): row[name]
            for name in row
            if name == "step" or name.startswith("validation_")
        }
        for row in rows
        if "validation_preference_accuracy" in row
    ]
    return {
        "steps": {"planned": state.max_steps, "run": evaluations[-1]["step"]},
        "best": {"step": state.best_global_step, "metric": params.best_by, "value": state.best_metric},
        "stopped": stop_reason(state.stateful_callbacks) or "all steps done",
        "final_loss": rows[-1]["loss"],
        "evaluations": evaluations,
    }
