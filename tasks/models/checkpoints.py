"""Checkpoints that survive a kill: keyed by what they depend on, sealed when whole, checked before use.

Layout under the `work` folder of a stage:

    run-<key>/key.json                what the run depends on, and its SHA-256
    run-<key>/checkpoint-<step>/      as transformers writes it: weights, optimiser, schedule, random states
    run-<key>/checkpoint-<step>/sealed.json   size and SHA-256 of every file; written last

A run with other inputs or params has another key, hence another folder: nothing of the old one is resumed.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from plumbline.data_contracts.artifact import sha256_file, write_json
from plumbline.data_contracts.errors import ModelError
from plumbline.tasks.models.processes import is_first

logger = logging.getLogger(__name__)

_KEY = "key.json"
_SEAL = "sealed.json"
_STATE = "trainer_state.json"
_WEIGHTS = ("config.json", "*.safetensors")


def weights_digest(folder: Path) -> str:
    """SHA-256 (hex) of a model folder's configuration and weights, whatever else lies beside them."""
    files = sorted(path for pattern in _WEIGHTS for path in folder.glob(pattern))
    if len(files) < 2:
        raise ModelError(
            f"{folder}: expected a model folder with config.json and weights (*.safetensors), found "
            f"{[path.name for path in files] or 'neither'}. Build it again with `plumbline stage reference`."
        )
    return hashlib.sha256("".join(f"{path.name} {sha256_file(path)}\n" for path in files).encode()).hexdigest()


def run_folder(work: Path, depends_on: Mapping[str, Any]) -> Path:
    """The folder of the run that depends on exactly `depends_on` (JSON-able); folders of other runs are removed.

    Of several processes the first makes and clears it; the others receive its name.
    """
    raw = orjson.dumps(depends_on, option=orjson.OPT_SORT_KEYS)
    key = hashlib.sha256(raw).hexdigest()
    folder = work / f"run-{key[:16]}"
    if not is_first():
        return folder
    for other in work.glob("run-*"):
        if other != folder:
            shutil.rmtree(other)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / _KEY, {"key": key, "depends_on": orjson.loads(raw)})
    return folder


def seal(checkpoint: Path) -> None:
    """Mark a checkpoint, or any other folder, as whole: write size and SHA-256 of each of its files, last."""
    write_json(checkpoint / _SEAL, _inventory(checkpoint))


def is_whole(folder: Path) -> bool:
    """True if a folder was sealed and still holds exactly the files that it held then."""
    return _damage(folder) is None


def newest_whole(folder: Path) -> Path | None:
    """The latest checkpoint that can be resumed; damaged later ones are named in the log and removed.

    A checkpoint can be resumed when its files are those that were sealed, and so is the best checkpoint
    that its state refers to.
    """
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=_step, reverse=True):
        damage = _damage(checkpoint) or _damage_of_best(checkpoint)
        if damage is None:
            return checkpoint
        logger.warning("%s cannot be resumed (%s); trying an earlier one", checkpoint, damage)
        shutil.rmtree(checkpoint)
    return None


def drop_unfinished(folder: Path) -> None:
    """Remove checkpoints that were never sealed, such as one that a full disk cut off."""
    for checkpoint in folder.glob("*checkpoint-*"):
        if not (checkpoint / _SEAL).is_file():
            shutil.rmtree(checkpoint)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The trainer's state at a checkpoint, as transformers wrote it."""
    state: dict[str, Any] = orjson.loads((checkpoint / _STATE).read_bytes())
    return state


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[1])


def _inventory(checkpoint: Path) -> dict[str, dict[str, Any]]:
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != _SEAL)
    return {
        path.relative_to(checkpoint).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in files
    }


def _damage(checkpoint: Path) -> str | None:
    """Why a checkpoint is not whole, or None."""
    try:
        sealed = orjson.loads((checkpoint / _SEAL).read_bytes())
    except FileNotFoundError:
        return "it was not finished"
    except orjson.JSONDecodeError:
        return f"{_SEAL} is damaged"
    found = _inventory(checkpoint)
    changed = sorted(name for name in sealed.keys() | found.keys() if sealed.get(name) != found.get(name))
    if not changed:
        return None
    return f"{len(changed)} of {len(sealed)} files are missing or changed, such as {changed[0]}"


def _damage_of_best(checkpoint: Path) -> str | None:
    recorded = read_state(checkpoint).get("best_model_checkpoint")
    if recorded is None:
        return None
    best = Path(recorded)
    if best.parent != checkpoint.parent or not best.is_dir():
        return f"its best checkpoint {best} is not beside it"
    damage = _damage(best)
    return damage and f"its best checkpoint {best.name}: {damage}"
