from dataclasses import dataclass
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from plumbline.tasks.evaluation.measures.text import describe, distinct
from plumbline.tasks.params.evaluation import EvaluationParams
from tests.support.world import in_world

PARAMS = in_world(EvaluationParams, resamples=100)


@dataclass(frozen=True)
class Completion:
    text: str
    token_ids: tuple[int, ...]
    finished: bool


def test_describe_by_hand():
    """Words a b a | b | nothing: 4 words of 2 kinds, so distinct-1 = 2/4; pairs (a b), (b a): distinct-2 = 2/2."""
    completions = [Completion("a B a", (1, 2, 3), True), Completion("b", (4,), False), Completion("", (9, 9), True)]
    found = describe(completions, PARAMS, seed=0)
    assert found["tokens"]["value"] == 2.0
    assert found["words"]["value"] == 4 / 3
    assert found["finished"]["value"] == 2 / 3
    assert found["empty"] == 1
    assert found["distinct_1"] == 0.5
    assert found["distinct_2"] == 1.0


def test_repetition_lowers_distinct_2():
    """One pair of words ten times: (a a) nine times, 1/9."""
    assert distinct([list(pairwise(["a"] * 10))]) == 1 / 9


def test_no_words_have_no_diversity():
    assert distinct([[], []]) is None


@given(st.lists(st.lists(st.sampled_from("abc"), max_size=5), max_size=6))
def test_distinct_is_a_share(sentences):
    found = distinct(sentences)
    assert found is None or 0 < found <= 1
