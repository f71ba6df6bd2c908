"""The reference policy π_ref: supervised fine-tuning of a base, or the base as it is.

Loss is on assistant turns only: the chat template says which tokens those are (`{% generation %}`), with
TRL's own training template in place of a known one that does not. Once written, π_ref is never changed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from trl import SFTConfig, SFTTrainer
from trl.chat_template_utils import get_training_chat_template, has_generation_markers

from data_contracts.errors import ModelError, StageError
from data_contracts.progress import Progress
from data_contracts.records import Message
from tasks.finetuning.params import SftParams
from tasks.models.callbacks import usual_callbacks
from tasks.models.chat import as_dicts, end_token_id
from tasks.models.checkpoints import run_folder, weights_digest
from tasks.models.curve import curve_rows, write_curve
from tasks.models.length_groups import GroupsByLength
from tasks.models.loading import (
    context_length,
    describe,
    load_policy,
    load_tokenizer,
    save_model,
    seed_everything,
)
from tasks.models.pairs import TokenPair, digest_of_tokens
from tasks.models.trainer_args import trainer_config
from tasks.models.training import library_versions, train

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WHERE = "reference.sft"
IGNORED = -100
"""Label of a token that takes no part in the loss."""

_PROBE = (
    Message(role="user", content="Hello"),
    Message(role="assistant", content="Hi"),
    Message(role="user", content="Hello"),
)

Example = tuple[list[int], list[int]]
"""Token ids and labels of one conversation, of one length."""


class ConversationTrainer(GroupsByLength, SFTTrainer):  # type: ignore[misc]
    """TRL's SFTTrainer, batches grouped by length where params say so."""


def check_params(params: SftParams) -> None:
    """Raise `ParamsError` for TRL arguments that are unknown (with the nearest valid name) or refused by TRL."""
    _config(params, seed=0, folder=Path("unused"))


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
    kept = [example for example in examples if len(example[0]) <= max_length]
    if not kept:
        raise StageError(
            f"Expected conversations of at most {max_length} tokens, found none among {len(examples)}. Raise "
            f"{WHERE}.max_length up to the model's context, or set {WHERE}.enabled: false to take the base as it is."
        )
    libraries = library_versions()
    # a label sequence has the length of its ids: the pair digest pins both
    content = digest_of_tokens([TokenPair(ids, labels, []) for ids, labels in kept])
    runs_in = run_folder(
        work,
        {
            "method": "sft",
            "params": params.model_dump(mode="json"),
            "seed": seed,
            "threads": threads,
            "base": facts["base_weights"],
            "examples": content,
            "libraries": libraries,
        },
    )
    trainer = ConversationTrainer(
        model=model,
        args=_config(params, seed, runs_in),
        processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"input_ids": [ids for ids, _ in kept], "labels": [row for _, row in kept]}),
        lengths=[len(ids) for ids, _ in kept] if params.group_by_length else None,
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
        "assistant_tokens": sum(label != IGNORED for _, labels in kept for label in labels),
        "steps": state.global_step,
        "final_loss": rows[-1]["loss"],
        "model": describe(trainer.model, tokenizer),
    }


def encode_conversations(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[Message]]
) -> list[Example]:
    """Token ids and labels of each conversation; labels are the ids on assistant tokens, `IGNORED` elsewhere.

    Raises `ModelError` when the chat template cannot tell assistant tokens, or leaves out the end of a turn.
    """
    template = _training_template(tokenizer)
    examples = [_encode(tokenizer, conversation, template) for conversation in conversations]
    silent = sum(all(label == IGNORED for label in labels) for _, labels in examples)
    if silent:
        raise ModelError(
            f"Expected an assistant turn in each conversation to imitate, found {silent} of {len(examples)} without "
            f"one. Leave such conversations out."
        )
    return examples


def _training_template(tokenizer: PreTrainedTokenizerBase) -> str:
    template = str(tokenizer.chat_template)
    advice = (
        "Put {% generation %} … {% endgeneration %} around the assistant's content and end token in the template, "
        f"remove the template to get the default one, or set {WHERE}.enabled: false."
    )
    if not has_generation_markers(template):
        try:
            template = get_training_chat_template(tokenizer) or template
        except ValueError as error:
            raise ModelError(f"The chat template does not mark the assistant's tokens. {advice}") from error
    # some templates count the end token to the message that follows
    _, labels = _encode(tokenizer, _PROBE, template)
    if end_token_id(tokenizer) not in labels:
        raise ModelError(
            f"The chat template leaves the end of an assistant turn unmarked, so the policy would never learn to "
            f"stop. {advice}"
        )
    return template


def _encode(tokenizer: PreTrainedTokenizerBase, conversation: Sequence[Message], template: str) -> Example:
    encoded = tokenizer.apply_chat_template(
        as_dicts(conversation),
        chat_template=template,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    ids, mask = list(encoded["input_ids"]), encoded["assistant_masks"]
    return ids, [token if spoken else IGNORED for token, spoken in zip(ids, mask, strict=True)]


def _draw(conversations: Sequence[Sequence[Message]], max_examples: int | None, seed: int) -> list[Sequence[Message]]:
    if max_examples is None or max_examples >= len(conversations):
        return list(conversations)
    rows = sorted(random.Random(seed).sample(range(len(conversations)), max_examples))
    return [conversations[row] for row in rows]


def _config(params: SftParams, seed: int, folder: Path) -> SFTConfig:
    return trainer_config(
        SFTConfig,
        WHERE,
        params,
        output_dir=str(folder),
        seed=seed,
        data_seed=seed,
        # conversations come as ids and labels
        dataset_kwargs={"skip_prepare_dataset": True},
        eval_strategy="no",
        save_steps=params.save_every,
        # goes into the saved config.json; the trainer passes use_cache=False to each forward itself
        use_cache=True,
    )
