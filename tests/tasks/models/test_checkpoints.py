from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from plumbline.data_contracts.errors import ModelError
from plumbline.tasks.models.checkpoints import drop_unfinished, newest_whole, run_folder, seal, weights_digest


def write_checkpoint(folder: Path, step: int, best: Path | None = None) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(b"weights" * step)
    state = {"global_step": step, "best_model_checkpoint": str(best) if best else None}
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    seal(checkpoint)
    return checkpoint


def test_newest_is_by_step_not_by_name(tmp_path: Path) -> None:
    """Step 10 is later than step 9, though "checkpoint-9" sorts behind "checkpoint-10"."""
    write_checkpoint(tmp_path, 9)
    assert newest_whole(tmp_path) == tmp_path / "checkpoint-9"
    write_checkpoint(tmp_path, 10)
    assert newest_whole(tmp_path) == tmp_path / "checkpoint-10"


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "unsealed", "extra"])
def test_a_damaged_checkpoint_is_named_and_passed_over(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    earlier, last = write_checkpoint(tmp_path, 4), write_checkpoint(tmp_path, 8)
    weights = last / "model.safetensors"
    content = weights.read_bytes()
    if damage == "truncated":
        weights.write_bytes(content[:-1])
    elif damage == "flipped":
        weights.write_bytes(b"W" + content[1:])
    elif damage == "missing":
        weights.unlink()
    elif damage == "unsealed":
        (last / "sealed.json").unlink()
    else:
        (last / "stray").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        assert newest_whole(tmp_path) == earlier
    assert "checkpoint-8 cannot be resumed" in caplog.text
    assert not last.exists()


def test_a_checkpoint_whose_best_is_damaged_cannot_be_resumed(tmp_path: Path) -> None:
    """The run would end by loading the best checkpoint, so its damage must be found before, not then."""
    best = write_checkpoint(tmp_path, 4)
    write_checkpoint(tmp_path, 8, best=best)
    assert newest_whole(tmp_path) == tmp_path / "checkpoint-8"
    (best / "model.safetensors").write_bytes(b"")
    assert newest_whole(tmp_path) is None


def test_best_of_another_folder_is_not_resumed(tmp_path: Path) -> None:
    """Where a workspace has moved, the recorded path points elsewhere."""
    write_checkpoint(tmp_path, 8, best=tmp_path / "old" / "checkpoint-4")
    assert newest_whole(tmp_path) is None


def test_no_checkpoint(tmp_path: Path) -> None:
    assert newest_whole(tmp_path) is None


def test_run_folder_is_by_content(tmp_path: Path) -> None:
    """Equal content in another order of keys gives the same folder; anything else removes it."""
    one = run_folder(tmp_path, {"a": 1, "b": [2]})
    write_checkpoint(one, 1)
    assert run_folder(tmp_path, {"b": [2], "a": 1}) == one
    assert newest_whole(one) is not None
    assert json.loads((one / "key.json").read_text())["depends_on"] == {"a": 1, "b": [2]}
    other = run_folder(tmp_path, {"a": 2, "b": [2]})
    assert other != one
    assert not one.exists()


def test_unfinished_checkpoints_go_and_sealed_ones_stay(tmp_path: Path) -> None:
    sealed, cut_off = write_checkpoint(tmp_path, 4), write_checkpoint(tmp_path, 8)
    (cut_off / "sealed.json").unlink()
    drop_unfinished(tmp_path)
    assert list(tmp_path.iterdir()) == [sealed]


def test_weights_digest_follows_the_weights_alone(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
    before = weights_digest(tmp_path / "one")
    (tmp_path / "other" / "manifest.json").write_text("{}")
    assert weights_digest(tmp_path / "other") == before
    (tmp_path / "other" / "model.safetensors").write_bytes(b"Weights")
    assert weights_digest(tmp_path / "other") != before
    with pytest.raises(ModelError, match=r"expected a model folder with config\.json and weights"):
        weights_digest(tmp_path)
