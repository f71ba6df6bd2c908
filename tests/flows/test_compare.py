"""Comparisons as `plumbline compare` runs them, on one workspace: killed in the midst, gone on, and done again."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest

from plumbline.data_contracts.artifact import read_artifact, verify_artifact
from plumbline.tasks.evaluation.comparison.cost import read_cost
from plumbline.tasks.params.layers import load_params
from plumbline.tasks.registry.store.client import Store
from plumbline.tasks.storage.versioning.lock import read_lock
from tests.flows.conftest import Done, Trained, Workspace

pytestmark = pytest.mark.slow

METHODS = Path(__file__).with_name("methods.yaml")
VARIANTS = (
    "compare.preset=null",
    "compare.variants.same={}",
    "compare.variants.hot={finetune.dpo.learning_rate: 0.005}",
    "compare.variants.broken={finetune.dpo.max_length: 8}",  # in which no pair has room
)


@dataclass(frozen=True)
class Compared(Workspace):
    """A workspace after a comparison that was killed while it trained `same`, and run again."""

    done: Done

    def folder(self, label: str) -> Path:
        return next(Path(trial["folder"]) for trial in self.done.payload["trials"] if trial["label"] == label)


@pytest.fixture(scope="module")
def compared(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Compared:
    workspace = trained.copy(tmp_path_factory.mktemp("compared") / "copy")
    workspace.set_params(*VARIANTS)
    sign = ".plumbline/work/compare/same-seed17/finetune/run-*/checkpoint-*/sealed.json"
    workspace.kill_when(sign, "compare")
    assert list((workspace.root / "comparisons").glob("*/same-*/policy")) == [], "it had ended before the kill"
    return Compared(workspace.root, workspace.server, workspace.run("compare", "--json"))


def test_the_answer_holds_every_variant_and_why_one_failed(compared: Compared) -> None:
    assert compared.done.code == 1, compared.done.err
    assert "failed: broken-seed17, for the reasons above" in compared.done.err
    answer = compared.done.payload
    assert [row["name"] for row in answer["variants"]] == ["same", "hot"]
    assert "of at most 8 tokens" in answer["failures"]["broken-seed17"]
    assert answer["judge"] == "gold"
    for row in answer["variants"]:
        assert {"gold", "judge"} == set(row["win"])
        assert row["cpu_seconds"] > 0
        assert row["tokens_seen"] > 0
        assert row["tokens_generated"] == 0
    assert {reason["rule"] for reason in answer["recommendation"]["reasons"]} >= {"data_size", "reward_accuracy"}
    assert all(stage["reused"] for stage in answer["shared_stages"])


def test_a_variant_with_the_runs_own_settings_is_the_runs_policy_even_after_a_kill(
    compared: Compared, trained: Trained
) -> None:
    """Same body, same params, resumed from a checkpoint: every file but none of the clocks is bitwise the same."""
    own = read_artifact(compared.folder("same-seed17") / "policy")
    assert own.files == read_artifact(trained.root / "models/policy").files
    assert own.facts == read_artifact(trained.root / "models/policy").facts
    cost = read_cost(compared.folder("same-seed17") / "cost.json")
    assert cost is not None
    assert cost.sessions == 2
    (row,) = (row for row in compared.done.payload["variants"] if row["name"] == "same")
    measured = trained.first.payload["metrics"]["win_rate"]["gold"]
    assert row["win"]["gold"] == {name: measured[name] for name in ("value", "low", "high")}


def test_the_workspace_stays_as_it_was(compared: Compared, trained: Trained) -> None:
    assert compared.hashes() == trained.hashes()
    assert read_lock(compared.root) == read_lock(trained.root)
    untracked = subprocess.run(
        ["git", "-C", compared.root, "status", "--porcelain", "--untracked-files=all"], capture_output=True, check=True
    ).stdout.decode()
    assert "comparison" not in untracked


def test_the_report_is_whole(compared: Compared) -> None:
    report = compared.root / "reports/comparison"
    assert verify_artifact(report) == []
    facts = orjson.loads((report / "comparison.json").read_bytes())
    assert facts == {name: compared.done.payload[name] for name in facts}
    assert "| same | " in (report / "comparison.md").read_text()


def test_runs_are_children_of_one_comparison(compared: Compared) -> None:
    params, _ = load_params(compared.root)
    store = Store(compared.root, params.registry)
    found = store.client.search_runs([store.experiment_id()], "attributes.run_name = 'compare' and status = 'FINISHED'")
    parent = found[-1]
    children = store.client.search_runs(
        [store.experiment_id()],
        f"tags.`mlflow.parentRunId` = '{parent.info.run_id}' and tags.`plumbline.variant` != ''",
    )
    assert {run.info.run_name for run in children} == {"same-seed17", "hot-seed17"}
    hot = next(run for run in children if run.info.run_name == "hot-seed17")
    assert hot.data.params["finetune.dpo.learning_rate"] == "0.005"
    assert hot.data.metrics["cost.cpu_seconds"] > 0
    assert "win_rate.gold.value" in hot.data.metrics
    assert "curve/loss" in hot.data.metrics


@pytest.mark.long
def test_again_nothing_is_redone_and_another_evaluation_keeps_the_policies_that_are_whole(compared: Compared) -> None:
    """`broken` is mended, and trained; people read the same facts."""
    before = _stamps(compared, "policy")
    again = compared.run("compare", "--set", "compare.variants.broken={finetune.dpo.max_length: 512}", "--json")
    assert again.code == 0, again.err
    assert _reused(again)["same-seed17"] is _reused(again)["hot-seed17"] is True
    assert [row["win"] for row in again.payload["variants"]][:2] == [
        row["win"] for row in compared.done.payload["variants"]
    ]
    measured = _stamps(compared, "evaluation-*")
    hot = compared.folder("hot-seed17")
    weights = hot / "policy/model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole + b"0")
    fewer = compared.run("compare", "--set", "evaluation.max_prompts=32")
    assert fewer.code == 0, fewer.err
    assert "Recommended:" in fewer.out
    assert len(_stamps(compared, "evaluation-*")) == 2 * len(measured)
    after = _stamps(compared, "policy")
    assert [path for path in before if after[path] != before[path]] == [hot / "policy/manifest.json"]
    assert weights.read_bytes() == whole
    cost = read_cost(hot / "cost.json")
    assert cost is not None
    assert cost.sessions == 1


@pytest.fixture(scope="module")
def methods(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Compared:
    """A workspace after `plumbline compare` of the preset `methods`."""
    workspace = trained.copy(tmp_path_factory.mktemp("methods") / "copy")
    done = workspace.run("compare", "--params", METHODS, "--json")
    assert done.code == 0, done.err
    return Compared(workspace.root, workspace.server, done)


@pytest.mark.long(keep=99)
def test_the_methods_run_side_by_side_and_dpo_before_a_shorter_ppo(methods: Compared) -> None:
    """Of PPO's 64 episodes half are left after DPO. Only what learns from the reward model is told with its time."""
    answer = methods.done.payload
    assert answer["failures"] == {}
    rows = {row["name"]: row for row in answer["variants"]}
    assert {name: row["methods"] for name, row in rows.items()} == {
        "dpo": ["dpo"],
        "grpo": ["grpo"],
        "ppo": ["ppo"],
        "dpo_ppo": ["dpo", "ppo"],
    }
    facts = {name: read_artifact(methods.folder(f"{name}-seed17") / "policy").facts for name in rows}
    assert facts["ppo"]["episodes"] == 64
    assert facts["dpo_ppo"]["stages"]["2-ppo"]["episodes"] == 32
    ratio = answer["time_ratio"]
    assert ratio["reward_model_seconds"] > 0
    assert set(ratio["ratios"]) == {"grpo", "ppo", "dpo+ppo"}
    for found in ratio["ratios"].values():
        assert found["wall_with_reward_model"] > found["wall"] > 0


@pytest.mark.long(keep=99)
def test_whether_the_methods_had_one_budget_is_measured(methods: Compared) -> None:
    """The readings are the evaluations of training, and end with all of its seconds; a stack has none."""
    budget, rows = methods.done.payload["budget"], methods.done.payload["variants"]
    seconds = [row["cpu_seconds"] for row in rows]
    assert budget["factor"] == pytest.approx(max(seconds) / min(seconds))
    assert budget["equal"] is (budget["factor"] <= 1.5)
    assert f"{budget['factor']:.2f}x" in budget["text"]
    for row in rows:
        facts = read_artifact(methods.folder(f"{row['name']}-seed17") / "policy").facts
        (readings,) = row["readings"]
        assert [each["win_rate"] for each in readings] == [each["win_rate"] for each in facts.get("evaluations", [])]
        if row["name"] != "dpo_ppo":
            assert readings[-1]["cpu_seconds"] == pytest.approx(row["cpu_seconds"])


@pytest.mark.long(keep=99)
def test_each_method_leaves_the_plots_that_it_has_figures_for(methods: Compared) -> None:
    sampled = {"rewards.png", "on_policy.png"}
    for name in ("dpo", "grpo", "ppo", "dpo_ppo"):
        (evaluation,) = methods.folder(f"{name}-seed17").glob("evaluation-*")
        found = {path.name for path in (evaluation / "plots").iterdir()}
        assert found & sampled == (set() if name == "dpo" else sampled), name
    report = {path.name for path in (methods.root / "reports/comparison/plots").iterdir()}
    assert report == {"win_rate_kl.png", "reliability.png", "training_time.png", "win_rate_time.png"}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("compare.variants.bad={seed: 3}", "compare.variants.bad: seed: expected a key of"),
        (
            "compare.variants.bad={reward.learning_rate: 0.1}",
            "compare.variants.bad: reward.learning_rate: expected a key of",
        ),
        ("compare.variants.bad={finetune.dpo.betta: 1}", "unknown key; did you mean 'beta'"),
        ("compare.variants.bad={finetune.dpo.beta: -1}", "greater than 0"),
    ],
)
def test_a_wrong_variant_is_refused_before_any_work(tmp_path: Path, setting: str, message: str) -> None:
    """By `retrain` too, which would write it into `params.yaml`."""
    workspace = Workspace(tmp_path, "http://127.0.0.1:9/api")
    assert workspace.run("init", ".", "--sample-world").code == 0
    before = (tmp_path / "params.yaml").read_bytes()
    assert message in workspace.run("retrain", "--set", setting).err
    done = workspace.run("compare", "--set", setting, "--json")
    assert (done.code, done.payload["error"]["kind"]) == (2, "ParamsError")
    assert message in done.err
    assert (tmp_path / "params.yaml").read_bytes() == before


def _stamps(compared: Compared, name: str) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (compared.root / "comparisons").glob(f"*/*/{name}/manifest.json")}


def _reused(done: Done) -> dict[str, Any]:
    return {trial["label"]: trial["reused"] for trial in done.payload["trials"]}
