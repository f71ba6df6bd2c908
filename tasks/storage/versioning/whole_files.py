"""DVC's files, written whole or not at all, and for nobody else to read.

A SIGKILL leaves the old file or the new one.

DVC truncates `dvc.lock` and `.dvc` files before it writes them. Half of a `dvc.lock` either cannot be read, or
records hashes that nothing has, and a person would have to find out which. A `dvc` that somebody runs by hand still
writes as it always did.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from plumbline.data_contracts.artifact import write_bytes
from plumbline.data_contracts.private_files import workspace_umask
from plumbline.data_contracts.private_names import require_names

_READ_ONLY = 0o444


def write_whole_files() -> None:
    """Let DVC, in this process, write its YAML files through a temporary name and a rename. Repeating it is free."""
    from dvc.utils.serialize import _common, _yaml

    for module in (_common, _yaml):
        require_names("dvc", module, "_dump_data")
        module._dump_data = _dump_whole


def write_private_files(root: Path) -> None:
    """Let DVC, in this process, give its files the modes of the workspace: it fixes them when it is imported.

    The files in its cache are read-only for those who may read the workspace at all; DVC makes them 0444.
    """
    from dvc_data.hashfile.db import local
    from dvc_objects.fs import generic, utils

    mask = workspace_umask(root)
    modules: tuple[Any, ...] = (local, generic, utils)
    for module in modules:
        require_names("dvc", module, "umask")
        module.umask = mask
    local.LocalHashFileDB.CACHE_MODE = _READ_ONLY & ~mask


def _dump_whole(path: Any, data: Any, dumper: Callable[..., Any], fs: Any = None, **named: Any) -> None:
    """As `dvc.utils.serialize._common._dump_data`, which opens the file itself and writes into it."""
    text = io.StringIO()
    dumper(data, text, **named)
    if fs is not None and fs.protocol != "local":
        with fs.open(path, "w+", encoding="utf-8") as file:
            file.write(text.getvalue())
        return
    write_bytes(Path(os.fspath(path)), text.getvalue().encode())


def drop_half_written_table(root: Path) -> None:
    """Remove DVC's table of readers and writers if it cannot be read, because its writer was killed.

    Others edit it under the same guard: one that cannot be read now has no living writer.
    """
    from dvc.lock import make_lock
    from dvc.rwlock import RWLOCK_FILE, RWLOCK_LOCK

    folder = root / ".dvc" / "tmp"
    with make_lock(os.fspath(folder / RWLOCK_LOCK), tmp_dir=os.fspath(folder)):
        try:
            json.loads((folder / RWLOCK_FILE).read_bytes())
        except ValueError:
            (folder / RWLOCK_FILE).unlink()
        except FileNotFoundError:
            return
