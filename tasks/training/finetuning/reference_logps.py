"""Log-probabilities of the pairs under π_ref: computed once, kept by content.

The key of a cached file is the SHA-256 of everything that its numbers depend on: the weights of π_ref,
the tokens of the pairs, and how they were batched (padding moves the last bits). β, learning rate and the
other params of a method are not among them, so a run with other settings reads the same file.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
import torch

from plumbline.data_contracts.artifact import write_bytes
from plumbline.data_contracts.progress import Progress, silent
from plumbline.tasks.models.logps import token_logps
from plumbline.tasks.models.pairs import TokenPair, digest_of_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

_BATCHES_A_CHUNK = 16


def reference_logps(
    model: PreTrainedModel,
    weights: str,
    tokens: Sequence[TokenPair],
    *,
    max_length: int,
    batch_size: int,
    cache: Path,
    progress: Progress = silent,
) -> torch.Tensor:
    """Summed completion log-probabilities under π_ref: shape (N, 2) float32, nats; columns chosen, rejected.

    `model` holds the weights whose digest is `weights`; it is run only when `cache` has no readable file
    for this content. A damaged file is named in the log and replaced.
    """
    settings = {"weights": weights, "pairs": digest_of_tokens(tokens), "batch_size": batch_size}
    settings |= {"dtype": str(model.dtype), "device": model.device.type}
    key = hashlib.sha256(orjson.dumps(settings, option=orjson.OPT_SORT_KEYS)).hexdigest()
    file = cache / f"{key}.safetensors"
    found = _read(file, len(tokens)) if file.exists() else None
    if found is not None:
        return found
    logps = _compute(model, tokens, max_length, batch_size, progress)
    _write(file, logps)
    return logps


def _compute(
    model: PreTrainedModel, tokens: Sequence[TokenPair], max_length: int, batch_size: int, progress: Progress
) -> torch.Tensor:
    sides = [(pair.prompt_ids, ids) for pair in tokens for ids in (pair.chosen_ids, pair.rejected_ids)]
    sums: list[torch.Tensor] = []
    for start in range(0, len(sides), batch_size * _BATCHES_A_CHUNK):
        chunk = sides[start : start + batch_size * _BATCHES_A_CHUNK]
        sums += [logps.sum() for logps in token_logps(model, chunk, max_length=max_length, batch_size=batch_size)]
        progress(len(sums), len(sides), "reference log-probabilities")
    return torch.stack(sums).reshape(-1, 2)


def _read(file: Path, rows: int) -> torch.Tensor | None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        logps = load_file(file)["logps"]
    except (SafetensorError, KeyError, OSError) as error:
        logger.warning("%s: cached reference log-probabilities cannot be read (%s); computing them again", file, error)
        return None
    if logps.shape != (rows, 2) or not bool(torch.isfinite(logps).all()):
        logger.warning("%s: cached reference log-probabilities are damaged; computing them again", file)
        return None
    return logps


def _write(file: Path, logps: torch.Tensor) -> None:
    from safetensors.torch import save

    file.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(file, save({"logps": logps.contiguous()}))
