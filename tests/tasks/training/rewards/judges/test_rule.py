from __future__ import annotations

from typing import Any

import pytest

from plumbline.data_contracts.errors import JudgeError
from plumbline.data_contracts.records import Message
from plumbline.tasks.models.judging import Judge
from plumbline.tasks.params.mixture import BrevityTermParams, FunctionTermParams
from plumbline.tasks.training.rewards.judges.rule import RuleJudge
from plumbline.tasks.training.rewards.mixture import Mixture
from plumbline.tasks.training.rewards.terms import Term, build_term

PROMPT = (Message(role="user", content="hello"),)
BREVITY = BrevityTermParams(free_words=1, cost=0.1)


def judge(temperature: float | None = None) -> RuleJudge:
    return RuleJudge(Mixture([(BREVITY, build_term(BREVITY, None))]), temperature)


def test_candidates_are_ranked_by_the_rules() -> None:
    """Words beyond the first cost: groups of other sizes are told apart."""
    made: Judge = judge()
    verdicts = made.judge([PROMPT, PROMPT], [["a b c", "a", "a b"], ["a b", "b a"]])
    assert [found.ranks.tolist() for found in verdicts.judgements if found] == [[3, 1, 2], [1.5, 1.5]]
    assert verdicts.judgements[0] is not None
    assert verdicts.judgements[0].wins[1].tolist() == [1, 0.5, 1]
    assert (verdicts.counts["requests"], verdicts.counts["unusable"]) == (2, 0)
    assert (made.name, made.noise) == ("rule", None)


def test_a_temperature_makes_margins_count() -> None:
    wins = [
        found.wins[1, 0] for found in judge(0.1).judge([PROMPT] * 2, [["a b c", "a"], ["a b", "a"]]).judgements if found
    ]
    assert wins == pytest.approx([0.880797, 0.731059], abs=1e-6)  # sigmoid(2), sigmoid(1)


def function(answer: Any, **changes: Any) -> RuleJudge:
    params = FunctionTermParams(function="made.up:rule", **changes)
    return RuleJudge(Mixture([(params, Term(lambda **_: answer))]))


def test_a_rule_without_a_value_is_an_error_or_counted() -> None:
    with pytest.raises(JudgeError, match=r"judge rule: function: expected a finite number .* NaN at row 1"):
        function([1.0, float("nan")]).judge([PROMPT], [["a", "b"]])
    verdicts = function([1.0, None], on_invalid="constant", constant=0.0).judge([PROMPT], [["a", "b"]])
    assert verdicts.counts["function: None"] == 1


def test_the_digest_names_rules_and_temperature() -> None:
    assert len({judge().digest, judge(0.5).digest, function([1.0]).digest}) == 3


def test_nothing_to_judge() -> None:
    assert judge().judge([], []).judgements == []
