from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from plumbline.data_contracts.errors import StageError
from plumbline.tasks.params.on_policy import KlParams
from plumbline.tasks.training.finetuning.on_policy.kl_control import KlController, check_kl_sign


def controller(**changes: Any) -> KlController:
    """β 0.1, target 0.1, horizon 100, so that 10 episodes at an error of 20 % or more move β by 2 %."""
    given = {"beta": 0.1, "target": 0.1, "horizon": 100, "stop_at": None} | changes
    return KlController(KlParams(**{name: value for name, value in given.items() if name != "beta"}), given["beta"])


@pytest.mark.parametrize(
    ("kl", "episodes", "factor"),
    [
        (0.1, 10, 1.0),
        (0.11, 10, 1.01),  # error 0.1: 1 + 0.1 · 10 / 100
        (0.15, 10, 1.02),  # error 0.5, clipped to 0.2
        (0.0, 10, 0.98),
        (-0.05, 10, 0.98),  # below 0 by noise: as far below the target as can be
        (0.15, 1000, 1.2),  # a rollout of more than a horizon counts as one
        (0.0, 1000, 0.8),
    ],
)
def test_the_adaptive_rule_by_hand(kl: float, episodes: int, factor: float) -> None:
    each = controller()
    assert each.update(kl, episodes) == pytest.approx(0.1 * factor)
    assert each.beta == pytest.approx(0.1 * factor)


def test_fixed_never_moves() -> None:
    each = controller(mode="fixed", beta=0.0)
    assert [each.update(kl, 64) for kl in (0.0, 5.0, 0.1)] == [0.0, 0.0, 0.0]
    assert each.log() == {"beta": 0.0, "beta_ramp": 0.0}


def test_the_ramp_is_linear_and_gives_way_to_the_adaptive_rule() -> None:
    """β 0.1, slope ½: above twice the target 0.15, 0.2, 0.25, not 1.5 times each; then 2 % a step at 10 episodes.
    The next ramp starts from where β is: 0.255 + 0.1275."""
    each = controller(ramp_at=2.0, ramp_slope=0.5)
    assert [each.update(0.3, 10) for _ in range(3)] == pytest.approx([0.15, 0.2, 0.25])
    assert each.log() == {"beta": pytest.approx(0.25), "beta_ramp": 1.0}
    assert each.update(0.15, 10) == pytest.approx(0.255)
    assert each.log()["beta_ramp"] == 0.0
    assert each.update(0.3, 10) == pytest.approx(0.3825)
    assert each.update(2.0 * 0.1, 10) == pytest.approx(0.3825 * 1.02)  # at twice the target, not above it
    without = controller(ramp_at=None)
    assert without.update(0.3, 10) == pytest.approx(0.102)


@given(st.lists(st.floats(-1, 20), max_size=60), st.integers(1, 4096))
def test_beta_keeps_to_its_bounds(measured: list[float], episodes: int) -> None:
    each = controller(beta_min=0.01, beta_max=0.5)
    assert all(0.01 <= each.update(kl, episodes) <= 0.5 for kl in measured)


@given(st.lists(st.floats(-0.1, 0.9), min_size=2, max_size=20), st.integers(0, 20), st.sampled_from([None, 0.5]))
def test_a_restored_controller_goes_on_alike(measured: list[float], cut: int, stop_at: float | None) -> None:
    def follow(each: KlController, part: list[float]) -> list[float | str]:
        seen: list[float | str] = []
        for kl in part:
            try:
                seen.append(each.update(kl, 30))
            except StageError as error:
                seen.append(str(error))
        return seen

    params = {"stop_at": stop_at, "stop_patience": 2}
    whole, first, second = controller(**params), controller(**params), controller(**params)
    follow(first, measured[:cut])
    second.restore(json.loads(json.dumps(first.state())))
    assert follow(whole, measured)[cut:] == follow(second, measured[cut:])


def test_a_runaway_stops_with_what_to_do() -> None:
    each = controller(stop_at=1.0, stop_patience=1)
    each.update(0.99, 10)
    with pytest.raises(
        StageError, match=r"at most 1 nats per token .*found 1\.2 .*target 0\.1, β 0\.15.*learning rate"
    ):
        each.update(1.2, 10)
    with pytest.raises(StageError, match=r"set kl\.mode: adaptive"):
        controller(mode="fixed", stop_patience=1, stop_at=1.0).update(1.2, 10)
    with pytest.raises(StageError, match=r"finite KL .* found nan"):
        controller().update(float("nan"), 10)


def test_patience_counts_updates_in_a_row() -> None:
    each = controller(stop_at=1.0, stop_patience=2)
    each.update(1.2, 10)
    each.update(0.9, 10)
    each.update(1.2, 10)
    with pytest.raises(StageError, match="over 2 updates in a row"):
        each.update(1.2, 10)


def test_a_restored_controller_remembers_a_ramp_and_updates_above_the_stop() -> None:
    """β 0.15 on a ramp from 0.1: the next step adds 0.05 again, and a second update above the stop ends the run."""
    first, second = (controller(stop_at=1.0, stop_patience=2) for _ in range(2))
    first.update(1.2, 10)
    second.restore(json.loads(json.dumps(first.state())))
    with pytest.raises(StageError, match="over 2 updates in a row"):
        second.update(1.2, 10)
    second.restore(json.loads(json.dumps(first.state())))
    assert second.update(0.3, 10) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stop_at": 0.2}, "stop_at 0.2 must be above 0.2"),
        ({"ramp_at": 1.0}, "greater than 1"),
        ({"horizons": 3}, "Extra inputs"),
    ],
)
def test_params_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        controller(**changes)


@pytest.mark.parametrize(
    ("bounds", "beta", "message"),
    [({}, 0.0, "set kl.mode: fixed"), ({"beta_min": 0.5}, 0.1, "0.5, 0.1, 1.0"), ({"beta_max": 0.05}, 0.1, "0.05")],
)
def test_a_beta_that_cannot_move_is_refused(bounds: dict[str, Any], beta: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KlParams(**bounds).require_movable(beta)
    KlParams(mode="fixed", **bounds).require_movable(beta)


def plant(push: Callable[[int], float], seed: int, each: KlController, updates: int = 120) -> list[float]:
    """A policy in a nutshell: KL goes 15 % a way per update to where reward and penalty balance, push / β.

    At the optimum of r - β KL the KL of a Gaussian is proportional to 1/β²; 1/β is the tamer of the two. What is
    measured has 10 % of noise; 64 episodes an update."""
    draw, kl, measured = random.Random(seed), 0.0, []
    for update in range(updates):
        kl += 0.15 * (push(update) / each.beta - kl)
        measured.append(kl * math.exp(0.1 * draw.gauss(0, 1)))
        each.update(measured[-1], 64)
    return measured


@pytest.mark.parametrize("push", [0.001, 0.004, 0.02])
@pytest.mark.parametrize("seed", range(5))
def test_defaults_bring_kl_into_the_band_and_hold_it(push: float, seed: int) -> None:
    """With β as it starts (0.04) KL would settle at 0.025, 0.1 or 0.5 nats per token. The band 0.05 to 0.2 is reached
    within 30 updates of 64 episodes, half of the 3,840 over which a horizon of 1,000 hardly moved β."""
    measured = plant(lambda update: push, seed, KlController(KlParams(), 0.04))
    assert all(0.05 <= kl <= 0.2 for kl in measured[30:])
    assert sum(measured[60:]) / 60 == pytest.approx(0.1, rel=0.1)


def test_a_horizon_of_1000_would_not_reach_the_band_in_time() -> None:
    measured = plant(lambda update: 0.001, 0, KlController(KlParams(horizon=1000), 0.04), updates=60)
    assert any(kl < 0.05 for kl in measured[30:])


@pytest.mark.parametrize("seed", range(5))
def test_the_ramp_ends_a_spike(seed: int) -> None:
    """For 15 updates the reward pulls six times as hard. The ramp keeps the peak, and the time above the band, to less
    than three quarters and half of what the adaptive rule alone lets happen; afterwards KL settles at the target."""

    def push(update: int) -> float:
        return 0.024 if 60 <= update < 75 else 0.004

    ramped = plant(push, seed, KlController(KlParams(), 0.04), updates=200)
    alone = plant(push, seed, KlController(KlParams(ramp_at=None), 0.04), updates=200)
    assert max(ramped[60:]) < 0.85 * max(alone[60:])
    assert sum(kl > 0.2 for kl in ramped[60:]) < 0.6 * sum(kl > 0.2 for kl in alone[60:])
    assert sum(ramped[150:]) / 50 == pytest.approx(0.1, rel=0.15)


def test_kl_below_0_beyond_noise_is_an_error() -> None:
    check_kl_sign(0.1, 0.01)
    check_kl_sign(-0.039, 0.01)
    check_kl_sign(-9e-4, 1e-6)  # rounding: sampler and full forward agree within 1e-4, not to the last bit
    with pytest.raises(StageError, match=r"found -0\.041 ± 0\.01 nats in update 3.*temperature, top_p"):
        check_kl_sign(-0.041, 0.01, where="update 3")
    with pytest.raises(StageError, match="negative"):
        check_kl_sign(-0.0011, 0.0)


def test_what_the_command_line_reads_loads_without_torch() -> None:
    """It reads params and looks for vLLM before any work: torch takes seconds to import, scipy one."""
    modules = ["params.whole", "training.finetuning.methods", "training.finetuning.on_policy.vllm"]
    code = f"import sys; [__import__(f'plumbline.tasks.{{name}}') for name in {modules}]; "
    code += "assert not {'torch', 'scipy', 'trl', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
