"""A Bradley-Terry reward model trained with TRL's RewardTrainer.

P(chosen ≻ rejected) = sigmoid(r(x, chosen) - r(x, rejected)) (Bradley & Terry 1952; Ouyang et al. 2022, eq. 1).

1. Pairs beyond the context are set aside and counted.
2. Everything is seeded before the model is loaded, because its head is drawn at random.
3. The trainer sees the very tokens that scoring sees (`chat.encode_all`), padded with an id that cannot be
   taken for the end of a response (`scoring.padding_id`).
4. The best checkpoint by validation accuracy is kept; TRL's figure is the mean over batches, so a smaller last
   batch weighs a little more in that choice. The audit counts pairs exactly.
5. Mean and spread of the rewards are recorded: a Bradley-Terry reward has no origin and no unit.
"""

from __future__ import annotations

import hashlib
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import torch
from datasets import Dataset
from trl import RewardConfig, RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from data_contracts.artifact import sha256_file, write_json
from data_contracts.errors import ModelError, ParamsError
from data_contracts.progress import Progress
from data_contracts.records import CuratedPair
from tasks.models.chat import encode_all, split_by_context
from tasks.models.checkpoints import run_folder
from tasks.models.loading import (
    check_vocabulary,
    context_length,
    describe,
    load_reward,
    load_tokenizer,
    save_model,
    seed_everything,
)
from tasks.models.trainer_args import check_trainer_args
from tasks.models.training import (
    ReportProgress,
    SealCheckpoints,
    curve_rows,
    library_versions,
    train_resumably,
    write_curve,
)
from tasks.rewards.params import OWNED_ARGS, RewardParams
from tasks.rewards.scoring import FACTS, padding_id, score_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_NORMALISED_ON = 2048  # training pairs whose rewards give mean and spread: ±2 % on the spread
_LOGS_AN_EVALUATION = 5
_KEPT_CHECKPOINTS = 3  # the last, the one before it should the last be damaged, and the best


def train_reward(
    init: Path,
    train: Sequence[CuratedPair],
    validation: Sequence[CuratedPair],
    params: RewardParams,
    seed: int,
    threads: int,
    folder: Path,
    work: Path,
    progress: Progress,
    *,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Train a reward model from the policy in `init` and write it into `folder`; return facts.

    Checkpoints go to `work`, from where a killed run resumes to the same weights. Raises `ParamsError` for
    arguments that TRL refuses and `ModelError` when no pair fits the context.
    """
    check_trainer_args(RewardConfig, params.trainer_args, "reward.trainer_args", OWNED_ARGS)
    seed_everything(seed, threads)
    model = load_reward(init, trust_remote_code=trust_remote_code, new_head=True)
    tokenizer = load_tokenizer(init, trust_remote_code=trust_remote_code)
    check_vocabulary(model, tokenizer)
    context = context_length(model.config, tokenizer)
    max_length = min(params.max_length or context, context)
    data = _encode_splits(train, validation, tokenizer, max_length)
    runs_in = run_folder(work, _depends_on(init, data, params, seed, threads, max_length))
    config = _config(params, seed, runs_in, len(data.train))
    trainer = _trainer(model, tokenizer, config, data, progress)
    state = train_resumably(trainer, runs_in)
    rewards = score_tokens(model, data.sequences(_NORMALISED_ON), max_length, params.scoring_batch_size)
    scale = {"mean": statistics.fmean(rewards), "std": statistics.pstdev(rewards), "max_length": max_length}
    save_model(model, tokenizer, folder)
    write_json(folder / FACTS, {**scale, "responses": len(rewards)})
    write_curve(folder, curve_rows(state.log_history))
    return {
        **describe(model, tokenizer),
        **scale,
        "pairs": {"train": len(data.train), "validation": len(data.validation)},
        "too_long": data.too_long,
        "steps": state.global_step,
        "best_step": state.best_global_step,
        "validation_accuracy": state.best_metric,
        "versions": library_versions(),
    }


@dataclass(frozen=True, slots=True)
class _Data:
    train: Dataset  # columns chosen_ids, rejected_ids
    validation: Dataset
    too_long: dict[str, int]

    def sequences(self, pairs: int) -> list[list[int]]:
        rows = self.train[:pairs]
        return [*rows["chosen_ids"], *rows["rejected_ids"]]


def _encode_splits(
    train: Sequence[CuratedPair],
    validation: Sequence[CuratedPair],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
) -> _Data:
    datasets, too_long = {}, {}
    for name, pairs in (("train", train), ("validation", validation)):
        kept, set_aside = split_by_context(pairs, tokenizer, max_length)
        if not kept:
            raise ModelError(
                f"Expected {name} pairs of at most {max_length} tokens, found none among {len(pairs)}. "
                "Raise reward.max_length up to the context of the model, use a model with a longer context, "
                "or curate shorter pairs in."
            )
        datasets[name] = _tokens(kept, tokenizer)
        too_long[name] = len(set_aside)
    return _Data(datasets["train"], datasets["validation"], too_long)


def _tokens(pairs: Sequence[CuratedPair], tokenizer: PreTrainedTokenizerBase) -> Dataset:
    prompts = [pair.prompt for pair in pairs]
    sides = {
        "chosen_ids": encode_all(tokenizer, prompts, [pair.chosen for pair in pairs]),
        "rejected_ids": encode_all(tokenizer, prompts, [pair.rejected for pair in pairs]),
    }
    return Dataset.from_dict({name: [head + tail for head, tail in side] for name, side in sides.items()})


def _depends_on(
    init: Path, data: _Data, params: RewardParams, seed: int, threads: int, max_length: int
) -> dict[str, Any]:
    files = sorted(file for file in init.iterdir() if file.is_file() and file.name != "manifest.json")
    return {
        "init": {file.name: sha256_file(file) for file in files},
        "train": _digest(data.train),
        "validation": _digest(data.validation),
        # what only the audit reads does not make another training
        "params": params.model_dump(mode="json", exclude={"audit", "scoring_batch_size"}),
        "max_length": max_length,
        "seed": seed,
        "threads": threads,
        "versions": library_versions(),
    }


def _digest(dataset: Dataset) -> str:
    return hashlib.sha256(orjson.dumps(dataset[:])).hexdigest()


def _config(params: RewardParams, seed: int, runs_in: Path, pairs: int) -> RewardConfig:
    accumulation = int(params.trainer_args.get("gradient_accumulation_steps", 1))
    steps = max(1, int(params.epochs * pairs / (params.batch_size * accumulation)))
    # evaluations fall on logged steps, so that a resumed run averages its figures over the same steps
    logging_steps = max(1, steps // (params.evaluations * _LOGS_AN_EVALUATION))
    every = logging_steps * max(1, steps // (params.evaluations * logging_steps))
    arguments: dict[str, Any] = {
        "output_dir": str(runs_in),
        "num_train_epochs": params.epochs,
        "learning_rate": params.learning_rate,
        "per_device_train_batch_size": params.batch_size,
        "per_device_eval_batch_size": params.batch_size,
        "weight_decay": params.weight_decay,
        "warmup_steps": params.warmup_ratio,
        "center_rewards_coefficient": params.center_rewards,
        "max_length": None,
        "seed": seed,
        "data_seed": seed,
        # TRL's defaults for both are on, which costs 1.5 times the time on CPU
        "bf16": False,
        "gradient_checkpointing": False,
        "logging_steps": logging_steps,
        # transformers would replace a loss that is not a number by an average and train on
        "logging_nan_inf_filter": False,
        "eval_strategy": "steps",
        "eval_steps": every,
        "save_strategy": "steps",
        "save_steps": every,
        "save_total_limit": _KEPT_CHECKPOINTS,
        "load_best_model_at_end": True,
        "metric_for_best_model": "accuracy",
        "greater_is_better": True,
        "disable_tqdm": True,
        "report_to": "none",
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    try:
        with warnings.catch_warnings():
            # transformers renames it; TRL 1.16, whose default is on, knows the old name only
            warnings.filterwarnings("ignore", message="`gradient_checkpointing` is deprecated", category=FutureWarning)
            return RewardConfig(**(arguments | params.trainer_args))
    except (ValueError, TypeError) as error:
        raise ParamsError(f"reward.trainer_args: TRL refuses these arguments: {error}") from error


def _trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: RewardConfig,
    data: _Data,
    progress: Progress,
) -> RewardTrainer:
    padding = padding_id(tokenizer)
    trainer = RewardTrainer(
        model=model,
        args=config,
        data_collator=DataCollatorForPreference(pad_token_id=padding),
        train_dataset=data.train,
        eval_dataset=data.validation,
        processing_class=tokenizer,
        callbacks=[ReportProgress(progress), SealCheckpoints()],
    )
    # TRL, and transformers when training starts, would set the padding id to the tokenizer's, which may be eos
    trainer.processing_class = None
    model.config.get_text_config().pad_token_id = padding
    return trainer
