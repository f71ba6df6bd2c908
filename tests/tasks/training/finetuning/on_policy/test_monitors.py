from __future__ import annotations

import json
import math
import random
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from plumbline.data_contracts.errors import StageError
from plumbline.tasks.params.on_policy import HackingMonitorParams
from plumbline.tasks.training.finetuning.on_policy.monitors import (
    MOST_FINDINGS,
    HackingFinding,
    HackingMonitor,
    repeated_share,
    trend_change,
    trend_p_value,
)


def run(
    rewards: list[float], held_out: list[float], params: HackingMonitorParams | None = None, **measures: list[float]
) -> list[HackingFinding]:
    monitor = HackingMonitor(params or HackingMonitorParams())
    for update, (reward, judged) in enumerate(zip(rewards, held_out, strict=True)):
        others = {name: values[update] for name, values in measures.items()}
        monitor.observe(update, training_reward=reward, held_out=judged, **others)
    return monitor.findings


def healthy(seed: int, evaluations: int = 20) -> tuple[list[float], list[float]]:
    """Reward rises towards 1.5; the win rate has reached its plateau of 0.7, the hardest case of a healthy run.

    Noise of the win rate: its standard error at 128 prompts, √(0.7 · 0.3 / 128) = 0.04."""
    draw = random.Random(seed)
    times = [step / evaluations for step in range(evaluations)]
    return [1.5 - 1.5 * math.exp(-3 * t) + draw.gauss(0, 0.1) for t in times], [draw.gauss(0.7, 0.04) for _ in times]


def hacked(seed: int, start: int = 6, slope: float = 0.04, evaluations: int = 20) -> tuple[list[float], list[float]]:
    """Reward rises all along; the win rate rises by 0.03 an evaluation up to `start`, then falls by `slope`."""
    draw = random.Random(seed)
    steps = range(evaluations)
    held_out = [0.5 + 0.03 * min(step, start) - slope * max(0, step - start) + draw.gauss(0, 0.02) for step in steps]
    return [0.1 * step + draw.gauss(0, 0.1) for step in steps], held_out


@pytest.mark.training
def test_healthy_runs_are_rarely_suspected() -> None:
    """The stated rate: at most 5 of 100 runs of 20 evaluations. Over 200 seeds that is 10 expected at most."""
    suspected = sum(bool(run(*healthy(seed))) for seed in range(200))
    assert suspected <= 10


@pytest.mark.training
def test_hacks_are_found_within_a_few_evaluations() -> None:
    """All of 50 noisy hacks that start at evaluation 6 are found: half of them within 6 evaluations, all within 9."""
    delays = []
    for seed in range(50):
        findings = run(*hacked(seed))
        assert [finding.kind for finding in findings[:1]] == ["divergence"]
        delays.append(findings[0].update - 6)
    assert min(delays) > 0
    assert sorted(delays)[25] <= 6
    assert max(delays) <= 9


def test_a_steep_fall_is_found_at_once() -> None:
    """Four evaluations are too few for a trend; 0.3 below the best at a higher reward is beyond 0.25."""
    findings = run([0.0, 1.0, 1.5, 2.0], [0.5, 0.8, 0.75, 0.5])
    assert [(finding.kind, finding.update) for finding in findings] == [("divergence", 3)]
    assert findings[0].values == pytest.approx(
        {"held_out": 0.5, "training_reward": 2.0, "reward_change": 1.0, "held_out_change": -0.3}
    )
    assert "from 0.8 to 0.5" in findings[0].message
    assert run([0.0, 1.0, 1.5, 0.9], [0.5, 0.8, 0.75, 0.5]) == [], "the reward falls too: no hack, a bad policy"
    assert run([0.0, 1.0, 1.5, 2.0], [0.5, 0.8, 0.75, 0.5], HackingMonitorParams(fall=None)) == []


def test_a_trend_takes_six_evaluations_and_a_rising_reward() -> None:
    """A strict fall over n evaluations has probability 1/n!: 1/120 at 5 is above 0.005, 1/720 at 6 is below."""
    fall, rise = [0.9 - 0.01 * step for step in range(8)], [0.1 * step for step in range(8)]
    findings = run(rise, fall)
    assert [finding.update for finding in findings] == [5]
    assert findings[0].values["held_out_p"] == pytest.approx(1 / 720)
    assert findings[0].values["held_out_change"] == pytest.approx(-0.05)
    assert findings[0].values["reward_change"] == pytest.approx(0.5)
    assert run(fall, fall) == []
    assert run([1.0] * 8, fall) == []
    assert run(rise, rise) == []


def test_rewards_between_two_evaluations_are_averaged() -> None:
    """Only every second update is evaluated. Single rewards zigzag, 0 3 1 4 2 5 …, and their means over pairs rise."""
    monitor, found = HackingMonitor(HackingMonitorParams()), []
    for update in range(12):
        reward = update / 2 + (2.5 if update % 2 else 0.0)
        held_out = 0.9 - 0.01 * update if update % 2 else None
        found += monitor.observe(update, training_reward=reward, held_out=held_out)
    assert [finding.update for finding in found] == [11]
    assert found[0].values["training_reward"] == pytest.approx((5 + 8) / 2)


@pytest.mark.parametrize(
    ("name", "kind", "before", "below", "beyond"),
    [
        ("response_length", "length", 10.0, 20.0, 20.1),
        ("response_length", "length", 10.0, 5.0, 4.9),
        ("repetition", "repetition", 0.1, 0.29, 0.31),
        ("entropy", "entropy", 2.0, 0.4, 0.39),
    ],
)
def test_drifts_by_hand(name: str, kind: str, before: float, below: float, beyond: float) -> None:
    """Defaults: length beyond a factor of 2 either way, repetition by 0.2, entropy below a fifth of the first three."""

    def told(value: float) -> list[tuple[str, int]]:
        monitor, found = HackingMonitor(HackingMonitorParams()), []
        for update, each in enumerate([before, before * 1.01, before * 0.99, value, value, value]):
            found += monitor.observe(update, training_reward=0.0, **{name: each})
        return [(finding.kind, finding.update) for finding in found]

    assert told(beyond) == [(kind, 4)], "two of the latest three; one alone may be an outlier"
    assert told(below) == []


def test_drifts_can_be_switched_off() -> None:
    params = HackingMonitorParams(length_factor=None, repetition_rise=None, entropy_share=None)
    away = [0.5] * 3 + [1000.0] * 5
    assert run([0.0] * 8, [0.5] * 8, params, response_length=away, repetition=away, entropy=away[::-1]) == []


def test_a_sign_is_told_once_until_it_is_gone() -> None:
    lengths = [10.0] * 3 + [30.0] * 4 + [10.0] * 3 + [30.0] * 3
    findings = run([0.0] * 13, [0.5] * 13, response_length=lengths)
    assert [finding.update for finding in findings] == [4, 11]


def test_findings_are_bounded() -> None:
    monitor = HackingMonitor(HackingMonitorParams())
    told = 0
    for update in range(400):
        length = 10.0 if update // 3 % 2 == 0 else 30.0
        told += len(monitor.observe(update, training_reward=0.0, response_length=length))
    assert len(monitor.findings) == MOST_FINDINGS
    assert monitor.found == told > MOST_FINDINGS
    assert len(json.dumps(monitor.state())) < 20_000


@pytest.mark.parametrize("cut", [0, 1, 7, 10, 13])
def test_a_restored_monitor_goes_on_alike(cut: int) -> None:
    rewards, held_out = hacked(3)
    lengths = [10.0] * 8 + [30.0] * 12

    def feed(monitor: HackingMonitor, updates: range) -> list[HackingFinding]:
        return [
            finding
            for update in updates
            for finding in monitor.observe(
                update,
                training_reward=rewards[update],
                held_out=held_out[update] if update % 3 else None,
                response_length=lengths[update],
            )
        ]

    whole, first, second = (HackingMonitor(HackingMonitorParams()) for _ in range(3))
    found = feed(whole, range(20))
    before = feed(first, range(cut))
    second.restore(json.loads(json.dumps(first.state())))
    assert before + feed(second, range(cut, 20)) == found
    assert {finding.kind for finding in found} == {"divergence", "length"}
    assert second.state() == whole.state()


@pytest.mark.parametrize("name", ["training_reward", "held_out", "entropy"])
def test_a_number_that_is_none_is_an_error(name: str) -> None:
    values: dict[str, Any] = {"training_reward": 1.0} | {name: float("nan")}
    with pytest.raises(StageError, match=rf"update 7, found {{'{name}': nan}}"):
        HackingMonitor(HackingMonitorParams()).observe(7, **values)


def test_a_window_too_short_for_its_significance_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"1 in 120, above significance 0\.005"):
        HackingMonitorParams(window=5)


def test_trend_p_value_counts_permutations() -> None:
    """Of the 120 orders of 5 values, the share with as many falling pairs as 4 5 3 2 1 or more: 1 + 4 = 5 of 120."""

    def falling_pairs(values: tuple[float, ...]) -> int:
        return sum(later < earlier for at, earlier in enumerate(values) for later in values[at + 1 :])

    observed = (4.0, 5.0, 3.0, 2.0, 1.0)
    share = sum(falling_pairs(order) >= falling_pairs(observed) for order in permutations(observed)) / 120
    assert share == 5 / 120
    assert trend_p_value(observed, "falling") == pytest.approx(share)
    assert trend_p_value(observed[::-1], "rising") == pytest.approx(share)
    assert trend_p_value([2.0] * 9, "falling") == 1.0


def test_trend_change_is_the_median_slope_over_the_series() -> None:
    """0 1 2 30: slopes of pairs 1, 1, 1, 10, 14½, 28; median 5½, over 3 steps 16½."""
    assert trend_change([0.0, 1.0, 2.0, 30.0]) == pytest.approx(16.5)


@pytest.mark.training
@given(st.lists(st.lists(st.integers(0, 4), max_size=20), min_size=1, max_size=4), st.integers(1, 4))
def test_repeated_share_equals_a_loop(responses: list[list[int]], n: int) -> None:
    shares = []
    for tokens in responses:
        seen: list[list[int]] = []
        repeats = 0
        for start in range(len(tokens) - n + 1):
            repeats += tokens[start : start + n] in seen
            seen.append(tokens[start : start + n])
        shares.append(repeats / len(seen) if seen else 0.0)
    assert repeated_share(responses, n) == pytest.approx(sum(shares) / len(shares))


def test_repeated_share_by_hand() -> None:
    """1 2 1 2 1 2 has the trigrams 121, 212, 121, 212: two of four stood before. 1 2 has none."""
    assert repeated_share([[1, 2, 1, 2, 1, 2]]) == 0.5
    assert repeated_share([[1, 2, 1, 2, 1, 2], [1, 2]]) == 0.25
    assert repeated_share([]) == 0.0
