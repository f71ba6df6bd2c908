from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from plumbline.data_contracts.records import CuratedPair
from plumbline.tasks.models.loading import load_policy, load_tokenizer
from plumbline.tasks.models.pairs import TokenPair, digest_of_tokens, tokenise_pairs
from plumbline.tasks.training.finetuning import reference_logps


def test_a_damaged_cache_is_named_and_replaced(
    reference: Path, tmp_path: Path, pairs: Callable[..., list[CuratedPair]], caplog: pytest.LogCaptureFixture
) -> None:
    model = load_policy(reference)
    tokens = tokenise_pairs(pairs(5, seed=1), load_tokenizer(reference), 64).tokens

    def compute() -> torch.Tensor:
        return reference_logps.reference_logps(model, "w", tokens, max_length=64, batch_size=2, cache=tmp_path)

    first = compute()
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    with caplog.at_level(logging.WARNING):
        assert torch.equal(compute(), first)
    assert f"{file.name}: cached reference log-probabilities cannot be read" in caplog.text
    assert file.read_bytes() == whole


def test_cache_is_keyed_by_weights_and_pairs(
    reference: Path, tmp_path: Path, pairs: Callable[..., list[CuratedPair]]
) -> None:
    model = load_policy(reference)
    tokens = tokenise_pairs(pairs(4, seed=1), load_tokenizer(reference), 64).tokens
    for weights, part in [("w", tokens), ("w", tokens), ("v", tokens), ("w", tokens[:3]), ("w", tokens[::-1])]:
        reference_logps.reference_logps(model, weights, part, max_length=64, batch_size=2, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 4


def test_token_digest_tells_boundaries_apart() -> None:
    """The same ids split otherwise are other pairs."""
    assert digest_of_tokens([TokenPair([1, 2], [3], [4])]) != digest_of_tokens([TokenPair([1], [2, 3], [4])])
    assert digest_of_tokens([TokenPair([1], [2], [3])]) == digest_of_tokens([TokenPair([1], [2], [3])])
