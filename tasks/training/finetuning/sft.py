"""Supervised fine-tuning: of a base into the reference policy π_ref, or of a policy on chosen responses.

`build_reference` makes π_ref out of a base, or takes the base as it is; `run` is the fine-tuning method.

Loss is on assistant turns only, their end tokens included (`tasks.models.spoken`). Once written, π_ref is never
changed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from plumbline.data_contracts.errors import ModelError, StageError
from plumbline.data_contracts.progress import Progress
from plumbline.data_contracts.records import Message
from plumbline.tasks.models.callbacks import usual_callbacks
from plumbline.tasks.models.checkpoints import run_folder, weights_digest
from plumbline.tasks.models.curve import curve_rows, write_curve
from plumbline.tasks.models.length_groups import GroupsByLength
from plumbline.tasks.models.loading import (
    context_length,
    describe,
    load_policy,
    load_tokenizer,
    save_model,
    seed_everything,
)
from plumbline.tasks.models.pairs import TokenPair, digest_of_tokens
from plumbline.tasks.models.spoken import encode_spoken
from plumbline.tasks.models.trainer_args import trainer_config
from plumbline.tasks.models.training import library_versions, train
from plumbline.tasks.params.finetuning import ImitationParams, SftParams
from plumbline.tasks.training.finetuning.methods import FinetuneInputs
from plumbline.tasks.training.finetuning.offline import (
    MeasuringTrainer,
    consult_reference,
    open_pairs,
    refuse_early,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

METHOD = "sft"
WHERE = f"finetune.{METHOD}"
WHERE_REFERENCE = "reference.sft"
IGNORED = -100
"""Label of a token that takes no part in the loss."""

Example = tuple[list[int], list[int]]
"""Token ids and labels of one conversation, of one length."""


class ConversationTrainer(GroupsByLength, SFTTrainer):  # type: ignore[misc]
    """TRL's SFTTrainer, batches grouped by length if params say so."""


class ImitationTrainer(MeasuringTrainer, ConversationTrainer):
    """The same, measured on validation pairs and in the arena as it goes."""


def check_params(params: SftParams | ImitationParams) -> None:
    """Raise `ParamsError` for arguments that TRL refuses."""
    _config(params, seed=0, folder=Path("unused"))


def run(inputs: FinetuneInputs, params: ImitationParams) -> dict[str, Any]:
    """Train the policy on chosen responses, write it into `inputs.folder` with its curve, and return facts.

    The preference accuracy that is measured is of log π - log π_ref, its margin in nats per sequence. Raises
    `ParamsError` before any work when params do not fit together, `ModelError` when start and reference have
    different tokenizers or the template ends no turn, and `StageError` when no conversation fits.
    """
    # 1. refuse early
    check_params(params)
    refuse_early(METHOD, inputs, params)

    # 2. the policy, and the conversations as its tokens
    opened = open_pairs(METHOD, inputs, params)
    conversations = [(*pair.prompt, Message(role="assistant", content=pair.chosen)) for pair in inputs.train]
    drawn = _draw(conversations, params.max_examples, inputs.seed)
    examples = encode_conversations(opened.run.tokenizer, drawn)
    kept = _fitting(examples, opened.max_length, f"Raise {WHERE}.max_length up to the model's context.")

    # 3. what π_ref says of the validation pairs, and how it answers their prompts
    runs_in = opened.folder(_digest(kept))
    config = _config(params, inputs.seed, runs_in)
    (logps,), arena = consult_reference(opened, config.device, opened.shown.tokens)

    # 4. train, evaluate, keep the best, write
    trainer = ImitationTrainer(
        **opened.trainer_arguments(config),
        train_dataset=_dataset(kept),
        # never read: an evaluation measures pairs, see `MeasuringTrainer`
        eval_dataset=_dataset(kept[:1]),
        lengths=[len(ids) for ids, _ in kept] if params.groups_by_length else None,
        validation=opened.measured_by(logps, 1.0, arena),
    )
    lengths = [len(ids) for ids, _ in kept]
    return opened.train_and_write(trainer, runs_in, lengths, {"train": len(examples) - len(kept)}) | {
        "examples": {"given": len(conversations), "used": len(kept), "too_long": len(examples) - len(kept)},
        "assistant_tokens": _assistant_tokens(kept),
    }


def build_reference(
    base: Path,
    conversations: Sequence[Sequence[Message]],
    params: SftParams,
    seed: int,
    threads: int,
    folder: Path,
    work: Path,
    progress: Progress,
    *,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Write π_ref into `folder` and return facts for the manifest.

    With `params.enabled` false the base is saved unchanged and `conversations` is not read. Raises
    `StageError` when no conversation fits, and `ModelError` when the template marks no assistant tokens.
    """
    check_params(params)
    seed_everything(seed, threads)
    tokenizer = load_tokenizer(base, trust_remote_code=trust_remote_code)
    model = load_policy(base, trust_remote_code=trust_remote_code)
    facts: dict[str, Any] = {"base_weights": weights_digest(base), "seed": seed}
    if not params.enabled:
        save_model(model, tokenizer, folder)
        write_curve(folder, [])
        return facts | {"method": "given checkpoint", "model": describe(model, tokenizer)}

    max_length = min(params.max_length, context_length(model.config, tokenizer))
    drawn = _draw(conversations, params.max_examples, seed)
    examples = encode_conversations(tokenizer, drawn)
    kept = _fitting(
        examples,
        max_length,
        f"Raise {WHERE_REFERENCE}.max_length up to the model's context, or set {WHERE_REFERENCE}.enabled: false to "
        f"take the base as it is.",
    )
    libraries = library_versions()
    runs_in = run_folder(
        work,
        {
            "method": "sft",
            "params": params.model_dump(mode="json"),
            "seed": seed,
            "threads": threads,
            "base": facts["base_weights"],
            "examples": _digest(kept),
            "libraries": libraries,
        },
    )
    trainer = ConversationTrainer(
        model=model,
        args=_config(params, seed, runs_in),
        processing_class=tokenizer,
        train_dataset=_dataset(kept),
        lengths=[len(ids) for ids, _ in kept] if params.groups_by_length else None,
        callbacks=usual_callbacks(progress),
    )
    state = train(trainer, runs_in)
    rows = curve_rows(state.log_history)
    save_model(trainer.model, tokenizer, folder)
    write_curve(folder, rows)
    return facts | {
        "method": "sft",
        "settings": params.model_dump(mode="json"),
        "libraries": libraries,
        "examples": {"given": len(conversations), "used": len(kept), "too_long": len(examples) - len(kept)},
        "max_length": max_length,
        "assistant_tokens": _assistant_tokens(kept),
        "steps": state.global_step,
        "final_loss": rows[-1]["loss"],
        "model": describe(trainer.model, tokenizer),
    }


def encode_conversations(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[Message]]
) -> list[Example]:
    """Token ids and labels of each conversation; labels are the ids on assistant tokens, `IGNORED` elsewhere.

    Raises `ModelError` when the chat template ends no assistant turn, or a conversation has none that answers.
    """
    examples = [_label(*spoken) for spoken in encode_spoken(tokenizer, conversations)]
    silent = sum(all(label == IGNORED for label in labels) for _, labels in examples)
    if silent:
        raise ModelError(
            f"Expected an assistant turn in each conversation to imitate, found {silent} of {len(examples)} without "
            f"one. Leave such conversations out."
        )
    return examples


def _label(ids: list[int], spans: Sequence[tuple[int, int]]) -> Example:
    labels = [IGNORED] * len(ids)
    for start, stop in spans:
        labels[start:stop] = ids[start:stop]
    return ids, labels


def _fitting(examples: Sequence[Example], max_length: int, advice: str) -> list[Example]:
    kept = [example for example in examples if len(example[0]) <= max_length]
    if not kept:
        raise StageError(
            f"Expected conversations of at most {max_length} tokens, found none among {len(examples)}. {advice}"
        )
    return kept


def _digest(examples: Sequence[Example]) -> str:
    # a label sequence has the length of its ids: the pair digest pins both
    return digest_of_tokens([TokenPair(ids, labels, []) for ids, labels in examples])


def _dataset(examples: Sequence[Example]) -> Dataset:
    return Dataset.from_dict({"input_ids": [ids for ids, _ in examples], "labels": [labels for _, labels in examples]})


def _assistant_tokens(examples: Sequence[Example]) -> int:
    return sum(label != IGNORED for _, labels in examples for label in labels)


def _draw(conversations: Sequence[Sequence[Message]], max_examples: int | None, seed: int) -> list[Sequence[Message]]:
    if max_examples is None or max_examples >= len(conversations):
        return list(conversations)
    rows = sorted(random.Random(seed).sample(range(len(conversations)), max_examples))
    return [conversations[row] for row in rows]


def _config(params: SftParams | ImitationParams, seed: int, folder: Path) -> SFTConfig:
    own: dict[str, Any]
    if isinstance(params, ImitationParams):
        where, own = WHERE, {"metric_for_best_model": f"eval_{params.metric_for_best_model}"}
    else:
        where, own = WHERE_REFERENCE, {"eval_strategy": "no"}
    return trainer_config(
        SFTConfig,
        where,
        params,
        folder,
        seed,
        # conversations come as ids and labels
        dataset_kwargs={"skip_prepare_dataset": True},
        # goes into the saved config.json; the trainer passes use_cache=False to each forward itself
        use_cache=True,
        **own,
    )
