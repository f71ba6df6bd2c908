from __future__ import annotations

import pytest
import torch

from plumbline.tasks.models.distributions import logps_and_entropies, target_logps


def test_the_gradient_of_target_logps_is_that_of_the_naive_form() -> None:
    """Naive: log_softmax and gather. By hand: of logits (0, 0), log p(target) = -ln 2 and its gradient ±1/2."""
    torch.manual_seed(0)
    logits = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 6, 3, 3, 1])
    weights = torch.randn(5, dtype=torch.float64)
    naive = logits.log_softmax(-1).gather(1, targets.unsqueeze(1)).squeeze(1)
    found = target_logps(logits, targets)
    torch.testing.assert_close(found, naive)
    torch.testing.assert_close(
        *(torch.autograd.grad((each * weights).sum(), logits, retain_graph=True) for each in (found, naive))
    )
    even = torch.zeros(1, 2, requires_grad=True)
    logp = target_logps(even, torch.tensor([1]))
    (gradient,) = torch.autograd.grad(logp.sum(), even)
    torch.testing.assert_close(logp, torch.tensor([-0.6931472]))
    torch.testing.assert_close(gradient, torch.tensor([[-0.5, 0.5]]))


def test_a_token_whose_probability_is_no_float32_has_its_log_probability_still() -> None:
    """Logits (1000, 800): the second has e^-200, which float32 holds as 0, and log p = -200, with gradient (-1, 1)."""
    logits = torch.tensor([[1000.0, 800.0]], requires_grad=True)
    for logp in (target_logps(logits, torch.tensor([1])), logps_and_entropies(logits, torch.tensor([1]))[0]):
        (gradient,) = torch.autograd.grad(logp.sum(), logits)
        assert logp.tolist() == [-200]
        assert gradient.tolist() == [[-1, 1]]


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (0.7, -0.3)])
def test_entropies_and_their_gradient_are_those_of_the_naive_form(weights: tuple[float, float]) -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 6, 3, 3, 1])
    rows = torch.randn(2, 5, dtype=torch.float64)
    everything = logits.log_softmax(-1)
    naive = everything.gather(1, targets.unsqueeze(1)).squeeze(1), -(everything.exp() * everything).sum(-1)
    found = logps_and_entropies(logits, targets)
    gradients = []
    for logps, entropies in (naive, found):
        total = weights[0] * (logps * rows[0]).sum() + weights[1] * (entropies * rows[1]).sum()
        gradients.append(torch.autograd.grad(total, logits, retain_graph=True)[0])
    for one, other in zip([*naive, gradients[0]], [*found, gradients[1]], strict=True):
        torch.testing.assert_close(one, other)


def test_entropies_of_an_even_choice_by_hand() -> None:
    """Of even logits (0, 0): log p = -ln 2, H = ln 2; the gradient of log p is (1/2, -1/2), that of H is 0."""
    even = torch.zeros(1, 2, requires_grad=True)
    logps, entropies = logps_and_entropies(even, torch.tensor([0]))
    torch.testing.assert_close(torch.stack([logps, entropies]).flatten(), torch.tensor([-0.6931472, 0.6931472]))
    of_logps = torch.autograd.grad(logps.sum(), even, retain_graph=True)[0]
    torch.testing.assert_close(of_logps, torch.tensor([[0.5, -0.5]]))
    torch.testing.assert_close(torch.autograd.grad(entropies.sum(), even)[0], torch.zeros(1, 2))
