from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
import pytest

from plumbline.data_contracts.errors import JudgeError, ModelError
from plumbline.data_contracts.records import CuratedPair, Message, Origin
from plumbline.tasks.data.feedback import SOURCES
from plumbline.tasks.evaluation.comparison.self_play import Played, Side, decide, meet, play
from plumbline.tasks.models.judging import Judgement, Prompt, Verdicts
from plumbline.tasks.params.comparison import SelfPlayParams
from tests.support.world import in_world
from tests.tasks.models.tiny_llama import WORDS, build_model, build_tokenizer

PARAMS = in_world(SelfPlayParams, prompts=48, max_new_tokens=80)
FIRST, SECOND, TIE = (Judgement(np.array([1.0, 2.0]), np.array([[0.5, p], [1 - p, 0.5]])) for p in (0.8, 0.3, 0.5))


@dataclass
class LengthJudge:
    """The longer answer wins; it has no opinion where both start with the same letter. It keeps what it saw."""

    name: str = "length"
    digest: str = "0123456789abcdef"
    noise: float | None = None
    seen: Sequence[Sequence[str]] = ()

    def judge(self, prompts: Sequence[Prompt], groups: Sequence[Sequence[str]]) -> Verdicts:
        self.seen = groups
        return Verdicts([None if a[0] == b[0] else _longer(a, b) for a, b in groups], {})


def _longer(one: str, other: str) -> Judgement:
    return TIE if len(one) == len(other) else FIRST if len(one) > len(other) else SECOND


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> tuple[Side, Side]:
    from plumbline.tasks.models.chat import set_default_template
    from plumbline.tasks.models.loading import save_model

    found = []
    for seed in (1, 2):
        tokenizer = build_tokenizer()
        set_default_template(tokenizer)
        folder = tmp_path_factory.mktemp(f"side{seed}")
        model = build_model(len(tokenizer), seed=seed)
        model.lm_head.weight.data.mul_(0.02)  # nearly uniform, so that about half of the answers end
        save_model(model, tokenizer, folder)
        found.append(Side(folder, f"digest-{seed}"))
    return found[0], found[1]


def train() -> list[CuratedPair]:
    """64 pairs on 60 prompts."""
    prompts = [f"{a} {b}" for a in WORDS[:10] for b in WORDS[:6]]
    return [
        CuratedPair(
            id=str(number),
            prompt=(Message(role="system", content="please"), Message(role="user", content=prompts[number % 60])),
            chosen="yes",
            rejected="no",
            source="test",
            origin=Origin(file="test", line=number + 1),
            cluster=str(number),
        )
        for number in range(64)
    ]


@pytest.fixture(scope="module")
def judge() -> LengthJudge:
    return LengthJudge()


@pytest.fixture(scope="module")
def played(sides: tuple[Side, Side], judge: LengthJudge) -> Played:
    return play(*sides, train(), judge, PARAMS, seed=7)


def test_every_prompt_is_accounted_for(played: Played) -> None:
    counts = played.counts
    parts = ("pairs", "ties", "unusable", "same", "empty", "unfinished")
    assert counts["prompts"] == 48 == sum(counts[name] for name in parts)
    assert counts["pairs"] == len(played.rows) == counts["won_by_policy"] + counts["won_by_reference"]
    assert counts["won_by_policy"] > 0
    assert counts["won_by_reference"] > 0
    assert counts["unfinished"] > 0


def test_a_row_says_who_judged_whom(played: Played) -> None:
    for row in played.rows:
        assert len(row["chosen"]) > len(row["rejected"])
        assert row["annotator"] == "length:0123456789abcdef"
        assert row["meta"]["judge"] == {"name": "length", "digest": "0123456789abcdef"}
        assert (row["meta"]["policy"], row["meta"]["reference"], row["meta"]["seed"]) == ("digest-1", "digest-2", 7)
    assert {row["meta"]["chosen_from"] for row in played.rows} == {"policy", "reference"}


def test_the_judge_sees_positions_as_they_are_recorded(played: Played, judge: LengthJudge) -> None:
    shown = {frozenset(group): group[0] for group in judge.seen}
    for row in played.rows:
        chosen_first = row["meta"]["chosen_from"] == row["meta"]["shown_first"]
        first = row["chosen"] if chosen_first else row["rejected"]
        assert shown[frozenset((row["chosen"], row["rejected"]))] == first
    assert {row["meta"]["shown_first"] for row in played.rows} == {"policy", "reference"}


@pytest.mark.slow
def test_the_same_inputs_give_the_same_rows_and_another_policy_meets_other_prompts(
    played: Played, sides: tuple[Side, Side], judge: LengthJudge
) -> None:
    assert play(*sides, train(), judge, PARAMS, seed=7).rows == played.rows
    other = play(Side(sides[0].folder, "digest-3"), sides[1], train(), judge, PARAMS, seed=7)
    assert [row["prompt"] for row in other.rows] != [row["prompt"] for row in played.rows]


def test_the_reader_of_judged_pairs_takes_every_row(played: Played, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in played.rows))
    read = [row.outcome for row in SOURCES["judged_pairs"](path, "pairs.jsonl")]
    assert [(pair.chosen, pair.annotator, pair.source, pair.metadata["chosen_from"]) for pair in read] == [
        (row["chosen"], row["annotator"], "judged_pairs", row["meta"]["chosen_from"]) for row in played.rows
    ]


@pytest.mark.parametrize(
    ("judgement", "shown", "margin", "winner"),
    [
        (FIRST, ("policy", "reference"), 0.0, "policy"),
        (FIRST, ("reference", "policy"), 0.0, "reference"),
        (SECOND, ("policy", "reference"), 0.0, "reference"),
        (SECOND, ("policy", "reference"), 0.25, "ties"),  # P = 0.3 lies within ½ ± 0.25
        (FIRST, ("policy", "reference"), 0.25, "policy"),  # P = 0.8 does not
        (TIE, ("policy", "reference"), 0.0, "ties"),
        (None, ("policy", "reference"), 0.0, "unusable"),
    ],
)
def test_who_wins(judgement: Judgement | None, shown: tuple[str, str], margin: float, winner: str) -> None:
    assert decide(judgement, shown, margin) == winner


def test_a_prompt_left_out_moves_no_other_position() -> None:
    prompts = [(Message(role="user", content=str(number)),) for number in range(20)]
    texts: list[tuple[str, str] | None] = [("a", "b")] * 20
    whole = meet(prompts, texts, random.Random(1))
    fewer = meet(prompts, [None, *texts[1:]], random.Random(1))
    assert [each.shown for each in fewer] == [each.shown for each in whole][1:]


@pytest.mark.slow
def test_a_judge_that_sees_only_ties_leaves_nothing(sides: tuple[Side, Side]) -> None:
    class Undecided(LengthJudge):
        def judge(self, prompts: Sequence[Prompt], groups: Sequence[Sequence[str]]) -> Verdicts:
            return Verdicts([TIE] * len(groups), {})

    with pytest.raises(JudgeError, match=r"expected a judged pair or more from 48 prompts, found none: .*'ties'"):
        play(*sides, train(), Undecided(), PARAMS, seed=7)


def test_prompts_without_room_are_refused(sides: tuple[Side, Side], judge: LengthJudge) -> None:
    with pytest.raises(ModelError, match=r"none so short\. Lower self_play\.max_new_tokens"):
        play(*sides, train(), judge, in_world(SelfPlayParams, max_new_tokens=127), seed=7)
