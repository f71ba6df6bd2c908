"""The two policies under evaluation, and the log-probabilities that they give to test pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from plumbline.data_contracts.errors import ModelError
from plumbline.data_contracts.records import CuratedPair
from plumbline.tasks.evaluation.measures.preference import PairLogps
from plumbline.tasks.params.evaluation import EvaluationParams

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Subjects:
    """Policy and reference with their one tokenizer; `context` is the shorter of both contexts, in tokens."""

    policy: PreTrainedModel
    reference: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    context: int

    def each(self) -> tuple[PreTrainedModel, PreTrainedModel]:
        """Policy, then reference."""
        return self.policy, self.reference


def load_subjects(policy: Path, reference: Path, *, trust_remote_code: bool = False) -> Subjects:
    """Load both checkpoints. Raises `ModelError` when vocabulary or chat template differ."""
    from plumbline.tasks.models.loading import context_length, load_policy, load_tokenizer

    tokenizer = load_tokenizer(policy, trust_remote_code=trust_remote_code)
    other = load_tokenizer(reference, trust_remote_code=trust_remote_code)
    if tokenizer.get_vocab() != other.get_vocab() or tokenizer.chat_template != other.chat_template:
        raise ModelError(
            f"Expected {policy} and {reference} to share vocabulary and chat template, found them to differ: their "
            "log-probabilities cannot be compared. Evaluate against the reference that the policy was trained from."
        )
    first, second = (load_policy(path, trust_remote_code=trust_remote_code).eval() for path in (policy, reference))
    context = min(context_length(model.config, tokenizer) for model in (first, second))
    return Subjects(first, second, tokenizer, context)


def pair_logps(
    pairs: Sequence[CuratedPair], subjects: Subjects, params: EvaluationParams, start: Callable[[int], None]
) -> PairLogps:
    """Summed log-probabilities of both responses of each pair; `start(0)` and `start(1)` tell which policy runs."""
    from plumbline.tasks.models.chat import encode_all
    from plumbline.tasks.models.logps import token_logps

    prompts = [pair.prompt for pair in pairs]
    sides = [
        *encode_all(subjects.tokenizer, prompts, [pair.chosen for pair in pairs]),
        *encode_all(subjects.tokenizer, prompts, [pair.rejected for pair in pairs]),
    ]
    sums = []
    for number, model in enumerate(subjects.each()):
        start(number)
        logps = token_logps(model, sides, max_length=subjects.context, batch_size=params.batch_size)
        sums.append(np.array([float(row.double().sum()) for row in logps]).reshape(2, len(pairs)))
    tokens = np.array([len(tail) for _, tail in sides], dtype=np.int64).reshape(2, len(pairs))
    clusters = np.array([pair.cluster for pair in pairs], dtype=np.str_)
    return PairLogps(sums[0][0], sums[0][1], sums[1][0], sums[1][1], tokens[0], tokens[1], clusters)
