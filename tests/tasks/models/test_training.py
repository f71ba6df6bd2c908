from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from plumbline.data_contracts.errors import StageError
from plumbline.tasks.models.curve import curve_rows
from plumbline.tasks.models.training import train


def test_curve_merges_train_and_validation_rows_of_a_step() -> None:
    history = [
        {"loss": 0.7, "rewards/accuracies": 0.5, "epoch": 0.5, "step": 2, "num_tokens": 9},
        {"loss": 0.6, "step": 4, "epoch": 1.0},
        {"eval_win_rate": 0.6, "step": 4},
        {"train_runtime": 3.2, "step": 4},
    ]
    assert curve_rows(history) == [
        {"step": 2, "loss": 0.7, "accuracy": 0.5},
        {"step": 4, "loss": 0.6, "validation_win_rate": 0.6},
    ]


class FailingTrainer:
    """Writes half a checkpoint and fails as told."""

    def __init__(self, runs_in: Path, error: Exception) -> None:
        self.runs_in, self.error, self.state = runs_in, error, SimpleNamespace()

    def remove_callback(self, callback: Any) -> None:
        pass

    def train(self, resume_from_checkpoint: str | None) -> None:
        (self.runs_in / "checkpoint-4").mkdir()
        (self.runs_in / "checkpoint-4" / "optimizer.pt").write_bytes(b"half")
        raise self.error


def test_a_full_disk_leaves_no_half_written_checkpoint(tmp_path: Path) -> None:
    error = RuntimeError("[enforce fail at inline_container.cc:672] . PytorchStreamWriter failed writing file data/1")
    with pytest.raises(StageError, match="could not be written: no space left"):
        train(FailingTrainer(tmp_path, error), tmp_path)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_full_accelerator_says_what_to_lower(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="Lower per_device_train_batch_size"):
        train(FailingTrainer(tmp_path, torch.OutOfMemoryError("CUDA out of memory")), tmp_path)  # type: ignore[arg-type]


def test_other_failures_pass_through(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        train(FailingTrainer(tmp_path, RuntimeError("shapes do not match")), tmp_path)  # type: ignore[arg-type]
