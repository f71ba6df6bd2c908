"""The exit code of every kind of error is the documented one, and no kind is left without."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator

import pytest

from plumbline.data_contracts import errors
from plumbline.data_contracts.errors import PlumblineError

CHECK_SAID_NO = {"CheckFailed", "ContractViolation", "SignatureError", "JudgeRefused", "RegistryRefused"}
WRONG_USAGE = {"UsageError", "UnreadableFile", "ParamsError", "WorkspaceBusy", "UnknownModelError"}
FAILED = {
    "PlumblineError",
    "ArtifactError",
    "ModelError",
    "RewardError",
    "JudgeError",
    "VersioningError",
    "InputsChangedError",
    "OperationsError",
    "SigningError",
    "RegistryError",
    "StageError",
    "Interrupted",
    "UnexpectedError",
}


def kinds(of: type[PlumblineError] = PlumblineError) -> Iterator[type[PlumblineError]]:
    yield of
    for below in of.__subclasses__():
        if below.__module__ == errors.__name__:
            yield from kinds(below)


@pytest.mark.parametrize("kind", list(kinds()), ids=lambda kind: kind.__name__)
def test_a_refusal_by_a_check_is_1_wrong_usage_2_and_a_failure_3(kind: type[PlumblineError]) -> None:
    expected = {**dict.fromkeys(CHECK_SAID_NO, 1), **dict.fromkeys(WRONG_USAGE, 2), **dict.fromkeys(FAILED, 3)}
    assert kind.exit_code == expected[kind.__name__]
    line = re.search(rf"[├└│─ ]*{kind.__name__} +exit (\d)", errors.__doc__ or "")
    assert line is not None, "the tree does not show it"
    assert int(line[1]) == kind.exit_code


def test_a_stage_hands_its_kind_over_to_the_run() -> None:
    assert all(type(pickle.loads(pickle.dumps(kind("no")))) is kind for kind in kinds())
