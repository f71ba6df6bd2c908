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

SCRIPT = Path(__file__).with_name("distributed_run.py")
ROOT = Path(__file__).parents[4]
CLOCKED = ("train_runtime", "eval_runtime")


def run(command: list[str], reference: Path, folder: Path) -> list[dict[str, Any]]:
    folder.mkdir()
    done = subprocess.run(
        [*command, str(SCRIPT), str(reference), str(folder)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    log = json.loads((folder / "curve.json").read_text())
    return [row for row in log if "train_runtime" not in row]


def test_two_processes_learn_the_curve_of_one(reference: Path, tmp_path: Path) -> None:
    """12 episodes, 2 minibatches of 6: one process takes 3 micro-batches of 2 rows, each of two takes 2 (2 + 1)."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    one = run([sys.executable], reference, tmp_path / "one")
    two = run([*torchrun, "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"], reference, tmp_path / "two")
    assert json.loads((tmp_path / "two" / "processes.json").read_text()) == 2
    assert len(one) == len(two) == 4
    for alone, together in zip(one, two, strict=True):
        assert alone.keys() == together.keys()
        for name, value in alone.items():
            assert together[name] == pytest.approx(value, abs=1e-5, rel=1e-4), name
    left, right = (load_file(tmp_path / name / "critic.safetensors") for name in ("one", "two"))
    assert all(torch.allclose(left[name], right[name], atol=1e-5) for name in left)
