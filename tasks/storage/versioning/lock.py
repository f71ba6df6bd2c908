"""`dvc.lock` and `.dvc` files as data: which hash each path has, without opening a repository."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from plumbline.data_contracts.errors import VersioningError

LOCK = "dvc.lock"

PARAMS_STAGE = "params"
"""The stage that resolves params. git keeps what it reads and writes, DVC's cache does not: it is no artifact."""


def read_lock(root: Path) -> dict[str, Any]:
    """The stages of `dvc.lock` by name: {"cmd", "deps": {path: entry}, "params", "outs": {path: entry}}.

    An entry holds at least "md5" (ending in ".dir" for a folder). Empty if nothing ran yet. `PARAMS_STAGE` is left out.
    """
    stages = _load(root / LOCK).get("stages") or {}
    return {name: _stage(entry) for name, entry in stages.items() if name != PARAMS_STAGE}


def read_tracked(root: Path) -> dict[str, dict[str, Any]]:
    """Entries of `.dvc` files (raw batches): path in the workspace -> entry with "md5"."""
    tracked = {}
    for file in sorted([*root.glob("*.dvc"), *root.glob("data/*.dvc"), *root.glob("models/*.dvc")]):
        if file.is_file():
            for out in _load(file).get("outs") or []:
                path = (file.parent / out["path"]).relative_to(root).as_posix()
                tracked[path] = {**out, "path": path, "file": file.relative_to(root).as_posix()}
    return tracked


def current_hashes(root: Path) -> dict[str, str]:
    """Path -> DVC hash of everything that the workspace records now: outputs of stages and tracked data."""
    hashes = {path: str(entry["md5"]) for path, entry in read_tracked(root).items()}
    for stage in read_lock(root).values():
        hashes |= {path: entry["md5"] for path, entry in stage["outs"].items()}
    return hashes


def recorded_params(root: Path, file: str) -> dict[str, dict[str, Any]]:
    """The params that each stage last ran under, read from `file`: stage -> dotted key -> value."""
    return {name: stage["params"][file] for name, stage in read_lock(root).items() if file in stage["params"]}


def record_params(root: Path, old: str, new: str, values: Mapping[str, Mapping[str, Any]]) -> None:
    """Let `dvc.lock` say of these stages that they read these values from the file `new`, not from `old`."""
    if not values:
        return
    from dvc.utils.serialize import modify_yaml

    with modify_yaml(str(root / LOCK)) as document:
        for name, read in values.items():
            params = document["stages"][name]["params"]
            del params[old]
            params[new] = dict(sorted(read.items()))


def record_input(root: Path, maker: str, readers: Iterable[str]) -> None:
    """Let `dvc.lock` say of these stages that they read the output of `maker`, as it is recorded."""
    from dvc.utils.serialize import modify_yaml

    with modify_yaml(str(root / LOCK)) as document:
        (made,) = document["stages"][maker]["outs"]
        for name in readers:
            stage = document["stages"][name]
            stage["deps"] = sorted([*stage.get("deps", []), dict(made)], key=lambda entry: entry["path"])


def _stage(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "cmd": entry.get("cmd"),
        "deps": {item["path"]: dict(item) for item in entry.get("deps") or []},
        "params": {file: dict(values) for file, values in (entry.get("params") or {}).items()},
        "outs": {item["path"]: dict(item) for item in entry.get("outs") or []},
    }


@lru_cache(maxsize=16)
def _parse(text: str) -> Any:
    """The document of a text; an audit reads the same lock for every path, and parsing it takes 20 ms and more."""
    return YAML(typ="safe").load(text)


def _load(path: Path) -> dict[str, Any]:
    try:
        document = deepcopy(_parse(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise VersioningError(
            f"{path}: expected a YAML file written by DVC, could not read it: {error}. "
            f"Bring it back with `git checkout -- {path.name}`."
        ) from error
    if not isinstance(document, dict):
        raise VersioningError(f"{path}: expected a YAML mapping written by DVC, found {type(document).__name__}.")
    return document
