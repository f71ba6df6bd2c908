import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plumbline.tasks.models.divergence import sequence_divergences, token_divergences
from tests.tasks.models.tiny_llama import build_model

POLICY = np.array([0.5, 0.3, 0.2])
REFERENCE = np.array([0.2, 0.3, 0.5])
EXACT = 0.3 * np.log(2.5)  # Σ p log(p/q) = .5·ln 2.5 + 0 + .2·ln .4 = (.5 - .2)·ln 2.5


def log(values):
    return torch.tensor(values, dtype=torch.float32).log()


def test_every_estimator_averages_to_the_exact_divergence():
    """E over the three tokens, weighted by the policy's probabilities: .3·ln 2.5 = .2749 for kl, k1 and k3 alike."""
    found = token_divergences(log(POLICY).repeat(3, 1), log(REFERENCE).repeat(3, 1), torch.arange(3)).numpy()
    assert found @ POLICY == pytest.approx([EXACT] * 3, abs=1e-6)


def test_k1_and_k3_by_hand():
    """Token 2: k1 = ln(.2/.5) = -.9163; r = 2.5, so k3 = 1.5 - ln 2.5 = .5837, although k1 is negative."""
    _, k1, k3 = token_divergences(log(POLICY)[None], log(REFERENCE)[None], torch.tensor([2])).flatten().tolist()
    assert k1 == pytest.approx(-0.9163, abs=1e-4)
    assert k3 == pytest.approx(0.5837, abs=1e-4)


@given(st.lists(st.tuples(st.floats(-8, 8), st.floats(-8, 8)), min_size=2, max_size=8))
def test_kl_and_k3_are_never_negative(rows):
    p, q = (torch.log_softmax(torch.tensor(side), dim=-1)[None] for side in zip(*rows, strict=True))
    kl, _, k3 = token_divergences(p, q, torch.tensor([0])).flatten().tolist()
    assert kl >= -1e-6
    assert k3 >= -1e-6


def test_a_token_of_probability_zero_adds_nothing():
    kl, _, _ = token_divergences(log([1.0, 0.0])[None], log([0.5, 0.5])[None], torch.tensor([0])).flatten().tolist()
    assert kl == pytest.approx(np.log(2))


@pytest.fixture(scope="module")
def models():
    """(policy, reference): random weights of two seeds, so that they differ."""
    return [build_model(300, seed=seed) for seed in (1, 2)]


class Chain(torch.nn.Module):
    """A policy over three tokens whose next token depends on the last one alone: its KL can be enumerated."""

    def __init__(self, transitions):
        super().__init__()
        self.logits = torch.nn.Parameter(log(transitions))
        self.config = type("Config", (), {"vocab_size": 3, "get_text_config": lambda self: self})()
        self.device = torch.device("cpu")

    def forward(self, input_ids, attention_mask, use_cache):
        return type("Output", (), {"logits": self.logits[input_ids]})()


P_CHAIN = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.1, 0.8]])
Q_CHAIN = np.array([[0.4, 0.4, 0.2], [0.3, 0.3, 0.4], [0.2, 0.2, 0.6]])


def enumerate_kl(steps):
    """Σ over all completions y of length `steps` after token 0: p(y)·log(p(y)/q(y))."""
    total = 0.0
    for path in itertools.product(range(3), repeat=steps):
        moves = list(zip((0, *path), path, strict=False))
        p = np.prod([P_CHAIN[move] for move in moves])
        total += p * np.log(p / np.prod([Q_CHAIN[move] for move in moves]))
    return total


def test_sampled_sequences_estimate_the_enumerated_divergence():
    """4,000 completions of 4 tokens: the three means agree with exact enumeration within 4 standard errors.

    The full-distribution estimator has the least variance.
    """
    generator = np.random.default_rng(0)
    pairs = []
    for _ in range(4000):
        path, state = [], 0
        for _ in range(4):
            state = int(generator.choice(3, p=P_CHAIN[state]))
            path.append(state)
        pairs.append(([0], path))
    found = sequence_divergences(Chain(P_CHAIN), Chain(Q_CHAIN), pairs, batch_size=512)
    exact = enumerate_kl(4)
    for values in (found.kl, found.k1, found.k3):
        assert values.mean() == pytest.approx(exact, abs=4 * values.std() / 4000**0.5)
    assert found.kl.std() < found.k1.std() / 2


def test_batched_equals_naive_on_a_real_model(models):
    """One sequence at a time, a full forward without padding, log-softmax over every position."""
    generator = np.random.default_rng(1)
    pairs = [
        (generator.integers(5, 250, size=size).tolist(), generator.integers(5, 250, size=length).tolist())
        for size, length in [(3, 5), (9, 1), (1, 8), (6, 4), (4, 4)]
    ]
    policy, reference = models
    found = sequence_divergences(policy, reference, pairs, batch_size=2, temperature=0.7)
    for row, (head, tail) in enumerate(pairs):
        ids = torch.tensor([[*head, *tail]])
        with torch.no_grad():
            p, q = (torch.log_softmax(model(ids).logits[0] / 0.7, dim=-1) for model in models)
        at = range(len(head) - 1, len(head) + len(tail) - 1)
        kl = sum(float((p[t].exp() * (p[t] - q[t])).sum()) for t in at)
        k1 = sum(float(p[t, token] - q[t, token]) for t, token in zip(at, tail, strict=True))
        assert found.kl[row] == pytest.approx(kl, rel=1e-4)
        assert found.k1[row] == pytest.approx(k1, rel=1e-3, abs=1e-4)
        assert found.tokens[row] == len(tail)


def test_equal_policies_do_not_diverge(models):
    found = sequence_divergences(models[0], models[0], [([7, 8], [9, 10])], batch_size=4)
    assert (found.kl[0], found.k1[0], found.k3[0]) == (0, 0, 0)


def test_an_adapter_switched_off_is_the_reference(models):
    """B = 0.1 moves the policy; the reference is the same model without it, and the mode it was in is kept."""
    import copy

    from peft import LoraConfig, get_peft_model

    plain = models[0]
    policy = get_peft_model(copy.deepcopy(plain), LoraConfig(r=2, target_modules=["q_proj", "v_proj"])).train()
    with torch.no_grad():
        for name, weights in policy.named_parameters():
            if "lora_B" in name:
                weights.fill_(0.1)
    pairs = [([7, 8], [9, 10, 11]), ([5], [6])]
    found = sequence_divergences(policy, None, pairs, batch_size=4)
    assert policy.training
    apart = sequence_divergences(policy, plain, pairs, batch_size=4)
    assert found.kl == pytest.approx(apart.kl, abs=1e-6)
    assert (found.kl > 1e-4).all()
