"""Panels by what a curve holds; the pictures themselves were looked at, here their bytes answer for them."""

import matplotlib
import orjson
import pytest

from plumbline.tasks.evaluation.measures import on_policy_plots
from plumbline.tasks.evaluation.measures.curves import Span, read_training

KL = {"mode": "adaptive", "target": 0.15, "ramp_at": 2.0}
PPO = {
    "reward": 0.1,
    "score": 0.1,
    "reward/reward_model": 0.2,
    "reward/reward_model/normalised": 0.1,
    "reward/brevity": -0.1,
    "kl_per_token": 0.1,
    "beta": 0.04,
    "beta_ramp": 0.0,
    "entropy": 0.3,
    "eos_rate": 1.0,
    "explained_variance": -40.0,
    "clip_fraction": 0.1,
    "response_tokens": 12.0,
    "validation_judge_score": 1.0,
    "validation_win_rate": 0.8,
}
GRPO = {
    "gain_spread": 0.4,
    "kl_per_token": 0.1,
    "beta": 0.0,
    "finished": 1.0,
    "response_tokens": 9.0,
    "clip_share": 0.0,
}


def write(path, row, changed):
    """Three steps alike but for what changes in the last."""
    rows = [row | {"step": 1}, row | {"step": 2}, row | {"step": 3} | changed]
    path.write_bytes(b"".join(orjson.dumps(each) + b"\n" for each in rows))
    return path


@pytest.fixture
def curve(tmp_path):
    return lambda row, **changed: write(tmp_path / "training.jsonl", row, changed)


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """Bytes of the pictures of PPO as it is."""
    folder = tmp_path_factory.mktemp("before")
    on_policy_plots.draw(write(folder / "training.jsonl", PPO, {}), {"kl": KL}, folder)
    return {name: (folder / name).read_bytes() for name in ("on_policy.png", "rewards.png")}


def titles(panels):
    return [(panel.title.split(" (")[0], panel.metrics) for panel in panels]


def test_each_reward_term_has_a_panel_of_its_own_above_the_held_out_judge(curve):
    assert titles(on_policy_plots.reward_panels(read_training(curve(PPO)))) == [
        ("Total reward", ("reward",)),
        ("Term brevity", ("reward/brevity",)),
        ("Term reward_model", ("reward/reward_model",)),
        ("Judge on held-out prompts: score", ("validation_judge_score",)),
        ("Judge on held-out prompts: win rate over π_ref", ("validation_win_rate",)),
    ]
    assert titles(on_policy_plots.reward_panels(read_training(curve(PPO, score=-1.0))))[0] == (
        "Total reward",
        ("reward", "score"),
    )
    assert titles(on_policy_plots.reward_panels(read_training(curve(GRPO)))) == [
        ("Spread of the judge's gains within a group", ("gain_spread",))
    ]


@pytest.mark.training
def test_what_did_not_sample_has_no_such_plots(curve, tmp_path):
    on_policy_plots.draw(curve({"loss": 1.0, "validation_response_tokens": 3.0}), {}, tmp_path / "dpo")
    assert not (tmp_path / "dpo").exists()
    on_policy_plots.draw(curve(GRPO), {"kl": {"mode": "fixed"}}, tmp_path / "grpo")
    assert {path.name for path in (tmp_path / "grpo").iterdir()} == {"rewards.png", "on_policy.png"}


@pytest.mark.training
@pytest.mark.parametrize(
    ("changed", "target", "moved"),
    [
        ({"reward/brevity": -9.0}, 0.15, ["rewards.png"]),
        ({"beta_ramp": 1.0}, 0.15, ["on_policy.png"]),
        ({}, 0.05, ["on_policy.png"]),
        ({"learning_rate": 0.5}, 0.15, []),
    ],
)
def test_a_picture_changes_with_what_it_shows_alone_whatever_the_users_style(
    curve, before, tmp_path, changed, target, moved
):
    with matplotlib.rc_context({"axes.facecolor": "red", "lines.linewidth": 9}):
        on_policy_plots.draw(curve(PPO, **changed), {"kl": KL | {"target": target}}, tmp_path)
    assert [name for name, data in before.items() if (tmp_path / name).read_bytes() != data] == moved


def test_each_stage_of_a_stack_aims_at_its_own_target(tmp_path):
    rows = [{"step": 1, "stage": "1-dpo", "loss": 1.0}]
    rows += [PPO | {"step": step, "stage": "2-ppo"} for step in (2, 3)]
    rows += [GRPO | {"step": step, "stage": "3-grpo"} for step in (4, 5)]
    path = tmp_path / "t.jsonl"
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    settings = {
        "stage_reference": "reference",
        "1-dpo": {"beta": 0.1},
        "2-ppo": {"kl": KL},
        "3-grpo": {"kl": KL | {"target": 0.1, "ramp_at": None}},
    }
    aims = list(on_policy_plots._bands(read_training(path), settings))
    assert [(aim.span, aim.target, aim.ramp) for aim in aims] == [
        (Span("2-ppo", 2, 3), 0.15, 0.3),
        (Span("3-grpo", 4, 5), 0.1, None),
    ]
