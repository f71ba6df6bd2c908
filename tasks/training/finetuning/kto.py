"""Kahneman-Tversky optimisation with TRL: learns from single responses that people found desirable or not.

With r = log π - log π_ref of a response (nats per sequence) and the reference point z = max(0, mean of r over
mismatched prompts and responses of the batch), the loss of an example (Ethayarajh et al. 2024, eqs. 7 and 8) is
λ_D * (1 - sigmoid(beta * (r - z))) if it is desirable and λ_U * (1 - sigmoid(beta * (z - r))) if it is not.

1. A curated pair gives two examples; `inputs.unpaired` gives one each.
2. Examples are shuffled by the seed, so that the two of a pair seldom share a batch, and cut into fixed batches.
3. The mismatched responses of a batch are its own, each moved on by one prompt, as in TRL. Only where prompt and
   foreign response exceed `max_length` is a response cut, which nothing is trained on; that is counted.

Epochs repeat the batches in their order: TRL's sequential sampling, which the fixed mismatches need.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from trl import KTOConfig, KTOTrainer

from plumbline.data_contracts.errors import StageError
from plumbline.data_contracts.private_names import require_names
from plumbline.tasks.models.chat import encode_all
from plumbline.tasks.models.completions import unadapted
from plumbline.tasks.models.length_groups import LengthGroups
from plumbline.tasks.models.packed_head import read_packed
from plumbline.tasks.models.pairs import TokenPair, digest_of_tokens, tokenise_pairs
from plumbline.tasks.models.trainer_args import trainer_config
from plumbline.tasks.params.finetuning import KtoParams
from plumbline.tasks.training.finetuning.methods import FinetuneInputs
from plumbline.tasks.training.finetuning.offline import (
    MeasuringTrainer,
    consult_reference,
    keeps_dropout,
    open_pairs,
    refuse_early,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

require_names("trl", KTOTrainer, "_precompute_ref_logps", "_prepare_dataset")

METHOD = "kto"
WHERE = f"finetune.{METHOD}"
BALANCE = (1.0, 4 / 3)
"""Range of λ_D·n_D / (λ_U·n_U) that the paper advises (Ethayarajh et al. 2024, eq. 9)."""


@dataclass(frozen=True, slots=True)
class Example:
    """One response as tokens (end token included), and whether it is desirable."""

    prompt_ids: list[int]
    completion_ids: list[int]
    desirable: bool


class UnpairedTrainer(MeasuringTrainer, KTOTrainer):  # type: ignore[misc]
    """TRL's KTOTrainer on examples that are tokens already, mismatched and scored under π_ref."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        read_packed(unadapted(self.model), ("log_probs", "entropy", "mean_logits"))

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log TRL's `kl`, the reference point z, under a name with its unit: nats per sequence."""
        metrics = self._metrics["train"]
        if self.model.training and "kl" in metrics:
            metrics["kl_per_sequence"] = metrics.pop("kl")
        super().log(logs, start_time)


def check_params(params: KtoParams) -> None:
    """Raise `ParamsError` for arguments that TRL refuses."""
    _config(params, (1.0, 1.0), seed=0, folder=Path("unused"))


def run(inputs: FinetuneInputs, params: KtoParams) -> dict[str, Any]:
    """Train the policy, write it into `inputs.folder` with its curve, and return facts for the manifest.

    Raises `ParamsError` before any work when params do not fit together, `ModelError` when start and reference
    have different tokenizers, and `StageError` when no example of a kind fits, the training diverges, or the disk
    is full.
    """
    # 1. refuse early
    check_params(params)
    refuse_early(METHOD, inputs, params)

    # 2. the policy, and the examples as its tokens, in batches
    opened = open_pairs(METHOD, inputs, params)
    examples, too_long = encode_examples(inputs, opened.run.tokenizer, opened.max_length)
    desirable = sum(example.desirable for example in examples)
    refuse_one_kind(desirable, len(examples) - desirable, opened.max_length)
    weights = balance(params, desirable, len(examples) - desirable)
    batched = in_batches(examples, params, inputs.seed)
    mismatched, cut = mismatch(batched, params.per_device_train_batch_size, opened.max_length)

    # 3. what π_ref says of the examples and of the validation pairs, and how it answers validation prompts
    content = digest_of_tokens([*mismatched, *(TokenPair([], [], [int(each.desirable)]) for each in batched)])
    runs_in = opened.folder(content)
    config = _config(params, weights, inputs.seed, runs_in)
    logps, arena = consult_reference(opened, config.device, mismatched, opened.shown.tokens)

    # 4. train, evaluate, keep the best, write
    trainer = UnpairedTrainer(
        **opened.trainer_arguments(config),
        train_dataset=_dataset(batched, mismatched, logps[0]),
        # never read: an evaluation measures pairs, see `MeasuringTrainer`
        eval_dataset=_dataset(batched[:1], mismatched[:1], logps[0][:1]),
        validation=opened.measured_by(logps[1], params.beta, arena),
    )
    lengths = [len(each.prompt_ids) + len(each.completion_ids) for each in batched]
    return opened.train_and_write(trainer, runs_in, lengths, too_long) | {
        "implied_beta": params.beta,
        "examples": {"desirable": desirable, "undesirable": len(examples) - desirable},
        "weights": {"desirable": weights[0], "undesirable": weights[1]},
        "mismatched_cut": cut,
    }


def encode_examples(
    inputs: FinetuneInputs, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[list[Example], dict[str, int]]:
    """Examples of pairs and of unpaired responses that fit `max_length` tokens, and how many of each do not.

    A pair is set aside whole where either response does not fit.
    """
    pairs = tokenise_pairs(inputs.train, tokenizer, max_length)
    examples = [
        Example(pair.prompt_ids, ids, desirable)
        for pair in pairs.tokens
        for ids, desirable in ((pair.chosen_ids, True), (pair.rejected_ids, False))
    ]
    sides = encode_all(
        tokenizer, [each.prompt for each in inputs.unpaired], [each.response for each in inputs.unpaired]
    )
    fitting = [
        Example(head, tail, each.desirable)
        for each, (head, tail) in zip(inputs.unpaired, sides, strict=True)
        if len(head) + len(tail) <= max_length
    ]
    return examples + fitting, {"train": pairs.too_long, "unpaired": len(sides) - len(fitting)}


def refuse_one_kind(desirable: int, undesirable: int, max_length: int) -> None:
    """Raise `StageError` if there is nothing to learn one side from."""
    if not desirable or not undesirable:
        raise StageError(
            f"Expected desirable and undesirable responses of at most {max_length} tokens with their prompts, found "
            f"{desirable} and {undesirable}. Add feedback of the other kind, or raise {WHERE}.max_length up to the "
            f"model's context."
        )


def balance(params: KtoParams, desirable: int, undesirable: int) -> tuple[float, float]:
    """Weights (λ_D, λ_U): as given, or the nearest to (1, 1) that put λ_D·n_D / (λ_U·n_U) into `BALANCE`.

    The kind that is too few is weighted up, the other keeps 1.
    """
    if params.desirable_weight != "auto" and params.undesirable_weight != "auto":
        return params.desirable_weight, params.undesirable_weight
    ratio = desirable / undesirable
    low, high = BALANCE
    return max(1.0, low / ratio), max(1.0, ratio / high)


def in_batches(examples: Sequence[Example], params: KtoParams, seed: int) -> list[Example]:
    """The examples in the order that they are trained in; batches of similar length if params say so."""
    if params.groups_by_length:
        lengths = [len(example.prompt_ids) + len(example.completion_ids) for example in examples]
        return [examples[row] for row in LengthGroups(lengths, params.per_device_train_batch_size, seed)]
    generator = torch.Generator().manual_seed(seed)
    return [examples[row] for row in torch.randperm(len(examples), generator=generator).tolist()]


def mismatch(examples: Sequence[Example], batch_size: int, max_length: int) -> tuple[list[TokenPair], int]:
    """Each prompt with its own response (as `chosen_ids`) and with that of another row of its batch (`rejected_ids`).

    A row takes the response of the row before it, the first of a batch that of the last; a last batch of one row
    takes from the batch before, because its own response would not be mismatched. Returned beside the rows is how
    many foreign responses were cut to fit `max_length` tokens.
    """
    rows: list[TokenPair] = []
    cut = 0
    for place, example in enumerate(examples):
        start = place - place % batch_size
        end = min(start + batch_size, len(examples))
        source = end - 1 if place == start and end - start > 1 else place - 1
        foreign, room = examples[source].completion_ids, max_length - len(example.prompt_ids)
        cut += len(foreign) > room
        rows.append(TokenPair(example.prompt_ids, example.completion_ids, foreign[:room]))
    return rows, cut


def _config(params: KtoParams, weights: tuple[float, float], seed: int, folder: Path) -> KTOConfig:
    return trainer_config(
        KTOConfig,
        WHERE,
        params,
        folder,
        seed,
        desirable_weight=weights[0],
        undesirable_weight=weights[1],
        precompute_ref_log_probs=True,
        disable_dropout=not keeps_dropout(params),
        metric_for_best_model=f"eval_{params.metric_for_best_model}",
        # goes into the saved config.json; the trainer passes use_cache=False to each forward itself
        use_cache=True,
    )


def _dataset(examples: Sequence[Example], mismatched: Sequence[TokenPair], logps: torch.Tensor) -> Dataset:
    return Dataset.from_dict(
        {
            "prompt_ids": [pair.prompt_ids for pair in mismatched],
            "completion_ids": [pair.chosen_ids for pair in mismatched],
            "KL_completion_ids": [pair.rejected_ids for pair in mismatched],
            "label": [example.desirable for example in examples],
            "ref_logps": logps[:, 0].tolist(),
            "ref_KL_logps": logps[:, 1].tolist(),
        }
    )
