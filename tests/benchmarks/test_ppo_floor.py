from __future__ import annotations

from types import SimpleNamespace

from benchmarks.phase_clock import PhaseClock
from benchmarks.ppo_floor import episode_flops, linear_shapes

CONFIG = SimpleNamespace(
    hidden_size=4,
    intermediate_size=6,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=2,
    vocab_size=10,
)


def test_operations_by_hand() -> None:
    """One episode of 2 + 2 tokens, 1 pass.

    A block's weights: queries 4x4, keys and values 4x2 each, output 4x4, feed-forward 3 of 24: 16 + 16 + 16 + 72 = 120,
    so 240 in both blocks. Policy and critic read 3 tokens: 2 * 240 * 3 = 1440, and attention over 1 + 2 + 3 = 6 pairs
    of tokens in two products of width 4 in 2 blocks: 2 * 2 * 4 * 2 * 6 = 192. Head at 2 positions: 2 * 10 * 4 * 2 =
    160. Reward model, 4 tokens: 2 * 240 * 4 = 1920, 10 pairs: 320.
    """
    assert sum(inside * outside for inside, outside in linear_shapes(CONFIG)) == 120
    policy, critic, reward = 1440 + 192 + 160, 1440 + 192, 1920 + 320
    assert episode_flops(CONFIG, [(2, 2)], num_ppo_epochs=1) == {
        "rollout": policy,
        "scoring": policy + critic + reward,
        "update": 3 * (policy + critic),
    }


def test_epochs_repeat_the_update_and_episodes_add_up() -> None:
    once = episode_flops(CONFIG, [(2, 2)], num_ppo_epochs=1)
    assert episode_flops(CONFIG, [(2, 2)], num_ppo_epochs=4)["update"] == 4 * once["update"]
    assert episode_flops(CONFIG, [(2, 2), (2, 2)], num_ppo_epochs=1) == {
        name: 2 * count for name, count in once.items()
    }


def test_a_wrapped_call_inside_another_is_booked_once() -> None:
    clock = PhaseClock()
    inner = clock.wrap("inner", lambda: sum(range(200_000)))
    clock.wrap("outer", inner)()
    assert set(clock.seconds) == {"outer"}
    inner()
    booked = clock.booked(total=10.0)
    assert set(booked) == {"outer", "inner", "rest"}
    assert abs(sum(booked.values()) - 10.0) < 1e-9
