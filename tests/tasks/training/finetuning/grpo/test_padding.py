from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from trl.trainer.utils import add_fused_lm_head

from plumbline.tasks.models.loading import load_policy
from plumbline.tasks.models.logps import pad_right
from plumbline.tasks.models.packed_head import read_packed
from plumbline.tasks.training.finetuning.grpo import padding
from plumbline.tasks.training.finetuning.grpo.padding import WithoutPadding


class Naive:
    """TRL's method in three lines, with its width recorded."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def _get_per_token_logps_and_entropies(
        self, model: Any, ids: torch.Tensor, mask: torch.Tensor, keep: int, batch_size: Any = None, **options: Any
    ) -> Any:
        self.shapes.append(tuple(ids.shape))
        labels = ids.masked_fill(mask == 0, -100)
        labels[:, :-keep] = -100
        output = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True)
        return output.log_probs[:, -keep:], output.entropy[:, -keep:] if options["compute_entropy"] else None, None


class Trimmed(WithoutPadding, Naive):
    """What is tested."""


def batch() -> tuple[torch.Tensor, torch.Tensor, int]:
    """40 rows, of 4 each with one prompt, of 2 to 9 tokens, completions of 1 to 12, padded as TRL pads them; T = 15
    leaves columns that no row needs."""
    draw = torch.Generator().manual_seed(0)

    def tokens(count: int) -> list[int]:
        return torch.randint(2, 18, (count,), generator=draw).tolist()

    prompts = [tokens(2 + number % 8) for number in range(10)]
    heads = [prompts[row // 4] for row in range(40)]
    tails = [tokens(1 + row * 7 % 12) for row in range(40)]
    flipped, head_mask = pad_right([head[::-1] for head in heads], 0)
    tail_ids, tail_mask = pad_right([*tails, [2] * 15], 0)
    ids = torch.cat([flipped.flip(1), tail_ids[:-1]], dim=1)
    return ids, torch.cat([head_mask.flip(1), tail_mask[:-1]], dim=1), 15


@pytest.mark.parametrize("packed", [True, False])
def test_log_probabilities_and_gradients_are_those_of_the_whole_rectangle(
    reference: Path, monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    """A model that reads packed sequences gets the rectangle as it is; for others it is cut."""
    if not packed:
        monkeypatch.setattr(padding, "packs", lambda _: False)
    ids, mask, keep = batch()
    found, gradients, shapes = [], [], []
    for method in (Naive(), Trimmed()):
        model = load_policy(reference)
        add_fused_lm_head(model, outputs=("log_probs", "entropy"))
        if packed and isinstance(method, Trimmed):
            read_packed(model, ("log_probs", "entropy"))
        logps, entropies, _ = method._get_per_token_logps_and_entropies(model, ids, mask, keep, compute_entropy=True)
        inside = mask[:, -keep:].bool()
        assert logps.shape == entropies.shape == (40, keep)
        assert not logps[~inside].any() and not entropies[~inside].any()
        ((logps * torch.linspace(-1, 1, keep)).sum() + 0.1 * entropies.sum()).backward()
        gradients.append(torch.cat([weights.grad.flatten() for weights in model.parameters()]))
        found.append((logps.detach(), entropies.detach()))
        shapes.append(method.shapes)
    for whole, trimmed in zip(*found, strict=True):
        assert torch.allclose(whole, trimmed, atol=1e-5)
    assert torch.allclose(gradients[0], gradients[1], atol=1e-4)
    assert shapes[0] == [(40, 24)]
    if packed:
        assert shapes[1] == [(40, 24)]
    else:
        assert [rows for rows, _ in shapes[1]] == [16, 16, 8], "a second pass would be twice the work"
        assert sum(rows * width for rows, width in shapes[1]) < 0.9 * 40 * 24


def test_an_auxiliary_loss_keeps_the_batch_whole(reference: Path) -> None:
    ids, mask, keep = batch()
    model = load_policy(reference)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    method = Trimmed()
    method._get_per_token_logps_and_entropies(model, ids, mask, keep, compute_aux_loss=True)
    assert method.shapes == [(40, 24)]


def test_a_completion_without_a_token_left_is_scored_as_nothing(reference: Path) -> None:
    """`mask_truncated_completions` masks whole completions."""
    ids, mask, keep = batch()
    mask[:, -keep:] = 0
    model = load_policy(reference)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    logps, _, _ = Trimmed()._get_per_token_logps_and_entropies(model, ids, mask, keep)
    assert logps.shape == (40, keep)
    assert float(logps.detach().abs().sum()) == pytest.approx(0.0)
