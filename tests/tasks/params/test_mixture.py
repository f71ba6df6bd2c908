from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from plumbline.tasks.params.judge import JudgeParams
from plumbline.tasks.params.mixture import MixtureParams, RewardModelTermParams


def test_the_default_is_the_reward_model_normalised_on_the_reference() -> None:
    assert MixtureParams().terms == (RewardModelTermParams(weight=1.0, normalise="reference"),)


def test_terms_are_told_apart_by_kind() -> None:
    params = MixtureParams.model_validate(
        {"terms": [{"kind": "brevity", "cost": 0.1}, {"kind": "function", "function": "a.b:c", "name": "mine"}]}
    )
    assert [term.title for term in params.terms] == ["brevity", "mine"]
    assert MixtureParams.model_validate(params.model_dump(mode="json")) == params


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ([], "at least 1 item"),
        ([{"kind": "charm"}], "does not match any of the expected tags"),
        ([{"kind": "brevity", "costs": 1}], "Extra inputs are not permitted"),
        ([{"kind": "brevity"}, {"kind": "brevity"}], "more than one is named brevity. Give each a `name`"),
        ([{"kind": "brevity", "weight": 0}], "every weight is 0"),
        ([{"kind": "brevity", "weight": float("nan")}], "finite number"),
        ([{"kind": "brevity", "clip": 0}], "greater than 0"),
        ([{"kind": "brevity", "on_invalid": "constant"}], "`constant` belongs to on_invalid: constant"),
        ([{"kind": "brevity", "constant": 0.0}], "`constant` belongs to on_invalid: constant"),
        ([{"kind": "compliance"}], "must and must_not are both empty"),
        ([{"kind": "compliance", "must": ["("]}], "is no regular expression: missing"),
        ([{"kind": "safety", "asks": []}], "nothing is ever to be refused"),
        ([{"kind": "safety", "refusals": ["[a"]}], "is no regular expression: unterminated"),
        ([{"kind": "length_penalty", "limit": 4, "buffer": 5}], r"buffer \(5\) exceeds limit \(4\)"),
        ([{"kind": "function", "function": "os.system"}], "should match pattern"),
        ([{"kind": "function", "function": "a:b;c"}], "should match pattern"),
        ([{"kind": "function", "function": "a:b", "timeout_s": 0}], "greater than 0"),
    ],
)
def test_wrong_terms_are_refused(terms: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MixtureParams.model_validate({"terms": terms})


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"rule": {"terms": [{"kind": "reward_model"}]}}, "cannot be given. Take judge.kind reward_model"),
        ({"rule": {"terms": [{"kind": "length_penalty"}]}}, "cannot be given"),
        ({"rule": {"terms": [{"kind": "brevity", "normalise": "running"}]}}, "Set normalise: none"),
        ({"rule": {"terms": [{"kind": "brevity"}, {"kind": "brevity"}]}}, "more than one is named brevity"),
        ({"gains": {"schedule": [0.0, 1.0]}}, "must never rise"),
        ({"gains": {"schedule": [1.0, 1.0]}}, "end below where it starts"),
        ({"gains": {"noise": 0.5}}, "less than 0.5"),
        ({"kind": "oracle"}, "'rule', 'reward_model' or 'llm'"),
        ({"calibration_pairs": 0}, "greater than or equal to 8"),
    ],
)
def test_wrong_judges_are_refused(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        JudgeParams.model_validate(section)


def test_params_are_read_without_torch() -> None:
    """A command line composes all sections before any work: torch would cost it seconds."""
    code = "import sys, plumbline.tasks.params.judge, plumbline.tasks.params.mixture; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
