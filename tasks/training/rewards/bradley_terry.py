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

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from trl import RewardConfig, RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from plumbline.data_contracts.artifact import write_json
from plumbline.data_contracts.progress import Progress
from plumbline.data_contracts.records import CuratedPair
from plumbline.tasks.models.callbacks import usual_callbacks
from plumbline.tasks.models.checkpoints import run_folder, weights_digest
from plumbline.tasks.models.curve import curve_rows, write_curve
from plumbline.tasks.models.length_groups import GroupsByLength
from plumbline.tasks.models.loading import (
    check_vocabulary,
    context_length,
    describe,
    load_reward,
    load_tokenizer,
    save_model,
    seed_everything,
)
from plumbline.tasks.models.pairs import TokenisedPairs, TokenPair, digest_of_tokens, fitting_pairs
from plumbline.tasks.models.trainer_args import trainer_config
from plumbline.tasks.models.training import library_versions, train
from plumbline.tasks.params.reward import RewardParams
from plumbline.tasks.training.rewards.layout import FACTS
from plumbline.tasks.training.rewards.scoring import padding_id, score_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_NORMALISED_ON = 2048  # training pairs whose rewards give mean and spread: ±2 % on the spread
WHERE = "reward"


class RewardPairTrainer(GroupsByLength, RewardTrainer):  # type: ignore[misc]
    """TRL's RewardTrainer, batches grouped by length if params say so."""


def check_params(params: RewardParams) -> None:
    """Raise `ParamsError` for arguments that TRL refuses."""
    _config(params, seed=0, folder=Path("unused"))


def train_reward(
    init: Path,
    training: Sequence[CuratedPair],
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
    arguments that TRL refuses, and `StageError` when no pair fits the context, the training diverges, or the
    disk is full.
    """
    check_params(params)
    seed_everything(seed, threads)
    model = load_reward(init, trust_remote_code=trust_remote_code, new_head=True)
    tokenizer = load_tokenizer(init, trust_remote_code=trust_remote_code)
    check_vocabulary(model, tokenizer)
    max_length = min(params.max_length, context_length(model.config, tokenizer))
    splits = {
        "train": fitting_pairs(training, tokenizer, max_length, "training", WHERE),
        "validation": fitting_pairs(validation, tokenizer, max_length, "validation", WHERE),
    }
    runs_in = run_folder(work, _depends_on(init, splits, params, seed, threads))
    trainer = _trainer(model, tokenizer, _config(params, seed, runs_in), splits, params, progress)
    state = train(trainer, runs_in)
    responses = [ids for pair in splits["train"].tokens[:_NORMALISED_ON] for ids in _sides(pair)]
    rewards = score_tokens(model, responses, max_length, params.per_device_eval_batch_size)
    scale = {"mean": statistics.fmean(rewards), "std": statistics.pstdev(rewards), "max_length": max_length}
    save_model(model, tokenizer, folder)
    write_json(folder / FACTS, {**scale, "responses": len(rewards)})
    write_curve(folder, curve_rows(state.log_history))
    return {
        **describe(model, tokenizer),
        **scale,
        "settings": params.model_dump(mode="json"),
        "seed": seed,
        "pairs": {name: len(split.tokens) for name, split in splits.items()},
        "too_long": {name: split.too_long for name, split in splits.items()},
        "steps": state.global_step,
        "best": {"step": state.best_global_step, "metric": "accuracy", "value": state.best_metric},
        "libraries": library_versions(),
    }


def _sides(pair: TokenPair) -> tuple[list[int], list[int]]:
    return pair.prompt_ids + pair.chosen_ids, pair.prompt_ids + pair.rejected_ids


def _dataset(tokens: Sequence[TokenPair]) -> Dataset:
    sides = [_sides(pair) for pair in tokens]
    return Dataset.from_dict(
        {"chosen_ids": [chosen for chosen, _ in sides], "rejected_ids": [rejected for _, rejected in sides]}
    )


def _depends_on(
    init: Path, splits: dict[str, TokenisedPairs], params: RewardParams, seed: int, threads: int
) -> dict[str, Any]:
    return {
        "method": "bradley_terry",
        # what only the audit reads does not make another training; the share shows in the pairs
        "params": params.model_dump(mode="json", exclude={"audit", "held_out_share"}),
        "seed": seed,
        "threads": threads,
        "init": weights_digest(init),
        **{name: digest_of_tokens(split.tokens) for name, split in splits.items()},
        "libraries": library_versions(),
    }


def _config(params: RewardParams, seed: int, folder: Path) -> RewardConfig:
    return trainer_config(
        RewardConfig,
        WHERE,
        params,
        folder,
        seed,
        metric_for_best_model="accuracy",
        # each pair is two sequences
        per_device_eval_batch_size=max(1, params.per_device_eval_batch_size // 2),
    )


def _trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: RewardConfig,
    splits: dict[str, TokenisedPairs],
    params: RewardParams,
    progress: Progress,
) -> RewardTrainer:
    padding = padding_id(tokenizer)
    trainer = RewardPairTrainer(
        model=model,
        args=config,
        data_collator=DataCollatorForPreference(pad_token_id=padding),
        train_dataset=_dataset(splits["train"].tokens),
        # evaluated in this order: batches of similar lengths hold little padding
        eval_dataset=_dataset(sorted(splits["validation"].tokens, key=lambda pair: -pair.longest)),
        lengths=[pair.longest for pair in splits["train"].tokens] if params.groups_by_length else None,
        processing_class=tokenizer,
        callbacks=usual_callbacks(progress),
    )
    # TRL, and transformers when training starts, would set the padding id to the tokenizer's, which may be eos
    trainer.processing_class = None
    model.config.get_text_config().pad_token_id = padding
    return trainer
