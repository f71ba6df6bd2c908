"""Direct preference optimisation with TRL: π_ref in, policy out.

The loss of a pair (Rafailov et al. 2023, eq. 7), with r = beta * (log π - log π_ref) summed over completion
tokens, is -logsigmoid(r_chosen - r_rejected); added is sft_weight times the mean negative log-likelihood of
the chosen tokens of the batch. `loss_type` puts another of TRL's preference losses in the place of the first term.

Soft labels: with label_smoothing ε the sigmoid loss is that of conservative DPO (Mitchell 2023, eq. 3),
(1 - ε) * -logsigmoid(x) + ε * -logsigmoid(-x), which TRL has no name for. It is a mixture of two that TRL has,
`_conservative`. ε is one for all pairs, because a curated pair carries no votes.

Not covered: vision-language models, iterable datasets, a reference that moves (`sync_ref_model`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from plumbline.data_contracts.private_names import require_names
from plumbline.tasks.models.completions import unadapted
from plumbline.tasks.models.length_groups import GroupsByLength
from plumbline.tasks.models.packed_head import read_packed
from plumbline.tasks.models.pairs import TokenPair, digest_of_tokens, fitting_pairs
from plumbline.tasks.models.trainer_args import trainer_config
from plumbline.tasks.params.finetuning import DpoParams
from plumbline.tasks.training.finetuning.methods import FinetuneInputs
from plumbline.tasks.training.finetuning.offline import (
    MeasuringTrainer,
    consult_reference,
    keeps_dropout,
    open_pairs,
    refuse_early,
)

require_names("trl", DPOTrainer, "_precompute_ref_logps", "_prepare_dataset")

METHOD = "dpo"
WHERE = f"finetune.{METHOD}"


class DpoPairTrainer(MeasuringTrainer, GroupsByLength, DPOTrainer):  # type: ignore[misc]
    """TRL's DPOTrainer on pairs that are tokens already and know their reference log-probabilities.

    The loss, its metrics and the loop are TRL's own. Replaced are the two steps that prepare the data
    (TRL would render, tokenise and score again, and keep the scores in the Hugging Face cache) and what
    an evaluation measures.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        weights = ("log_sum_sq_probs",) if self.use_weighting else ()
        read_packed(unadapted(self.model), ("log_probs", "entropy", "mean_logits", "is_top1", *weights))

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset


def check_params(params: DpoParams) -> None:
    """Raise `ParamsError` for arguments that TRL refuses."""
    _config(params, seed=0, folder=Path("unused"))


def run(inputs: FinetuneInputs, params: DpoParams) -> dict[str, Any]:
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

    # 3. what π_ref says of the pairs, and how it answers validation prompts
    runs_in = opened.folder(digest_of_tokens(training.tokens))
    config = _config(params, inputs.seed, runs_in)
    logps, arena = consult_reference(opened, config.device, training.tokens, opened.shown.tokens)

    # 4. train, evaluate, keep the best, write
    trainer = DpoPairTrainer(
        **opened.trainer_arguments(config),
        train_dataset=_dataset(training.tokens, logps[0]),
        eval_dataset=_dataset(opened.shown.tokens, logps[1]),
        lengths=[pair.longest for pair in training.tokens] if params.groups_by_length else None,
        validation=opened.measured_by(logps[1], params.beta, arena),
    )
    lengths = [pair.total for pair in training.tokens]
    facts = opened.train_and_write(trainer, runs_in, lengths, {"train": training.too_long})
    pairs = {"train": len(training.tokens), **facts["pairs"]}
    return facts | {"implied_beta": params.beta, "pairs": pairs}


def _config(params: DpoParams, seed: int, folder: Path) -> DPOConfig:
    losses = _losses(params)
    return trainer_config(
        DPOConfig,
        WHERE,
        params,
        folder,
        seed,
        loss_type=list(losses),
        loss_weights=list(losses.values()) if len(losses) > 1 else None,
        precompute_ref_log_probs=True,
        disable_dropout=not keeps_dropout(params),
        metric_for_best_model=f"eval_{params.metric_for_best_model}",
        # goes into the saved config.json; the trainer passes use_cache=False to each forward itself
        use_cache=True,
    )


def _losses(params: DpoParams) -> dict[str, float]:
    """Weights of TRL's losses, by name."""
    preference = {str(params.loss_type): 1.0}
    if params.loss_type == "sigmoid" and params.label_smoothing:
        preference = _conservative(params.label_smoothing)
    return preference | ({"sft": params.sft_weight} if params.sft_weight else {})


def _conservative(smoothing: float) -> dict[str, float]:
    """Conservative DPO as a mixture of TRL's losses.

    With s = -logsigmoid(x), and so -logsigmoid(-x) = s + x: conservative is s + εx, TRL's robust is
    ((1 - ε)s - ε(s + x)) / (1 - 2ε) = s - εx / (1 - 2ε). Hence conservative = (2 - 2ε) s - (1 - 2ε) robust.
    """
    return {"sigmoid": 2 - 2 * smoothing, "robust": 2 * smoothing - 1}


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
