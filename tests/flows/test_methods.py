"""Every method, and a stack of three, through `plumbline retrain` on the tiny world: only what follows is redone."""

from __future__ import annotations

from typing import Any

import pytest

from plumbline.data_contracts.artifact import read_artifact
from tests.flows.conftest import Trained, Workspace

pytestmark = pytest.mark.long

_SHORT = {"logging_steps": 1, "eval_steps": 2, "per_device_eval_batch_size": 32}
_MEETING = {"prompts": 8, "max_new_tokens": 8}
_OFFLINE = {**_SHORT, "num_train_epochs": 0.1, "validation": {**_MEETING, "pairs": 16}}
_TINY: dict[str, dict[str, Any]] = {
    "sft": _OFFLINE,
    "dpo": _OFFLINE,
    "kto": _OFFLINE,
    "orpo": _OFFLINE,
    "grpo": {
        **_SHORT,
        "num_train_epochs": 0.03,
        "per_device_train_batch_size": 16,
        "num_generations": 4,
        "max_completion_length": 8,
        "validation": _MEETING,
    },
    "ppo": {
        **_SHORT,
        "total_episodes": 32,
        "episodes_per_update": 16,
        "per_device_train_batch_size": 8,
        "num_mini_batches": 2,
        "max_completion_length": 8,
        "calibration_prompts": 16,
        "validation": {**_MEETING, "pairs": 16},
    },
}
# The tiny world's reward model hardly agrees with anybody: of its answers only the order counts.
LENIENT = ("judge.min_kappa=-1", "judge.max_position_bias=1", "judge.gains.kind=dcg")
IMPLIES_A_REWARD = {"dpo", "kto", "ppo"}


def settings(*methods: str) -> list[str]:
    """`--set` for these methods, each cut down to a few steps."""
    chosen = [f"finetune.methods=[{','.join(methods)}]", *LENIENT]
    for method in methods:
        chosen += _flat(f"finetune.{method}", _TINY[method])
    return [part for setting in chosen for part in ("--set", setting)]


def _flat(prefix: str, section: dict[str, Any]) -> list[str]:
    found: list[str] = []
    for name, value in section.items():
        found += _flat(f"{prefix}.{name}", value) if isinstance(value, dict) else [f"{prefix}.{name}={value}"]
    return found


@pytest.fixture(scope="module")
def workspace(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """One copy for all methods: each takes the place of the one before."""
    return trained.copy(tmp_path_factory.mktemp("methods") / "copy")


@pytest.mark.parametrize("methods", [("kto",), ("orpo",), ("ppo",), ("sft", "dpo", "ppo"), ("grpo",)], ids="+".join)
def test_a_method_goes_all_the_way_to_a_registered_version(workspace: Workspace, methods: tuple[str, ...]) -> None:
    before = workspace.hashes()
    done = workspace.run("retrain", *settings(*methods), "--json")
    assert done.code == 0, done.err
    assert done.redone == ["finetune", "evaluate", "gate"]
    changed = {path for path, digest in workspace.hashes().items() if digest != before[path]}
    assert {"models/policy", "reports/evaluation"} <= changed <= {"models/policy", "reports/evaluation", "reports/gate"}

    facts = read_artifact(workspace.root / "models/policy").facts
    assert facts["method"] == "+".join(methods)
    assert facts["too_long"]["train"] >= 0
    assert facts["tokens"]["seen"] > 0
    assert (facts["tokens"]["generated"] > 0) is bool({"grpo", "ppo"} & set(methods))
    assert (facts["implied_beta"] is not None) is (methods[-1] in IMPLIES_A_REWARD)
    assert (done.payload["metrics"]["calibration"]["ece"] is not None) is (methods[-1] in IMPLIES_A_REWARD)
    if len(methods) > 1:
        assert list(facts["stages"]) == ["1-sft", "2-dpo", "3-ppo"]
        for count in ("seen", "generated"):
            assert facts["tokens"][count] == sum(each["tokens"][count] for each in facts["stages"].values())
    steps = [row["step"] for row in workspace.lines("models/policy/training.jsonl")]
    assert steps == sorted(set(steps)) and steps

    assert done.payload["gate"]["passed"] is True
    assert done.payload["alias_uris"]
    audited = workspace.run("audit", done.payload["model_uri"], "--json")
    assert (audited.code, audited.payload["problems"]) == (0, [])

    people = workspace.run("retrain")
    assert people.code == 0, people.err
    assert "Beyond the context, set aside" in people.out
    assert "reused" in people.out


def test_judged_anew_a_policy_has_the_same_bytes(workspace: Workspace, copy: Workspace) -> None:
    """A judge is timed and counted, and none of that is in the policy's folder or its manifest."""
    hashes = []
    for each in (workspace, copy):
        done = each.run("retrain", *settings("grpo"), "--json")
        assert done.code == 0, done.err
        hashes.append(each.hashes()["models/policy"])
    assert (copy.root / "models/policy/judge.json").is_file()
    assert hashes[0] == hashes[1]
