"""A stage: what it reads, which params it may see, what it writes, and how it is executed.

`Stage` is the one description from which `dvc.yaml`, the flow and `plumbline stage NAME` are made.
A stage body receives exactly the params that it declares, as keyword arguments (dots become
underscores: `reference.sft` arrives as `reference_sft`), and reaches its inputs through
`StageContext.dep`, which knows only declared ones: what DVC does not track, a stage cannot see.
"""

from __future__ import annotations

import functools
import hashlib
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plumbline.data_contracts.artifact import (
    MANIFEST,
    Artifact,
    full_disk_as_stage_error,
    read_artifact,
    sha256_file,
    writing,
)
from plumbline.data_contracts.errors import StageError
from plumbline.data_contracts.progress import Progress, silent
from plumbline.tasks.params.section import Section

Facts = dict[str, Any]
TEMPLATE = re.compile(r"\$\{([a-z_.]+)\}")
"""A param in the path of a dependency: `${section.key}`."""


@dataclass(frozen=True, slots=True)
class StageContext:
    """The arguments of a stage body besides its params.

    `folder` is the draft of the artifact. `work` survives a kill and is never an input of another
    stage: caches stay there, and `run-*` (checkpoints) goes once the artifact is whole.
    """

    root: Path
    folder: Path
    work: Path
    deps: Mapping[str, Path]
    progress: Progress = silent

    def dep(self, name: str) -> Path:
        """The folder of a declared dependency, by its name in `Stage.deps`."""
        return self.deps[name]


@dataclass(frozen=True, slots=True)
class Stage:
    """One node of the graph.

    `deps` maps a short name to a path in the workspace; `${section.key}` is filled from params. `params` names
    params, dotted where a part is enough, so that a change re-runs only what depends on it. `trains` marks a stage
    that needs torch and trl, and is therefore forked from a process that has them loaded.
    """

    name: str
    title: str
    body: Callable[..., Facts]
    deps: Mapping[str, str]
    params: tuple[str, ...]
    out: str
    contract: str
    version: int = 1
    trains: bool = False
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class StageRecord:
    """One stage of one run: its artifact, how long it took and whether it was reused."""

    name: str
    seconds: float
    reused: bool
    artifact: Artifact = field(repr=False)


def execute(stage: Stage, root: Path, params: Section, progress: Progress = silent) -> Artifact:
    """Run a stage body and write its artifact atomically.

    `params` are the validated params of the whole run, of which the body sees what it declares.
    A full disk becomes a `StageError`; an earlier artifact stays as it was whenever the body fails.
    """
    deps = {name: root / fill(path, params) for name, path in stage.deps.items()}
    work = root / ".plumbline" / "work" / stage.name
    with full_disk_as_stage_error(work):
        work.mkdir(parents=True, exist_ok=True)
        parents = {path.relative_to(root).as_posix(): digest_of(path) for path in deps.values()}
        with writing(root / stage.out, contract=stage.contract, version=stage.version, parents=parents) as draft:
            context = StageContext(root, draft.path, work, deps, progress)
            with importable(root):
                draft.facts = stage.body(context, **declared(stage, params))
        # a stage of several trainings has a folder for each
        for checkpoints in [*work.glob("run-*"), *work.glob("*/run-*")]:
            shutil.rmtree(checkpoints)
    return read_artifact(root / stage.out, contract=stage.contract)


@contextmanager
def importable(root: Path) -> Iterator[None]:
    """Let modules in the workspace (reward functions that params name) be imported inside the block.

    They come last on the import path: a `random.py` or `plumbline.py` there never takes the place of another module.
    """
    folder = str(root.resolve())
    added = folder not in sys.path
    if added:
        sys.path.append(folder)
    try:
        yield
    finally:
        if added:
            sys.path.remove(folder)


def fill(path: str, params: Section) -> str:
    """Fill `${section.key}` in a dependency path from params."""
    return TEMPLATE.sub(lambda match: str(_look_up(params, match.group(1))), path)


def declared(stage: Stage, params: Section) -> dict[str, Any]:
    """The params that a stage declares, by the names of its body's arguments."""
    return {key.replace(".", "_"): _look_up(params, key) for key in stage.params}


def _look_up(params: Section, key: str) -> Any:
    return functools.reduce(getattr, key.split("."), params)


def digest_of(path: Path) -> str:
    """Digest of a dependency: of its manifest, or of all its files where it has none (raw batches)."""
    if (path / MANIFEST).is_file():
        return read_artifact(path).digest
    if not path.exists():
        raise StageError(f"{path}: no such input. Run `plumbline retrain`, or `dvc repro` from the start.")
    files = sorted(item for item in path.rglob("*") if item.is_file() and item.name != ".gitignore")
    lines = "".join(f"{item.relative_to(path).as_posix()} {sha256_file(item)}\n" for item in files)
    return hashlib.sha256(lines.encode()).hexdigest()
