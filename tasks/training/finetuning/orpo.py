"""Odds-ratio preference optimisation with TRL: imitation and preference in one loss, without a reference in it.

With p the geometric mean of a response's token probabilities, odds(p) = p / (1 - p) and x = log odds(p_chosen) -
log odds(p_rejected), the loss of a pair (Hong et al. 2024, eqs. 4 to 7) is NLL - beta * logsigmoid(x); NLL is the
negative log-likelihood of the chosen response a token, as in the paper. TRL takes it over the prompt as well: on the
sample world, whose π_ref never learned prompts, that alone moved the policy 7.6 nats per response and below π_ref.

π_ref takes no part in training; the arena measures win rate and KL against it as for every method. What a policy
says of a pair while it trains is its own log odds.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from plumbline.tasks.models.length_groups import GroupsByLength
from plumbline.tasks.models.pairs import TokenPair, digest_of_tokens, fitting_pairs
from plumbline.tasks.models.trainer_args import trainer_config
from plumbline.tasks.params.finetuning import OrpoParams
from plumbline.tasks.training.finetuning.methods import FinetuneInputs
from plumbline.tasks.training.finetuning.offline import (
    MeasuringTrainer,
    consult_reference,
    keeps_dropout,
    open_pairs,
    refuse_early,
)
from plumbline.tasks.training.finetuning.validation import Validation

with warnings.catch_warnings():
    # TRL says at import that names may move; its version is pinned exactly
    warnings.filterwarnings("ignore", message="You are importing from 'trl.experimental'")
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

METHOD = "orpo"
WHERE = f"finetune.{METHOD}"
_IGNORED = -100  # label of a token that takes no part in the odds


class TokenRows(torch.utils.data.Dataset[dict[str, list[int]]]):
    """Pairs in the columns of TRL's collator. `map`, by which TRL would render and tokenise, changes nothing."""

    def __init__(self, pairs: Sequence[TokenPair]) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        """Pairs."""
        return len(self.pairs)

    def __getitem__(self, row: int) -> dict[str, list[int]]:
        """Ids, attention mask (1 = a token) and labels of prompt with each response; prompts are not labelled."""
        pair = self.pairs[row]
        return _side("chosen", pair.prompt_ids, pair.chosen_ids) | _side("rejected", pair.prompt_ids, pair.rejected_ids)

    def map(self, *args: Any, **kwargs: Any) -> TokenRows:
        """The rows as they are."""
        return self


class OddsTrainer(MeasuringTrainer, GroupsByLength, ORPOTrainer):  # type: ignore[misc]
    """TRL's ORPOTrainer, batches grouped by length if params say so, and prompts left out of the likelihood."""

    def concatenated_forward(self, model: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, ...]:
        """Mean token log-probabilities (B,) of chosen and rejected, their logits, and the likelihood term of chosen."""
        chosen, rejected, chosen_logits, rejected_logits, _, *others = super().concatenated_forward(model, batch)
        return chosen, rejected, chosen_logits, rejected_logits, -chosen.mean(), *others


class OddsValidation(Validation):
    """Validation of a policy by its own log odds, in which π_ref has no part."""

    def rewards(self, logps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Log odds (N, 2) of chosen and rejected, from token log-probabilities (nats) of both, alternating."""
        means = torch.stack([row.mean() for row in logps]).reshape(-1, 2)  # nats per token, below 0
        return means - torch.log(-torch.expm1(means))


def check_params(params: OrpoParams) -> None:
    """Raise `ParamsError` for arguments that TRL refuses."""
    _config(params, seed=0, folder=Path("unused"))


def run(inputs: FinetuneInputs, params: OrpoParams) -> dict[str, Any]:
    """Train the policy, write it into `inputs.folder` with its curve, and return facts for the manifest.

    Raises `ParamsError` before any work when params do not fit together, `ModelError` when start and reference
    have different tokenizers, and `StageError` when no pair fits the context, the training diverges, or the
    disk is full.
    """
    # 1. refuse early
    check_params(params)
    refuse_early(METHOD, inputs, params)

    # 2. the policy, and the pairs as its tokens
    opened = open_pairs(METHOD, inputs, params)
    training = fitting_pairs(inputs.train, opened.run.tokenizer, opened.max_length, "training", WHERE)

    # 3. how π_ref answers validation prompts
    runs_in = opened.folder(digest_of_tokens(training.tokens))
    config = _config(params, inputs.seed, runs_in)
    _, arena = consult_reference(opened, config.device)

    # 4. train, evaluate, keep the best, write
    unused = torch.zeros((len(opened.shown.tokens), 2))
    trainer = OddsTrainer(
        **opened.trainer_arguments(config),
        train_dataset=TokenRows(training.tokens),
        eval_dataset=TokenRows(opened.shown.tokens),
        lengths=[pair.longest for pair in training.tokens] if params.groups_by_length else None,
        validation=OddsValidation(
            opened.shown, unused, 1.0, opened.max_length, params.per_device_eval_batch_size, arena
        ),
    )
    lengths = [pair.total for pair in training.tokens]
    facts = opened.train_and_write(trainer, runs_in, lengths, {"train": training.too_long})
    return facts | {"pairs": {"train": len(training.tokens), **facts["pairs"]}}


def _config(params: OrpoParams, seed: int, folder: Path) -> ORPOConfig:
    return trainer_config(
        ORPOConfig,
        WHERE,
        params,
        folder,
        seed,
        # cuts nothing, because pairs come as tokens; without it TRL warns of a default
        max_length=params.max_length,
        remove_unused_columns=False,
        disable_dropout=not keeps_dropout(params),
        metric_for_best_model=f"eval_{params.metric_for_best_model}",
        # goes into the saved config.json; the trainer passes use_cache=False to each forward itself
        use_cache=True,
    )


def _side(name: str, prompt: list[int], response: list[int]) -> dict[str, list[int]]:
    ids = [*prompt, *response]
    return {
        f"{name}_input_ids": ids,
        f"{name}_attention_mask": [1] * len(ids),
        f"{name}_labels": [*([_IGNORED] * len(prompt)), *response],
    }
