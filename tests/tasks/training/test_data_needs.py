"""What a run asks of the amount of data; the tokens of each pair are given, so that every count is found by hand."""

from __future__ import annotations

from typing import Any

import pytest

from plumbline.data_contracts.records import CuratedPair, Message, Origin
from plumbline.tasks.models.pairs import TokenPair
from plumbline.tasks.params.whole import Params
from plumbline.tasks.training.data_needs import DataNeed, SplitTokens, data_needs, pair_limits, prompt_limits

CONTEXT = 100


def _split(count: int, *, prompt: int = 10, response: int = 5, refused: int = 0, first: int = 0) -> SplitTokens:
    """So many pairs, each on a prompt and in a cluster of its own."""
    numbers = range(first, first + count)
    pairs = [
        CuratedPair(
            id=f"pair-{number}",
            prompt=(Message(role="user", content=f"question {number}"),),
            chosen="yes",
            rejected="no",
            source="human_pairs",
            origin=Origin(file="pairs.jsonl", line=number + 1),
            cluster=f"cluster-{number}",
        )
        for number in numbers
    ]
    return SplitTokens(pairs, refused, [TokenPair([0] * prompt, [1] * response, [2] * response) for _ in numbers])


def _params(**sections: Any) -> Params:
    evaluation = {"max_new_tokens": 20, "max_prompts": 2304}
    return Params.model_validate({"evaluation": evaluation, "finetune": {"methods": ["dpo"]}, **sections})


def _needs(params: Params, train: SplitTokens, validation: SplitTokens, test: SplitTokens) -> dict[str, DataNeed]:
    splits = {"train": train, "validation": validation, "test": test}
    return {need.key: need for need in data_needs(params, splits, CONTEXT)}


def _unmet(needs: dict[str, DataNeed]) -> set[str]:
    return {key for key, need in needs.items() if need.stops}


def test_too_few_test_prompts_are_told_with_what_to_change() -> None:
    """159 of 1,060 prompts are in the test split. 200 are 18.9 % of them; at 15 % it takes 41 / 0.15 = 274 more."""
    train, validation = _split(848), _split(53, first=848)
    needs = _needs(_params(), train, validation, _split(159, first=901))
    need = needs["gate.min_prompts"]
    assert (need.found, need.needed, need.stops) == (159, 200, True)
    assert "raise curation.split.test from 0.15 to 0.19" in need.text.lower()
    assert "add about 274 pairs" in need.text
    assert "lower gate.min_prompts to 159" in need.text
    assert _unmet(needs) == {"gate.min_prompts"}
    assert "win rate of about 0.58" in needs["gate.min_win_rate_low"].text  # 0.5 + 1.96 / 2 / sqrt(159)
    assert _unmet(_needs(_params(gate={"min_prompts": 159}), train, validation, _split(159))) == set()


def test_prompts_beyond_the_evaluations_own_limit_are_no_help() -> None:
    limited = _params(evaluation={"max_new_tokens": 20, "max_prompts": 150})
    need = _needs(limited, _split(800), _split(50), _split(300))["gate.min_prompts"]
    assert (need.found, need.stops) == (150, True)
    assert "Raise evaluation.max_prompts to 200." in need.text


def test_prompts_that_leave_no_room_are_not_judged() -> None:
    """Of 100 tokens 20 are for the answer: a prompt of 81 has no room."""
    assert prompt_limits(_params(), CONTEXT) == {"evaluation": 80}
    needs = _needs(_params(), _split(10), _split(10), _split(300, prompt=81))
    assert _unmet(needs) == {"evaluation.max_new_tokens", "gate.min_prompts"}
    assert "the cure of evaluation.max_new_tokens comes first" in needs["gate.min_prompts"].text


def test_pairs_over_a_sections_length_are_counted_under_it() -> None:
    """15 tokens a pair fit the context, and not a DPO of at most 12."""
    params = _params(finetune={"methods": ["dpo"], "dpo": {"max_length": 12}})
    assert pair_limits(params, CONTEXT) == {"reward": CONTEXT, "finetune.dpo": 12, "evaluation": CONTEXT}
    needs = _needs(params, _split(300), _split(300), _split(300))
    assert _unmet(needs) == {"finetune.dpo.max_length"}
    assert "0 of 300 validation pairs fit 12 tokens" in needs["finetune.dpo.max_length"].text


@pytest.mark.parametrize(("refused", "stops"), [(30, False), (31, True)])
def test_a_template_that_refuses_too_many(refused: int, stops: bool) -> None:
    """Of 300 and 301 pairs, one in ten may be refused."""
    params = _params(reference={"refused_threshold": 0.1})
    needs = _needs(params, _split(200 - 30, refused=refused), _split(50), _split(50))
    assert needs["reference.refused_threshold"].stops is stops


def test_a_held_out_judge_needs_a_cluster_of_its_own() -> None:
    params = _params(reward={"held_out_share": 0.2}, gate={"min_prompts": None})
    assert _unmet(_needs(params, _split(4), _split(50), _split(50))) == {"reward.held_out_share"}
    assert _unmet(_needs(params, _split(5), _split(50), _split(50))) == set()


def test_few_validation_pairs_make_figures_coarse_and_stop_nothing() -> None:
    """A share of 25 pairs is known to ±1.96 · 0.5 / 5 = 0.20. Only GRPO asks a judge in training."""
    needs = _needs(
        _params(finetune={"methods": ["grpo"]}, training={"max_completion_length": 20}),
        _split(300),
        _split(25),
        _split(300),
    )
    judge = needs["judge.calibration_pairs"]
    assert (judge.found, judge.needed, judge.stops) == (25, 256, False)
    assert "±0.20" in judge.text
    assert "judge.calibration_pairs" not in _needs(_params(), _split(300), _split(25), _split(300))
