"""The floor of PPO's time: its floating-point operations without padding, at the rate of matrix products here.

Counted exactly: every linear layer of every real token, causal attention (two products over the pairs of tokens that
see each other), the vocabulary head at response positions, backward at twice the forward. Not counted: norms,
rotations, activations, softmax, optimiser, Python. What our trainer leaves out beyond padding is counted as if it were
done.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

FORWARD, TRAINED = 1, 3
"""Passes: a forward pass alone, and one with its backward (twice the forward)."""


def linear_shapes(config: Any) -> list[tuple[int, int]]:
    """(in, out) of each linear layer of one transformer block of a Qwen3 or Llama configuration."""
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    hidden, inner = config.hidden_size, config.intermediate_size
    attention = [(hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden)]
    return [*attention, (hidden, inner), (hidden, inner), (inner, hidden)]


def episode_flops(config: Any, lengths: Sequence[tuple[int, int]], num_ppo_epochs: int) -> dict[str, float]:
    """Floating-point operations of episodes with (prompt, response) `lengths`, by phase."""
    weights: int = config.num_hidden_layers * sum(inside * outside for inside, outside in linear_shapes(config))
    width: int = config.num_hidden_layers * config.num_attention_heads * config.head_dim

    def body(tokens: list[int]) -> float:
        pairs = sum(count * (count + 1) / 2 for count in tokens)
        return 2.0 * weights * sum(tokens) + 4.0 * width * pairs

    # the last token of a response predicts nothing: only the reward model reads it
    read = [prompt + response - 1 for prompt, response in lengths]
    whole = [prompt + response for prompt, response in lengths]
    head = 2.0 * config.vocab_size * config.hidden_size * sum(response for _, response in lengths)
    policy, critic = body(read) + head, body(read)
    return {
        "rollout": FORWARD * policy,
        "scoring": FORWARD * (policy + critic + body(whole)),
        "update": TRAINED * num_ppo_epochs * (policy + critic),
    }


def gemm_rate(config: Any, tokens: int, response_tokens: int, seconds: float = 1.0) -> float:
    """Operations a second of the matrix products of an update: each layer's forward and both of its backward.

    That of the faster of PyTorch's `mm` and, where `tasks.models.fast_linear` would use it, oneDNN.

    `tokens` and `response_tokens` are those of a micro-batch: the rows of blocks and of the vocabulary head.
    """
    import torch

    from plumbline.tasks.models.fast_linear import onednn_is_faster

    products = []
    blocks = [(tokens, *shape) for shape in linear_shapes(config)] * config.num_hidden_layers
    for rows, inside, outside in [*blocks, (response_tokens, config.hidden_size, config.vocab_size)]:
        x, weight, gradient = torch.randn(rows, inside), torch.randn(outside, inside), torch.randn(rows, outside)
        products += [(x, weight.t()), (gradient, weight), (gradient.t(), x)]
    operations = sum(2.0 * a.shape[0] * a.shape[1] * b.shape[1] for a, b in products)
    kernels: list[Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = [torch.mm]
    if onednn_is_faster():
        kernels.append(lambda a, b: torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], ""))
    best = 0.0
    for kernel in kernels:
        end = time.process_time() + seconds
        while time.process_time() < end:
            start = time.process_time()
            for a, b in products:
                kernel(a, b)
            best = max(best, operations / (time.process_time() - start))
    return best
