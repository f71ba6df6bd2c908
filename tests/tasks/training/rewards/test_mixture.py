from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plumbline.data_contracts.errors import ModelError, RewardError
from plumbline.data_contracts.records import Message
from plumbline.tasks.models.judging import Completions, Reward
from plumbline.tasks.params.mixture import (
    BrevityTermParams,
    FunctionTermParams,
    MixtureParams,
    TermSettings,
)
from plumbline.tasks.training.rewards.mixture import Mixture, build_mixture
from plumbline.tasks.training.rewards.terms import Term

SETTINGS = {"function": "made.up:function", "clip": None}


def answers(*texts: str) -> Completions:
    prompts = [(Message(role="user", content=f"ask {row}"),) for row in range(len(texts))]
    return Completions(prompts, texts, [[1] * (len(text) + 1) for text in texts], [True] * len(texts))


def settings(name: str = "term", **changes: Any) -> TermSettings:
    return FunctionTermParams.model_validate({**SETTINGS, "name": name, **changes})


def numbers(completions: list[list[dict[str, str]]], **_: Any) -> list[float | None]:
    """What each completion says: a number, None, nan or inf."""
    texts = [turns[-1]["content"] for turns in completions]
    return [None if text == "None" else float(text) for text in texts]


def mixture(function: Callable[..., Any] = numbers, **changes: Any) -> Mixture:
    return Mixture([(settings(**changes), Term(function))])


def test_total_by_hand() -> None:
    """Term a, weight 2, calibrated on 1 and 3 (mean 2, deviation 1): 4 becomes 2, clipped to 1.5. Term b, weight -0.5,
    as it is: 10. Total 2 * 1.5 - 0.5 * 10 = -2; for 2 and 0 it is 2 * 0 - 0 = 0."""
    tens: Any = lambda completions, **_: [10.0 if turns[-1]["content"] == "4" else 0.0 for turns in completions]  # noqa: E731
    reward: Reward = Mixture(
        [
            (settings("a", weight=2, normalise="reference", clip=1.5), Term(numbers)),
            (settings("b", weight=-0.5), Term(tens)),
        ]
    )
    reward.calibrate(answers("1", "3"))
    scored = reward.score(answers("4", "2"))
    assert scored.total.tolist() == [-2.0, 0.0]
    assert scored.terms["a"].raw.tolist() == [4.0, 2.0]
    assert scored.terms["a"].normalised.tolist() == [1.5, 0.0]
    assert (scored.terms["a"].weight, scored.terms["b"].weight) == (2.0, -0.5)
    assert scored.fallbacks == {}


def test_terms_get_what_trl_gives_them() -> None:
    seen: dict[str, Any] = {}

    def look(**arguments: Any) -> list[float]:
        seen.update(arguments)
        return [0.0]

    mixture(look).score(answers("hi"))
    assert seen == {
        "prompts": [[{"role": "user", "content": "ask 0"}]],
        "completions": [[{"role": "assistant", "content": "hi"}]],
        "completion_ids": [[1, 1, 1]],
    }


@pytest.mark.parametrize("kind", ["array", "tensor", "mixed"])
def test_any_sequence_of_numbers_is_read(kind: str) -> None:
    import torch

    made: dict[str, Any] = {
        "array": np.array([1, 0], dtype=np.int64),
        "tensor": torch.tensor([1.0, 0.0]),
        "mixed": (True, np.float32(0)),
    }
    assert mixture(lambda **_: made[kind]).score(answers("a", "b")).total.tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("value", "reason"),
    [(math.nan, "NaN"), (None, "None"), (math.inf, "infinity"), ("good", "str"), ([1.0], "list"), ({}, "dict")],
)
def test_an_invalid_value_names_term_row_and_prompt(value: Any, reason: str) -> None:
    with pytest.raises(
        RewardError,
        match=rf"term: expected a finite number for each of 3 completions, found none for 1: {reason} at row 1 "
        r"\(prompt 'user: ask 1', completion 'b'\)\. Mend the term, or state in mixture\.terms",
    ):
        mixture(lambda **_: [0.0, value, 1.0]).score(answers("a", "b", "c"))


@pytest.mark.parametrize("value", [math.nan, None, math.inf])
def test_a_constant_stands_in_and_is_counted(value: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Mean 2 and deviation 1 on π_ref: the constant 5, in the term's own unit, becomes 3."""
    reward = mixture(numbers, normalise="reference", on_invalid="constant", constant=5.0)
    reward.calibrate(answers("1", "3", str(value)))
    with caplog.at_level(logging.INFO):
        scored = reward.score(answers("2", str(value)))
        reward.score(answers("2", str(value)))
    reason = {"None": "None", "nan": "NaN", "inf": "infinity"}[str(value)]
    assert scored.total.tolist() == [0.0, 3.0]
    assert np.isnan(scored.terms["term"].raw).tolist() == [False, True]
    assert scored.fallbacks == {f"term: {reason}": 1}
    levels = [record.levelno for record in caplog.records]
    assert levels == [logging.WARNING, logging.INFO], "one warning, then quieter"
    assert f"term: {reason} on 1 of 2 completions" in caplog.text


def test_a_dropped_term_leaves_the_others() -> None:
    reward = Mixture(
        [
            (settings("a", on_invalid="drop_term"), Term(numbers)),
            (settings("b", weight=0.5), Term(lambda **_: [2.0, 2.0])),
        ]
    )
    scored = reward.score(answers("3", "None"))
    assert scored.total.tolist() == [4.0, 1.0]
    assert np.isnan(scored.terms["a"].normalised).tolist() == [False, True]
    assert scored.fallbacks == {"a: None": 1}


def test_a_row_that_every_term_was_dropped_from_is_an_error() -> None:
    with pytest.raises(RewardError, match=r"at least one term .* found 1 of 2 without any, such as row 1 "):
        mixture(on_invalid="drop_term").score(answers("3", "None"))


@pytest.mark.parametrize("on_invalid", ["error", "constant", "drop_term"])
@pytest.mark.parametrize("answer", [[1.0], [1.0, 2.0, 3.0], []])
def test_a_wrong_count_is_always_an_error(on_invalid: str, answer: list[float]) -> None:
    changes = {"on_invalid": on_invalid} | ({"constant": 0.0} if on_invalid == "constant" else {})
    with pytest.raises(RewardError, match=rf"term: expected 2 values, one per completion, found {len(answer)}\."):
        mixture(lambda **_: answer, **changes).score(answers("a", "b"))


@pytest.mark.parametrize("answer", [None, 1.0])
def test_what_is_no_list_is_an_error(answer: Any) -> None:
    with pytest.raises(RewardError, match=rf"expected a list of 1 values.* found {type(answer).__name__}"):
        mixture(lambda **_: answer, on_invalid="drop_term").score(answers("a"))


def raises(error: BaseException) -> Callable[..., Any]:
    def function(**_: Any) -> Any:
        raise error

    return function


def test_a_term_that_raises_names_itself_and_the_batch() -> None:
    with pytest.raises(RewardError, match=r"term: expected 1 values, but it raised KeyError: 'x' .* row 0 \(prompt"):
        mixture(raises(KeyError("x"))).score(answers("a"))


@pytest.mark.parametrize("error", [KeyError("x"), TimeoutError("no answer within 1 s")])
def test_a_term_that_raises_falls_back_where_params_say_so(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    scored = mixture(raises(error), on_invalid="constant", constant=-1.0).score(answers("a", "b"))
    assert scored.total.tolist() == [-1.0, -1.0]
    assert scored.fallbacks == {f"term: raised {type(error).__name__}": 2}
    assert str(error) in caplog.text


def test_our_own_errors_and_interrupts_pass() -> None:
    """No fallback is meant for a broken reward model, and none for Ctrl-C."""
    for error in (ModelError("broken"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            mixture(raises(error), on_invalid="drop_term").score(answers("a"))


def test_reference_needs_calibration() -> None:
    reward = mixture(normalise="reference")
    with pytest.raises(RewardError, match=r"^term: Expected a mean and spread .* Call `calibrate`"):
        reward.score(answers("1", "2"))
    reward.calibrate(answers("1", "3"))
    assert reward.score(answers("3")).total.tolist() == [1.0]
    reward.calibrate(answers("10", "30"))
    assert reward.score(answers("30", "20")).total.tolist() == [1.0, 0.0], "the second measurement replaced the first"


def test_calibration_on_too_little() -> None:
    with pytest.raises(RewardError, match=r"at least 2 values on answers of π_ref .* found 1 on 2 answers"):
        mixture(normalise="reference", on_invalid="drop_term").calibrate(answers("1", "nan"))
    with pytest.raises(RewardError, match="found none for 1: NaN"):
        mixture(normalise="reference").calibrate(answers("1", "nan"))


def test_no_spread_on_the_reference_is_centred_and_counted() -> None:
    reward = mixture(normalise="reference")
    reward.calibrate(answers("0.1", "0.1", "0.1"))
    scored = reward.score(answers("0.1", "1.1"))
    assert scored.total == pytest.approx([0.0, 1.0])
    assert scored.fallbacks == {"term: no spread": 2}
    with pytest.raises(RewardError, match=r"term: expected values that differ, .* found 0\.1 for all of 3 answers"):
        mixture(normalise="reference", on_zero_spread="error").calibrate(answers("0.1", "0.1", "0.1"))


def test_running_uses_everything_met_so_far() -> None:
    """After 1 and 3: mean 2, deviation 1. After 5 and 7 too: mean 4, variance (9 + 1 + 1 + 9) / 4 = 5."""
    reward = mixture(normalise="running")
    assert reward.score(answers("1", "3")).total.tolist() == [-1.0, 1.0]
    assert reward.score(answers("5", "7")).total == pytest.approx([1 / 5**0.5, 3 / 5**0.5])


def test_running_takes_no_constant_into_its_moments() -> None:
    reward = mixture(normalise="running", on_invalid="constant", constant=100.0)
    assert reward.score(answers("1", "3", "nan")).total.tolist() == [-1.0, 1.0, 98.0]
    fresh = mixture(normalise="running", on_invalid="constant", constant=100.0)
    with pytest.raises(RewardError, match=r"term: Expected a mean and spread to normalise by \(running\)"):
        fresh.score(answers("nan"))


def test_a_resumed_reward_scores_the_same_bytes() -> None:
    def made() -> Mixture:
        return Mixture(
            [
                (settings("a", normalise="running"), Term(numbers)),
                (settings("b", normalise="reference"), Term(numbers)),
            ]
        )

    whole, resumed = made(), made()
    whole.calibrate(answers("0.1", "0.7"))
    whole.score(answers("0.3", "0.9", "0.2"))
    resumed.restore(json.loads(json.dumps(whole.state())))
    later = answers("0.4", "0.6")
    assert resumed.score(later).total.tobytes() == whole.score(later).total.tobytes()


def test_the_state_of_another_mixture_is_refused() -> None:
    state = mixture(weight=2).state()
    with pytest.raises(RewardError, match=r"Expected the state of the mixture \w{12} \(terms term\), found that of"):
        mixture().restore(state)
    with pytest.raises(RewardError, match="found that of None"):
        mixture().restore({})


def test_the_digest_names_settings_and_identity() -> None:
    def digest(identity: str = "x", **changes: Any) -> str:
        return Mixture([(settings(**changes), Term(numbers, identity))]).digest

    assert digest() == digest()
    others = [digest("y"), digest(weight=2), digest(normalise="running"), digest(on_invalid="drop_term")]
    assert len({digest(), *others}) == 5


def test_the_shortest_term_bounds_the_length() -> None:
    def bound(*lengths: int | None) -> int | None:
        return Mixture([(settings(f"t{n}"), Term(numbers, None, n)) for n in lengths]).max_length

    assert (bound(None), bound(64, None, 32)) == (None, 32)


def test_nothing_to_score() -> None:
    assert mixture().score(answers()).total.shape == (0,)


def test_built_from_params_with_a_real_reward_model(policy_folder: Path, tmp_path: Path) -> None:
    """Reward: the model's score; brevity: -0.5 for the second of two words."""
    from tests.tasks.training.rewards.test_scoring import build_reward

    model = build_reward(policy_folder, tmp_path, _tokenizer(policy_folder))
    params = MixtureParams(
        terms=(*MixtureParams().terms, BrevityTermParams(free_words=1, cost=0.5, weight=2.0)),
    )
    reward = build_mixture(params, model)
    assert reward.max_length == 64
    batch = answers("yes", "no no")
    scores = np.array(model.score(batch.prompts, batch.texts))
    reward.calibrate(batch)
    expected = (scores - scores.mean()) / scores.std() + [0.0, -1.0]
    assert reward.score(batch).total == pytest.approx(expected)
    with pytest.raises(RewardError, match=r"reward_model: expected a finite number .* None at row 0"):
        reward.score(answers("no " * 80))


def _tokenizer(folder: Path) -> Any:
    from plumbline.tasks.models.loading import load_tokenizer

    return load_tokenizer(folder)
