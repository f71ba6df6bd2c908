"""Two processes under torchrun (gloo, CPU) against one: the same global batch, the same curve (slow: start-up)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from plumbline.data_contracts.records import dump_jsonl
from plumbline.tasks.params.ppo import PpoParams
from plumbline.tasks.training.finetuning.methods import FinetuneInputs

pytestmark = [pytest.mark.long, pytest.mark.training]

SCRIPT = Path(__file__).with_name("distributed_run.py")
METHOD = Path(__file__).with_name("distributed_method.py")
ROOT = Path(__file__).parents[5]
TORCHRUN = [
    *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"),
    *("--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"),
]


def launch(command: list[str], *arguments: Path) -> None:
    done = subprocess.run(
        [*command, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def run(command: list[str], reference: Path, folder: Path) -> list[dict[str, Any]]:
    folder.mkdir()
    launch(command, SCRIPT, reference, folder)
    log = json.loads((folder / "curve.json").read_text())
    return [row for row in log if "train_runtime" not in row]


def test_two_processes_learn_the_curve_of_one(reference: Path, tmp_path: Path) -> None:
    """12 episodes, 2 minibatches of 6: one process takes 3 micro-batches of 2 rows, each of two takes 2 (2 + 1)."""
    one = run([sys.executable], reference, tmp_path / "one")
    two = run(TORCHRUN, reference, tmp_path / "two")
    assert json.loads((tmp_path / "two" / "processes.json").read_text()) == 2
    assert len(one) == len(two) == 4
    for alone, together in zip(one, two, strict=True):
        assert alone.keys() == together.keys()
        for name, value in alone.items():
            assert together[name] == pytest.approx(value, abs=1e-5, rel=1e-4), name
    left, right = (load_file(tmp_path / name / "critic.safetensors") for name in ("one", "two"))
    assert all(torch.allclose(left[name], right[name], atol=1e-5) for name in left)


def test_the_method_as_two_processes_ends_where_one_does(
    inputs: FinetuneInputs, reward_model: Path, quick: PpoParams, tmp_path: Path
) -> None:
    """The stage's own path, with evaluations, checkpoints and the best of them: every process ends with the same
    weights and facts, the first alone writes, and curve and policy are those of one process within 1e-4.

    The tolerance is float32's: gradients of two halves of a batch are summed in another order, and Adam divides by
    their size, so that a rounding error of 1e-7 of a gradient moves a weight by up to that share of the rate.
    """
    given = tmp_path / "given"
    given.mkdir()
    dump_jsonl(given / "train.jsonl", inputs.train)
    dump_jsonl(given / "validation.jsonl", inputs.validation)
    params = quick.model_copy(update={"learning_rate": 5e-4, "critic_learning_rate": 1e-3})
    (given / "finetune.json").write_text(json.dumps({"methods": ["ppo"], "ppo": params.model_dump(mode="json")}))
    for name, command in (("one", [sys.executable]), ("two", TORCHRUN)):
        launch(command, METHOD, inputs.reference, reward_model, given, tmp_path / name)
    alone, first, second = (
        json.loads((tmp_path / place).read_text())
        for place in ("one/rank-0.json", "two/rank-0.json", "two/rank-1.json")
    )
    # the processes of a run agree to the bit, and only one of them writes
    assert first["facts"] == second["facts"]
    left, right = (load_file(tmp_path / "two" / f"weights-{rank}.safetensors") for rank in (0, 1))
    assert all(torch.equal(left[name], right[name]) for name in left)
    names = {Path(path).name for path in second["written"] if not path.endswith("policy-1")}
    assert names <= {f"checkpoint-{step}" for step in (4, 8, 12)}, "folders that its own random state goes into"
    # torch writes it past Python; that it is there also tells that the two were one run
    assert len(list((tmp_path / "two" / "work").glob("run-*/checkpoint-*/rng_state_1.pth"))) == 3
    assert list((tmp_path / "two" / "policy-1").iterdir()) == []
    # and they end where one process does
    one, two = (rows(tmp_path / name / "policy-0" / "training.jsonl") for name in ("one", "two"))
    assert [row["step"] for row in one] == [row["step"] for row in two]
    for row, other in zip(one, two, strict=True):
        assert row.keys() == other.keys()
        assert other == {name: pytest.approx(value, abs=1e-4, rel=1e-3) for name, value in row.items()}
    assert first["facts"]["best"]["step"] == alone["facts"]["best"]["step"]
    assert first["facts"]["episodes"] == alone["facts"]["episodes"] == 48
    assert first["facts"]["tokens"] == alone["facts"]["tokens"]
    policies = [load_file(tmp_path / name / "policy-0" / "model.safetensors") for name in ("one", "two")]
    assert all(torch.allclose(policies[0][name], policies[1][name], atol=1e-4) for name in policies[0])


def test_an_offline_method_as_two_processes_is_one_run(
    inputs: FinetuneInputs, reward_model: Path, tmp_path: Path
) -> None:
    """DPO of 48 pairs in batches of 4: alone 12 steps, two processes take half of them each, and the first writes."""
    given = tmp_path / "given"
    given.mkdir()
    dump_jsonl(given / "train.jsonl", inputs.train)
    dump_jsonl(given / "validation.jsonl", inputs.validation)
    section = {
        "num_train_epochs": 1,
        "per_device_train_batch_size": 4,
        "logging_steps": 2,
        "eval_steps": 2,
        "max_length": 64,
    }
    section["validation"] = {"pairs": 8, "prompts": 6, "max_new_tokens": 6}
    (given / "finetune.json").write_text(json.dumps({"methods": ["dpo"], "dpo": section}))
    launch(TORCHRUN, METHOD, inputs.reference, reward_model, given, tmp_path / "two")
    first, second = (json.loads((tmp_path / "two" / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    assert first["facts"] == second["facts"]
    assert first["facts"]["steps"] == {"planned": 6, "run": 6}
    assert (tmp_path / "two" / "policy-0" / "model.safetensors").is_file()
    assert list((tmp_path / "two" / "policy-1").iterdir()) == []


def rows(curve: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in curve.read_text().splitlines()]
