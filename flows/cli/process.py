"""A process that is not ours: what a command sets up in its own process, taken back when the call is over."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from plumbline.data_contracts.artifact import full_disk_as_stage_error
from plumbline.data_contracts.permissions import permissions_as_errors
from plumbline.flows.cli.account import settle_account
from plumbline.flows.graph import environment
from plumbline.tasks.operations.services.temporary import TEMPORARY

_OF_THE_SERVER = ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING", TEMPORARY)


@contextmanager
def borrowed_process(root: Path | None = None) -> Iterator[None]:
    """Inside, this process is set up as a command's is: variables, umask, the workspace's server, failures as errors.

    Afterwards it has its own again. A temporary Prefect server stays for the next call, and ends with the process.
    """
    before, mask = dict(os.environ), os.umask(0o077)
    try:
        settle_account()
        environment.prepare(root=root)
        if root is not None:
            environment.use_services(root)
        if "prefect" in sys.modules:  # which keeps what the variables said at a call before
            from prefect.context import refresh_global_settings_context

            refresh_global_settings_context()
        with _unnamed_main(), permissions_as_errors(), full_disk_as_stage_error(root or Path.cwd()):
            yield
    finally:
        os.umask(mask)
        kept = _OF_THE_SERVER if TEMPORARY in os.environ else ()
        for name in {*os.environ, *before} - {*kept}:
            if name in before:
                os.environ[name] = before[name]
            else:
                del os.environ[name]


@contextmanager
def _unnamed_main() -> Iterator[None]:
    """Let child processes not import the caller's script: one without `if __name__ == "__main__"` would run again."""
    names = vars(sys.modules["__main__"])
    kept: dict[str, Any] = {name: names[name] for name in ("__file__", "__spec__") if name in names}
    names.pop("__file__", None)
    names["__spec__"] = None
    try:
        yield
    finally:
        names.update(kept)
