"""A quiet, patient way into `dvc.repo.Repo`: one thread at a time, bounded waits, our own errors, no half-written file.

DVC's locks are between processes and fail after three seconds; threads of one process share
them. So a process-wide lock per workspace orders our threads, and a busy workspace is waited for.
"""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from plumbline.data_contracts.errors import VersioningError
from plumbline.tasks.storage.versioning.listings import refuse_stray_listings
from plumbline.tasks.storage.versioning.remote import settle_memory, settle_remote
from plumbline.tasks.storage.versioning.silence import silence

if TYPE_CHECKING:
    from dvc.repo import Repo

Result = TypeVar("Result")

BUSY_WAIT_S = 60.0
_BUSY_POLL_S = 0.5
_THREAD_LOCKS: defaultdict[Path, threading.RLock] = defaultdict(threading.RLock)
_TABLE_LOCK = threading.Lock()


def with_repo(root: Path, action: Callable[[Repo], Result], *, wait_s: float = BUSY_WAIT_S) -> Result:
    """Open the repository afresh, run `action` on it, and wait up to `wait_s` seconds while it is busy.

    Raises `VersioningError` when the workspace stays busy, or DVC refuses for any other reason.
    """
    silence()
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.repo import Repo, lock_repo
    from dvc.rwlock import RWLockFileCorruptedError

    from plumbline.tasks.storage.versioning.whole_files import (
        drop_half_written_table,
        write_private_files,
        write_whole_files,
    )

    write_whole_files()
    refuse_stray_listings()
    write_private_files(root)
    settle_remote(root)
    settle_memory(root)

    deadline = time.monotonic() + wait_s
    with _thread_lock(root):
        while True:
            try:
                with Repo(os.fspath(root)) as repo, lock_repo(repo):
                    _root_stage_cache(repo)
                    return action(repo)
            except LockError as error:
                if time.monotonic() + _BUSY_POLL_S > deadline:
                    raise VersioningError(
                        f"{root}: another DVC process has held the workspace for {wait_s:.0f} s. {_first_lines(error)} "
                        f"Wait for it or end it, then run again; two runs never share a workspace."
                    ) from error
                time.sleep(_BUSY_POLL_S)
            except RWLockFileCorruptedError:
                drop_half_written_table(root)
            except (DvcException, ImportError) as error:  # ImportError: a remote's plugin is not installed
                raise VersioningError(f"{root}: DVC refused: {_first_lines(error)}") from error


def read_repo(root: Path, action: Callable[[Repo], Result]) -> Result:
    """Open the repository afresh and run `action`, which only reads: no lock is taken, and no file is written.

    Raises `VersioningError` when DVC refuses.
    """
    silence()
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    with _thread_lock(root):
        try:
            with Repo(os.fspath(root)) as repo:
                _root_stage_cache(repo)
                return action(repo)
        except DvcException as error:
            raise VersioningError(f"{root}: DVC refused: {_first_lines(error)}") from error


def _root_stage_cache(repo: Repo) -> None:
    """Make the run-cache work from any current directory.

    `StageCache._create_stage` names a bare "dvc.yaml", which DVC resolves against the current
    directory; changing that directory is no way out in a process with several threads.
    """
    from dvc.stage import PipelineStage, create_stage
    from dvc.stage.loader import StageLoader

    def create(cache: dict[str, Any], wdir: str | None = None) -> Any:
        path = os.path.join(repo.root_dir, "dvc.yaml")
        outs = [out["path"] for out in cache["outs"]]
        stage = create_stage(PipelineStage, repo=repo, path=path, cmd=cache["cmd"], wdir=wdir, outs=outs)
        StageLoader.fill_from_lock(stage, cache)
        return stage

    repo.stage_cache._create_stage = create


def _thread_lock(root: Path) -> threading.RLock:
    with _TABLE_LOCK:
        return _THREAD_LOCKS[root.resolve()]


def _first_lines(error: BaseException, limit: int = 400) -> str:
    """The error and its causes as one bounded line."""
    parts: list[str] = []
    current: BaseException | None = error
    while current is not None and len(parts) < 3:
        text = " ".join(str(current).split())
        if text and text not in parts:
            parts.append(text)
        current = current.__cause__
    return " <- ".join(parts)[:limit]
