"""Compare a stage with DVC's record: reused, checked out of its cache, or to be run, and the changes since it ran.

DVC decides: these are its own comparisons of `dvc.lock` with params, inputs and outputs.
"""

from __future__ import annotations

import functools
import operator
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from plumbline.data_contracts.private_names import require_names
from plumbline.tasks.params.section import flatten

if TYPE_CHECKING:
    from dvc.output import Output
    from dvc.repo import Repo
    from dvc.stage import Stage

Action = Literal["reuse", "record", "restore", "follow", "run"]
"""The next step of a stage.

- "reuse": `dvc.lock`, inputs, params and outputs agree.
- "record": the outputs are those of these inputs, and DVC's cache lacks them.
- "restore": DVC's cache has the outputs of an earlier run with these inputs.
- "follow": nothing but an input changes, which another stage makes anew; the same bytes again, and it is reused.
- "run": nothing of these inputs is at hand.
"""


_NOTHING: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True)
class ParamChange:
    """A param that a stage reads: its value at the last run, and the present one; None also where there is none."""

    key: str
    old: Any
    new: Any


@dataclass(frozen=True, slots=True)
class PathChange:
    """An input or output of a stage, and its change: "modified", "deleted", "new", or the stage that remakes it."""

    path: str
    change: str


@dataclass(frozen=True, slots=True)
class Standing:
    """The next step of one stage, and the changes since it ran. `recorded`: it ran before, else there are none."""

    stage: str
    action: Action
    recorded: bool
    params: tuple[ParamChange, ...] = ()
    inputs: tuple[PathChange, ...] = ()
    outputs: tuple[PathChange, ...] = ()


def standings(
    repo: Repo,
    stages: Sequence[Stage],
    values: Mapping[str, Any] | None = None,
    changing: Mapping[str, str] | None = None,
) -> dict[str, Standing]:
    """Every stage in the order given, which is that of the graph. Only `repo`'s objects in memory change.

    `values` are params in place of those in the file. `changing` are paths that will be others by then (what is to be
    ingested), each with a word on its change.
    """
    remade = {os.path.join(repo.root_dir, path): change for path, change in (changing or {}).items()}
    restored: dict[str, Any] = {}
    _read_params_once(repo, stages, values)
    found = {}
    for stage in stages:
        standing = found[str(stage.name)] = _standing(repo, stage, remade, restored)
        if standing.action in ("run", "follow"):
            remade |= {out.fs_path: f"made anew by {stage.name}" for out in stage.outs}
    return found


def outputs_at_hand(stage: Stage, restored: Mapping[str, Any] = _NOTHING) -> Literal["reuse", "record"] | None:
    """Compare the outputs on disk with the present inputs and params; None if they are of others.

    `restored` are hashes that inputs will have by then, by path.
    """
    recorded = any(out.hash_info for out in stage.outs)
    if not recorded or any(_differs(dep, restored) for dep in stage.deps):
        return None
    if not any(out.status() for out in stage.outs):
        return None if stage.changed_stage() else "reuse"
    return None if any(out.workspace_status() for out in stage.outs) else "record"


def restore_from_run_cache(stage: Stage) -> bool:
    """Check out what an earlier run of this stage with the same inputs produced, if DVC still has it."""
    from dvc.stage.cache import RunCacheNotFoundError

    if stage.changed_stage() or any(dep.status() for dep in stage.deps):
        # Otherwise DVC would take the recorded outputs, made from other inputs, for the answer.
        stage.save_deps()
        for out in stage.outs:
            out.clear()
    try:
        stage.repo.stage_cache.restore(stage, dry=True)
    except RunCacheNotFoundError:
        return False
    stage.remove_outs(ignore_remove=False, force=False)
    stage.repo.stage_cache.restore(stage)
    return True


def _standing(repo: Repo, stage: Stage, remade: Mapping[str, str], restored: dict[str, Any]) -> Standing:
    recorded = any(out.hash_info for out in stage.outs)
    params = _changed_params(stage) if recorded else ()
    own = [dep for dep in stage.deps if not is_params(dep)]
    inputs = [_change(repo, dep, remade, restored) for dep in own] if recorded else []
    outputs = [_status(repo, out) for out in stage.outs] if recorded else []
    changed = tuple(change for change in inputs if change is not None)
    spoilt = tuple(change for change in outputs if change is not None)

    def standing(action: Action) -> Standing:
        return Standing(str(stage.name), action, recorded, params, changed, spoilt)

    if any(dep.fs_path in remade for dep in own):
        by_itself = params or spoilt or any(dep.status() for dep in own if dep.fs_path not in remade)
        return standing("run" if by_itself or not recorded or stage.changed_stage() else "follow")
    at_hand = outputs_at_hand(stage, restored)
    if at_hand is not None:
        return standing(at_hand)
    kept = _of_run_cache(repo, stage, restored)
    if kept is None:
        return standing("run")
    restored |= kept
    return standing("restore")


def _of_run_cache(repo: Repo, stage: Stage, restored: Mapping[str, Any]) -> dict[str, Any] | None:
    """Path -> hash of the outputs that DVC's cache has of an earlier run with these inputs; None if it has none."""
    require_names("dvc", type(repo.stage_cache), "_load", "_create_stage")
    if any(not dep.exists and dep.fs_path not in restored for dep in stage.deps):
        return None
    for dep in stage.deps:
        dep.hash_info = restored.get(dep.fs_path) or dep.get_hash()
    cache = repo.stage_cache._load(stage)
    kept = repo.stage_cache._create_stage(cache, wdir=stage.wdir) if cache else None
    if kept is None or not kept.outs_cached():
        return None
    return {out.fs_path: out.hash_info for out in kept.outs}


def _differs(dep: Output, restored: Mapping[str, Any]) -> bool:
    return bool(restored[dep.fs_path] != dep.hash_info if dep.fs_path in restored else dep.status())


def is_params(dep: Output) -> bool:
    """Tell if a dependency is a set of params, not a path."""
    from dvc.dependency.param import ParamsDependency

    return isinstance(dep, ParamsDependency)


def _read_params_once(repo: Repo, stages: Sequence[Stage], values: Mapping[str, Any] | None) -> None:
    """Let DVC compare these values, or those of the file read once: it reads the file anew for each comparison."""
    from dvc.dependency.param import read_param_file

    @functools.cache
    def of_file(path: str) -> Mapping[str, Any]:
        return read_param_file(repo.fs, path) or {}

    for stage in stages:
        for dep in filter(is_params, stage.deps):
            whole = values if values is not None else of_file(dep.fs_path) if dep.exists else {}
            dep.read_params = functools.partial(_chosen, whole, dep.params)


def _chosen(values: Mapping[str, Any], keys: Sequence[str], **_: Any) -> dict[str, Any]:
    """What DVC's `read_params` gives: the value of each dotted key that is there."""
    found = {}
    for key in keys:
        with suppress(KeyError, TypeError):
            found[key] = functools.reduce(operator.getitem, key.split("."), values)
    return found


def _changed_params(stage: Stage) -> tuple[ParamChange, ...]:
    changes = []
    for dep in stage.deps:
        if not is_params(dep) or not dep.status():
            continue
        old, new = (dict(flatten(values or {})) for values in (dep.hash_info.value, dep.read_params()))
        keys = [*new, *(key for key in old if key not in new)]
        changes += [ParamChange(key, old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)]
    return tuple(changes)


def _change(repo: Repo, dep: Output, remade: Mapping[str, str], restored: Mapping[str, Any]) -> PathChange | None:
    """The change of an input: remade, another version out of the cache, or changed by hand."""
    if dep.fs_path in remade:
        return PathChange(_name(repo, dep), remade[dep.fs_path])
    if dep.fs_path in restored:
        return PathChange(_name(repo, dep), "another version out of DVC's cache") if _differs(dep, restored) else None
    return _status(repo, dep)


def _status(repo: Repo, entry: Output) -> PathChange | None:
    status = list(entry.status().values())
    return PathChange(_name(repo, entry), str(status[0])) if status else None


def _name(repo: Repo, entry: Output) -> str:
    return Path(entry.fs_path).relative_to(repo.root_dir).as_posix()
