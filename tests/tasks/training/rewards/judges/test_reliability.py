from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from plumbline.data_contracts.errors import JudgeError
from plumbline.data_contracts.records import CuratedPair, Message, Origin
from plumbline.tasks.models.judging import Judge, Judgement, Prompt, Verdicts
from plumbline.tasks.params.judge import JudgeParams
from plumbline.tasks.statistics import wilson_interval
from plumbline.tasks.training.rewards.judges.pairwise import from_scores
from plumbline.tasks.training.rewards.judges.reliability import MeasuredJudge, calibrate, require_reliable

FULL = JudgeParams()


def make_pairs(count: int, clusters: int | None = None) -> list[CuratedPair]:
    return [
        CuratedPair(
            id=str(row),
            prompt=(Message(role="user", content=f"ask {row}"),),
            chosen=f"good {row}",
            rejected=f"bad {row}",
            source="test",
            annotator=f"ann-{row % 2}" if row % 5 else None,
            origin=Origin(file="made", line=row + 1),
            cluster=str(row % (clusters or count)),
        )
        for row in range(count)
    ]


@dataclass
class Scripted:
    """A judge whose preference for the first candidate (1, ½, 0; None: no answer) a function of the question gives."""

    answer: Callable[[str, str], float | None]
    extra: Mapping[str, float] = field(default_factory=dict)
    name: str = "scripted"
    digest: str = "d"
    noise: float | None = None

    def judge(self, prompts: Sequence[Prompt], groups: Sequence[Sequence[str]]) -> Verdicts:
        answers = [self.answer(first, second) for first, second in groups]
        judgements: list[Judgement | None] = [
            None if answer is None else from_scores([answer, 1 - answer]) for answer in answers
        ]
        return Verdicts(judgements, {"unusable": float(answers.count(None)), **self.extra})


def row(text: str) -> int:
    return int(text.split()[1])


def right_on(share: float, count: int) -> Callable[[str, str], float]:
    """Right, in both orders, on the first `share` of the pairs."""
    return lambda first, second: float(first.startswith("good") == (row(first) < share * count))


def measure(judge: Judge, pairs: Sequence[CuratedPair]) -> dict[str, Any]:
    report = calibrate(judge, pairs, len(pairs), seed=0)
    assert json.loads(json.dumps(report)) == report
    return report


def test_a_judge_that_is_right_on_four_of_five() -> None:
    """40 pairs, 32 right in both orders: accuracy 0.8. People say "first" on half of the 80 questions and so does the
    judge, so chance agreement is ½ and κ = (0.8 - 0.5) / 0.5 = 0.6. Interval: Wilson at 32 of 40."""
    report = measure(Scripted(right_on(0.8, 40)), make_pairs(40))
    assert report["kappa"] == pytest.approx(0.6)
    low, high = wilson_interval(32, 40)
    assert report["accuracy"] == {"n": 40, "value": pytest.approx(0.8), "low": low, "high": high}
    assert report["noise"] == {k: pytest.approx(v) for k, v in {"value": 0.2, "low": 1 - high, "high": 1 - low}.items()}
    assert report["position"] == {"first": 0.5, "bias": 0, "flips": 0}
    assert (report["pairs"], report["answers"], report["unusable"], report["ties"]) == (40, 80, 0, 0)
    require_reliable(report, FULL)


def test_a_judge_that_always_takes_the_first() -> None:
    """Right on one order of each pair: accuracy ½, κ 0, noise ½, all answers for the first, every pair flips."""
    report = measure(Scripted(lambda first, second: 1.0), make_pairs(20))
    assert (report["kappa"], report["accuracy"]["value"], report["noise"]["value"]) == (0, 0.5, 0.5)
    assert report["position"] == {"first": 1, "bias": 1, "flips": 1}
    with pytest.raises(JudgeError, match=r"kappa 0\.000 below judge\.min_kappa 0\.2; position bias 1\.000 above"):
        require_reliable(report, FULL)
    with pytest.raises(JudgeError, match=r"kappa 0\.19998 below judge\.min_kappa 0\.2[;\s]"):
        require_reliable({**report, "kappa": 0.19998}, FULL)


def test_a_judge_that_leans_to_the_first() -> None:
    """Right on 10 of 20 pairs, the first on the others: answers for the first are 10 (one order of each right pair)
    and 20 (both orders of the others) of 40, so ¾; half of the pairs flip."""
    lean: Any = lambda first, second: float(first.startswith("good")) if row(first) < 10 else 1.0  # noqa: E731
    report = measure(Scripted(lean), make_pairs(20))
    assert report["position"] == {"first": 0.75, "bias": 0.5, "flips": 0.5}
    assert report["accuracy"]["value"] == 0.75


def test_a_judge_that_is_always_wrong_is_no_better_than_noise() -> None:
    report = measure(Scripted(right_on(0.0, 20)), make_pairs(20))
    assert report["kappa"] == pytest.approx(-1)
    assert report["accuracy"]["value"] == 0
    assert report["noise"]["value"] == report["noise"]["high"] == 0.5


def test_ties_count_half_and_lower_kappa() -> None:
    """10 of 20 pairs right, 10 tied: accuracy (10 + 5) / 20. Of 40 answers 20 agree outright; chance agreement is
    ½ · ¼ + ½ · ¼ = ¼ ("first" and "second" a quarter each), so κ = (½ - ¼) / ¾ = 1/3."""
    report = measure(Scripted(lambda a, b: float(a.startswith("good")) if row(a) < 10 else 0.5), make_pairs(20))
    assert report["accuracy"]["value"] == 0.75
    assert report["ties"] == 0.5
    assert report["kappa"] == pytest.approx(1 / 3)
    assert report["position"]["flips"] == 0


def test_unusable_answers_are_counted_and_never_guessed() -> None:
    """Pairs 0 to 4 have no answer in either order, 5 to 9 only with the chosen one first: 15 of 40 are missing.
    The rest is right."""

    def answer(first: str, second: str) -> float | None:
        if row(first) < 5 or (row(first) < 10 and first.startswith("bad")):
            return None
        return float(first.startswith("good"))

    report = measure(Scripted(answer), make_pairs(20))
    assert (report["unusable"], report["answers"]) == (0.375, 25)
    assert (report["accuracy"]["n"], report["accuracy"]["value"], report["kappa"]) == (15, 1, 1)
    assert report["position"]["flips"] == 0, "of the ten pairs with both answers"
    assert report["counts"]["unusable"] == 15
    with pytest.raises(JudgeError, match=r"unusable answers 0\.375 above judge\.max_unusable 0\.1"):
        require_reliable(report, FULL)


def test_no_usable_answer_at_all() -> None:
    report = measure(Scripted(lambda first, second: None), make_pairs(10))
    assert (report["kappa"], report["noise"]["value"], report["position"]["bias"], report["ties"]) == (None,) * 4
    with pytest.raises(JudgeError, match="no usable answer to measure agreement by"):
        require_reliable(report, JudgeParams(max_unusable=1))


def test_pairs_of_a_cluster_are_not_independent() -> None:
    """40 pairs in 8 clusters that are right or wrong together are worth 8."""
    together: Any = lambda first, second: float(first.startswith("good") == (row(first) % 8 < 6))  # noqa: E731
    alone = measure(Scripted(right_on(0.75, 40)), make_pairs(40))["accuracy"]
    report = measure(Scripted(together), make_pairs(40, clusters=8))["accuracy"]
    assert report["value"] == alone["value"] == 0.75
    assert (report["low"], report["high"]) == pytest.approx(wilson_interval(6, 8))


def test_a_judge_that_shows_positions_itself_is_asked_for_what_it_saw() -> None:
    counts = {"decided": 30.0, "first_shown_won": 24.0, "swapped_pairs": 10.0, "order_conflicts": 4.0}
    report = measure(Scripted(right_on(0.8, 20), counts), make_pairs(20))
    assert report["position"] == {"first": 0.8, "bias": pytest.approx(0.6), "flips": 0.4}
    none = measure(Scripted(right_on(0.8, 20), dict.fromkeys(counts, 0.0)), make_pairs(20))
    assert none["position"] == {"first": None, "bias": None, "flips": None}
    require_reliable(none, FULL)


def test_annotators_apart() -> None:
    """Of pairs 0 to 9, 0 and 5 have no annotator; ann-1 has the other odd ones, ann-0 the even ones."""
    report = measure(Scripted(lambda a, b: float(a.startswith("good") == bool(row(a) % 2))), make_pairs(10))
    assert report["by_annotator"] == {"ann-0": {"n": 4, "accuracy": 0}, "ann-1": {"n": 4, "accuracy": 1}}


def test_pairs_are_drawn_by_the_seed() -> None:
    asked: list[str] = []

    def note(first: str, second: str) -> float:
        asked.append(first)
        return 1.0

    pairs = make_pairs(30)
    for seed in (1, 1, 2):
        calibrate(Scripted(note), pairs, 8, seed)
    assert asked[:16] == asked[16:32] != asked[32:]
    assert asked[:8] == [pairs[number].chosen for number in sorted(random.Random(1).sample(range(30), 8))]


def test_no_pairs_and_a_judge_that_loses_count() -> None:
    with pytest.raises(JudgeError, match="Expected held-out labelled pairs"):
        calibrate(Scripted(lambda a, b: 1.0), [], 10, 0)

    class Short(Scripted):
        def judge(self, prompts: Any, groups: Any) -> Verdicts:
            return Verdicts([None], {})

    with pytest.raises(JudgeError, match=r"Expected 20 judgements of the judge scripted, .* found 1\."):
        calibrate(Short(lambda a, b: 1.0), make_pairs(10), 10, 0)


def test_a_measured_judge_is_another_one() -> None:
    inner = Scripted(right_on(1, 2))
    judge: Judge = MeasuredJudge(inner, 0.2)
    assert (judge.name, judge.noise) == ("scripted", 0.2)
    assert judge.digest != MeasuredJudge(inner, 0.3).digest != inner.digest
    found = judge.judge([make_pairs(1)[0].prompt], [["good 0", "bad 0"]]).judgements[0]
    assert found is not None
    assert found.ranks.tolist() == [1, 2]
