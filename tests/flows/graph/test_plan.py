"""The plan of a run: what would run and why, and that looking changes nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plumbline.flows.graph.stages import STAGES
from tests.flows.conftest import Done, Trained, Workspace, write_hh_pairs

AFTER_CURATION = ["lengths", "reward", "finetune", "evaluate", "gate"]


def _plan(workspace: Workspace, *settings: str) -> dict[str, Any]:
    done = _dry_run(workspace, *settings)
    assert done.code == 0, done.err
    return done.payload


def _dry_run(workspace: Workspace, *settings: str) -> Done:
    return workspace.run("retrain", "--dry-run", "--json", *(part for one in settings for part in ("--set", one)))


def _actions(plan: dict[str, Any], *actions: str) -> list[str]:
    return [stage["stage"] for stage in plan["stages"] if stage["action"] in actions]


def _stage(plan: dict[str, Any], name: str) -> dict[str, Any]:
    return next(stage for stage in plan["stages"] if stage["stage"] == name)


def _everything(root: Path) -> dict[str, tuple[int, str]]:
    """Every file with its time and content, state, locks and databases included."""
    return {
        path.relative_to(root).as_posix(): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


def test_looking_changes_nothing_on_disk(copy: Workspace, tmp_path: Path) -> None:
    """A process of its own, on a copy, whose remote and memory DVC would settle; with new params and new feedback."""
    feedback = write_hh_pairs(tmp_path / "own.jsonl", 3, seed=9)
    before = _everything(copy.root)
    settings = ("--set", "gate.min_prompts=17", "--set", f"feedback.path={feedback}")
    done = Workspace(copy.root, "http://127.0.0.1:9/api").shell("plumbline", "retrain", "--dry-run", *settings)
    assert done.code == 0, done.err
    assert "gate.min_prompts: 16 -> 17" in done.out
    assert "3 rows of human_pairs, to be ingested" in done.out
    assert _everything(copy.root) == before


def test_where_nothing_changed_nothing_would_run(trained: Trained) -> None:
    plan = _plan(trained)
    assert _actions(plan, "reuse") == list(STAGES)
    assert plan["registered"] == "models:/assistant/1"
    assert (plan["minutes"], plan["minutes_not_known_of"], plan["disk"]["added_bytes"]) == (0, [], 0)
    assert "Nothing to do" in trained.run("retrain", "--dry-run").out


def test_a_changed_param_is_named_with_both_values_and_what_follows(trained: Trained) -> None:
    plan = _plan(trained, "finetune.dpo.beta=0.3")
    assert _actions(plan, "run") == ["finetune"]
    assert _actions(plan, "follow") == ["evaluate", "gate"]
    finetune = _stage(plan, "finetune")
    assert finetune["params"] == [{"key": "finetune.dpo.beta", "old": 0.25, "new": 0.3}]
    assert finetune["why"] == ["finetune.dpo.beta: 0.25 -> 0.3"]
    assert _stage(plan, "evaluate")["inputs"] == [{"path": "models/policy", "change": "made anew by finetune"}]
    assert plan["params_changed"] == ["finetune.dpo.beta: not set -> 0.3"]
    assert plan["registered"] is None
    taken = {stage["name"]: stage["seconds"] for stage in trained.first.payload["stages"]}
    seconds = sum(taken[name] for name in ("finetune", "evaluate", "gate"))
    assert plan["minutes"] == pytest.approx(seconds / 60, abs=0.02)
    assert plan["minutes_not_known_of"] == []
    assert plan["records_at_last_run"]["read"] == 534
    assert plan["disk"]["added_bytes"] >= 3 * finetune["kept_bytes"] > 0
    assert finetune["working_bytes"] > 0
    assert _stage(plan, "reward")["working_bytes"] == 0


@pytest.mark.parametrize(
    ("setting", "run", "follow"),
    [
        ("gate.min_prompts=17", ["gate"], []),
        ("curation.contradictions.resolve=keep_latest", ["curate"], AFTER_CURATION),
        ("reference.sft.data=curated", ["reference"], ["lengths", "finetune", "evaluate", "gate"]),
        ("services.prefect_port=4321", [], []),
    ],
)
def test_a_changed_param_concerns_what_depends_on_it_and_nothing_else(
    trained: Trained, setting: str, run: list[str], follow: list[str]
) -> None:
    plan = _plan(trained, setting)
    assert _actions(plan, "run") == run
    assert _actions(plan, "follow") == follow
    assert _actions(plan, "reuse") == [name for name in STAGES if name not in (*run, *follow)]


def test_new_feedback_is_counted_before_it_is_taken_in(trained: Trained, tmp_path: Path) -> None:
    """24 rows lie in the store already; of another file three rows come beside them."""
    known, new = (write_hh_pairs(tmp_path / f"{seed}.jsonl", count, seed=seed) for seed, count in ((1, 24), (9, 3)))
    plan = _plan(trained, f"feedback.path={new}")
    (batch,) = plan["to_ingest"]
    assert (batch["rows"], batch["new"]) == (3, True)
    assert f"input data/raw: takes in 3 rows of {new}" in _stage(plan, "validate")["why"]
    assert _actions(plan, "follow") == ["curate", *AFTER_CURATION]
    assert [batch["new"] for batch in _plan(trained, f"feedback.path={known}")["to_ingest"]] == [False]


def _gone(root: Path) -> None:
    import shutil

    shutil.rmtree(root / "models/policy")


def _ran_before(root: Path) -> None:
    """The threshold of a run before is in the file again, and DVC's cache has its result."""
    workspace = Workspace(root, "http://127.0.0.1:9/api")
    workspace.set_params("gate.min_prompts=17")
    from plumbline.flows.graph.params_stage import settle_resolved
    from plumbline.tasks.params.layers import load_params
    from plumbline.tasks.pipeline.stage import execute
    from plumbline.tasks.storage.versioning.workspace import Versions

    settle_resolved(root, load_params(root)[0])
    versions = Versions(root)
    versions.require_clean_inputs("gate")
    execute(STAGES["gate"], root, load_params(root)[0])
    versions.commit_stage("gate")
    workspace.set_params("gate.min_prompts=16")


@pytest.mark.parametrize(("change", "restored"), [(_gone, ["finetune"]), (_ran_before, ["gate"])])
def test_what_dvc_has_in_its_cache_would_not_run(
    copy: Workspace, change: Callable[[Path], None], restored: list[str]
) -> None:
    change(copy.root)
    plan = _plan(copy)
    assert _actions(plan, "restore") == restored
    assert _actions(plan, "run", "follow") == []


def test_an_output_edited_by_hand_is_refused_as_by_the_run(copy: Workspace) -> None:
    train = copy.root / "data/curated/train.jsonl"
    train.chmod(0o644)
    train.write_bytes(train.read_bytes() + b"\n")
    done = _dry_run(copy)
    assert done.code == 3
    assert "dvc checkout data/curated" in done.err


def test_where_nothing_ran_everything_would_and_no_time_is_known(fresh: Callable[[str], Workspace]) -> None:
    plan = _plan(fresh("planned"))
    assert _actions(plan, "run") == list(STAGES)
    assert [stage["why"] for stage in plan["stages"]] == [["never run"]] * len(STAGES)
    assert plan["minutes_not_known_of"] == list(STAGES)
    assert plan["records_at_last_run"] is None
    assert plan["model"]["methods"] == ["dpo"]
    assert plan["model"]["parameters"] > 0


def test_wrong_params_are_refused(trained: Trained) -> None:
    done = _dry_run(trained, "finetune.dpo.betta=1")
    assert (done.code, done.payload["error"]["kind"]) == (2, "ParamsError")
