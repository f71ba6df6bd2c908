"""Skill by Dawid-Skene and by the noisy Bradley-Terry model, against naive computations and planted skills."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import pytest
from scipy.optimize import approx_fprime

from plumbline.tasks.data.clinic import skill as skills
from plumbline.tasks.data.clinic.skill import dawid_skene, loss, noisy_bradley_terry
from plumbline.tasks.data.clinic.units import Units

Make = Callable[..., dict[str, Any]]
Group = Callable[..., Units]
PLANTED = {"ann": 0.95, "bob": 0.85, "eve": 0.75, "zed": 0.5}


def planted_rows(judged: Make, seed: int, pairs: int = 400) -> list[dict[str, Any]]:
    """Each annotator names the better response with the chance of their skill."""
    rng = Random(seed)
    better = [rng.choice("ab") for _ in range(pairs)]
    other = {"a": "b", "b": "a"}
    return [
        judged(n, side if rng.random() < skill else other[side], name)
        for n, side in enumerate(better)
        for name, skill in PLANTED.items()
    ]


def naive_dawid_skene(units: Units, rounds: int) -> tuple[np.ndarray, np.ndarray]:
    """EM in loops: posteriors from the majority, then priors and confusion matrices, then posteriors again."""
    U, J, votes = (
        len(units.pairs),
        len(units.annotators),
        list(zip(units.unit, units.annotator, units.side, strict=True)),
    )
    posterior = units.counts()[:, :2] / units.counts()[:, :2].sum(axis=1, keepdims=True)
    for _ in range(rounds):
        prior = posterior.mean(axis=0)
        errors = np.zeros((J, 2, 2))  # annotator, true, said
        for unit, person, side in votes:
            errors[person, :, side] += posterior[unit]
        errors /= errors.sum(axis=2, keepdims=True)
        logs = np.tile(np.log(prior), (U, 1))
        for unit, person, side in votes:
            logs[unit] += np.log(errors[person, :, side])
        posterior = np.exp(logs - logs.max(axis=1, keepdims=True))
        posterior /= posterior.sum(axis=1, keepdims=True)
    return np.array([sum(prior[k] * errors[j, k, k] for k in range(2)) for j in range(J)]), posterior


def test_dawid_skene_is_the_naive_em(group: Group, judged: Make) -> None:
    units = group(planted_rows(judged, 0, 120))
    found = dawid_skene(units)
    assert found is not None
    skill, posterior = naive_dawid_skene(units, 300)
    assert found.skill == pytest.approx(skill, abs=5e-3)  # crowd-kit ends once the likelihood moves by 1e-5
    assert found.posterior[:, :2] == pytest.approx(posterior, abs=0.02)
    assert found.posterior.sum(axis=1) == pytest.approx(1)


def test_dawid_skene_finds_planted_skills(group: Group, judged: Make) -> None:
    found = dawid_skene(group(planted_rows(judged, 1)))
    assert found is not None
    assert found.skill == pytest.approx(list(PLANTED.values()), abs=0.05)


def test_who_shares_no_pair_has_no_skill(group: Group, judged: Make) -> None:
    rows = [judged(n, "a", name) for n in range(20) for name in ("ann", "bob")]
    units = group([*rows, *(judged(n, "a", "zoe") for n in range(100, 120))])
    found = dawid_skene(units)
    assert found is not None
    assert np.isnan(found.skill).tolist() == [False, False, True]
    assert np.isnan(found.posterior).any(axis=1).sum() == 20
    assert dawid_skene(group([judged(n, "a", "ann") for n in range(5)])) is None
    assert dawid_skene(group([judged(1, "a"), judged(1, "b")])) is None, "nobody signed"


def test_the_loss_is_a_naive_sum_and_its_gradient_that_of_differences() -> None:
    generator = np.random.default_rng(3)
    shape, n = (6, 3), 40
    x = generator.normal(size=shape[0] + 2 * shape[1])
    compared = np.array([generator.choice(6, 2, replace=False) for _ in range(n)])
    worker, won = generator.integers(3, size=n), generator.choice([-1.0, 1.0], n)

    def sigmoid(z: float) -> float:
        return 1 / (1 + np.exp(-z))

    naive = skills.PENALTY / 2 * sum(value**2 for value in x)
    for (first, second), person, sign in zip(compared, worker, won, strict=True):
        g = sigmoid(x[6 + person])
        naive -= np.log(g * sigmoid(sign * (x[first] - x[second])) + (1 - g) * sigmoid(sign * x[9 + person]))
    value, gradient = loss(x, compared, worker, won, shape)
    assert value == pytest.approx(naive)
    by_differences = approx_fprime(x, lambda at: loss(at, compared, worker, won, shape)[0], 1e-6)
    assert gradient == pytest.approx(by_differences, abs=1e-4)


def test_noisy_bradley_terry_finds_who_answers_by_position(group: Group) -> None:
    """Twelve responses to one prompt, of which a higher number is better. `zed`, the last, mostly names the first."""
    rng = Random(5)
    rows = []
    for name, first in {"ann": 0.0, "bob": 0.3, "zed": 0.9}.items():
        for _ in range(400):
            one, two = rng.sample(range(12), 2)
            label = "a" if rng.random() < first or one > two else "b"
            texts = {"response_a": f"reply number {one} of them", "response_b": f"reply number {two} of them"}
            rows.append({"prompt": "which?", **texts, "label": label, "annotator": name})
    found = noisy_bradley_terry(group(rows))
    assert found is not None
    ann, bob, zed = found.skill
    assert ann > 0.9
    assert 0.5 < bob < 0.9
    assert zed < 0.35
    assert found.first[2] > 0.9


def test_noisy_bradley_terry_needs_responses_that_two_judged(group: Group, judged: Make) -> None:
    assert noisy_bradley_terry(group([judged(n, "a", f"ann{n % 2}") for n in range(10)])) is None
    assert noisy_bradley_terry(group([judged(1, "tie", "ann"), judged(1, "tie", "bob")])) is None
