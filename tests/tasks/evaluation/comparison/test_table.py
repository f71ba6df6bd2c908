from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from plumbline.data_contracts.errors import StageError
from plumbline.tasks.evaluation.comparison.recommend import FigureInterval
from plumbline.tasks.evaluation.comparison.table import (
    HEADER,
    Trial,
    TrialRow,
    cells,
    headline_judge,
    markdown,
    pareto_front,
    read_outcomes,
    rows_of,
    shared_outcomes,
    time_ratios,
)
from plumbline.tasks.params.comparison import CompareParams

Make = Callable[..., Trial]
MIXED = {"a": 1.0, "b": 0.0, "c": 0.5, "d": 1.0}


def rows(*trials: Trial, **params: Any) -> list[TrialRow]:
    return rows_of(trials, CompareParams(**params), confidence=0.95, resamples=200, seed=1)


def test_outcomes_are_read_by_prompt_and_judge(tmp_path: Path) -> None:
    lines = [
        {"pair_id": "a", "scores": {"judge": {"policy": 1.0, "reference": 0.0}}},
        {"pair_id": "b", "scores": {"judge": {"policy": 0.5, "reference": 0.5}, "gold": {"policy": 0, "reference": 2}}},
    ]
    (tmp_path / "samples.jsonl").write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    assert read_outcomes(tmp_path) == {"judge": {"a": 1.0, "b": 0.5}, "gold": {"b": 0.0}}


def test_a_row_of_one_seed(make_trial: Make) -> None:
    """Win rate (1 + 0 + ½ + 1) / 4 = 0.625; 10 CPU s at 0.36 an hour are 0.001."""
    (row,) = rows(make_trial("dpo", MIXED), price_cpu_hour=0.36)
    assert row.win["gold"].value == 0.625
    assert row.win["gold"].low < 0.625 < row.win["gold"].high
    assert (row.kl, row.ece, row.refused) == (FigureInterval(0.1, 0.05, 0.2), 0.1, 0.9)
    assert (row.wall_seconds, row.cpu_seconds, row.tokens_seen) == (5.0, 10.0, 1000)
    assert row.cost == pytest.approx(0.001)


def test_seeds_are_one_row_of_means(make_trial: Make) -> None:
    """Win rates 0.625 and 0.375 give ½; the ends of the KL reach from the lowest to the highest."""
    other = {"a": 0.0, "b": 1.0, "c": 0.5, "d": 0.0}
    (row,) = rows(make_trial("dpo", MIXED), make_trial("dpo", other, seed=2, kl=0.2, cpu=30.0, ece=0.3))
    assert (row.seeds, row.win["gold"].value, row.win_by_seed["gold"]) == ((1, 2), 0.5, (0.625, 0.375))
    assert row.kl == FigureInterval(pytest.approx(0.15), 0.05, 0.4)
    assert (row.ece, row.cpu_seconds) == (pytest.approx(0.2), 20.0)


def test_variants_are_paired_on_the_prompts_that_all_have(make_trial: Make) -> None:
    one, other = make_trial("one", MIXED), make_trial("other", {"b": 1.0, "e": 0.0, "a": 0.5})
    found = shared_outcomes([one, other], "gold")
    assert {name: values.tolist() for name, values in found.items()} == {"one": [[1.0, 0.0]], "other": [[0.5, 1.0]]}
    with pytest.raises(StageError, match="found none"):
        shared_outcomes([one, make_trial("other", {"z": 1.0})], "gold")


def test_gold_decides_where_every_trial_has_it(make_trial: Make) -> None:
    one = make_trial("one", MIXED)
    assert headline_judge([one]) == "gold"
    assert headline_judge([one, replace(one, outcomes={"judge": MIXED})]) == "judge"


def test_the_front_holds_what_none_beats_in_all_three(make_trial: Make) -> None:
    """`slow` is `good` at a higher price; `near` wins less than `good`, at a lower KL; `fast` wins less, sooner."""
    less = {**MIXED, "d": 0.0}
    found = rows(
        make_trial("good", MIXED, kl=0.1, cpu=10),
        make_trial("slow", MIXED, kl=0.1, cpu=20),
        make_trial("near", less, kl=0.05, cpu=10),
        make_trial("fast", less, kl=0.1, cpu=5),
        make_trial("twin", MIXED, kl=0.1, cpu=10),
    )
    assert pareto_front(found, "gold") == ["good", "near", "fast", "twin"]


def test_time_is_told_over_that_of_dpo(make_trial: Make) -> None:
    dpo, ppo = make_trial("dpo", MIXED, cpu=10), make_trial("ppo", MIXED, cpu=27, methods=("ppo",))
    found = {"over": "dpo", "reward_model_seconds": None, "literature_ppo": [2.0, 5.0]}
    assert time_ratios(rows(dpo, ppo), None) == {**found, "ratios": {"ppo": {"wall": 2.7, "cpu": 2.7}}}
    assert time_ratios(rows(ppo), None) is None
    assert time_ratios(rows(dpo), None) is None


def test_what_learns_from_the_reward_model_is_told_with_its_time_too(make_trial: Make) -> None:
    """DPO takes 5 s on the wall clock, PPO 13.5 s, the reward model 1.5 s: (13.5 + 1.5) / 5 = 3. KTO needs none."""
    trials = [make_trial("dpo", MIXED, cpu=10), make_trial("ppo", MIXED, cpu=27, methods=("ppo",))]
    found = time_ratios(rows(*trials, make_trial("kto", MIXED, cpu=10, methods=("kto",))), 1.5)
    assert found is not None
    assert found["ratios"] == {
        "ppo": {"wall": 2.7, "cpu": 2.7, "wall_with_reward_model": 3.0},
        "kto": {"wall": 1.0, "cpu": 1.0},
    }


def test_the_table_in_markdown(make_trial: Make) -> None:
    trial = make_trial("dpo", MIXED, ece=None)
    found = rows(replace(trial, cost=replace(trial.cost, tokens_seen=None, sessions=2)))
    (line,) = cells(found, ["dpo"])
    shown = dict(zip(HEADER, line, strict=True))
    assert shown["gold win rate"].startswith("0.625 [")
    assert (shown["ECE"], shown["tokens seen"], shown["generated"]) == ("-", "not said", "0")
    assert (shown["CPU s"], shown["refused / over"], shown["Pareto"]) == ("10.0 (2 sessions)", "0.90 / 0.02", "yes")
    assert markdown(found, ["dpo"]).splitlines()[2].startswith("| dpo | 0.625 [")
