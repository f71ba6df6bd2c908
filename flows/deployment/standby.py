"""A process that has imported all that a flow run needs and waits to become one: `python -m flows.deployment.standby`.

The worker writes one run's environment to its standard input, as JSON, and closes it. From there on the process is
what `python -m prefect.engine` is: same pid, environment, folder, signals and exit code. It is used once.

1. Import Prefect's engine and the flows of the deployments, and remember which files our modules came from.
2. Wait. When standard input ends without a word the worker is gone, or has no use for it any more: end.
3. Take the run's environment. Where a file of ours has changed since, begin anew in this process, with today's code.
4. Run the engine as Prefect does.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import time
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path

ENGINE = "prefect.engine"
NEEDED = (ENGINE, "prefect.flow_engine")
_OURS = "plumbline"
_Stamp = tuple[int, int]


def main(entrypoints: Iterable[str]) -> None:
    """Wait for a run and become it. `entrypoints`: MODULE:FLOW of the deployments."""
    began = time.time_ns()
    for module in (*NEEDED, *(entrypoint.partition(":")[0] for entrypoint in entrypoints)):
        import_module(module)
    imported = _stamps()
    told = sys.stdin.buffer.read()
    if not told:
        return
    _become(json.loads(told))
    if _stamps() != imported or any(stamp[0] > began for stamp in imported.values()):
        os.execv(sys.executable, [sys.executable, "-m", ENGINE])
    sys.argv = [ENGINE]
    sys.modules.pop(ENGINE, None)  # a library instance; what runs is an instance of its own, named __main__
    runpy.run_module(ENGINE, run_name="__main__", alter_sys=True)


def _become(environment: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)


def _stamps() -> dict[str, _Stamp]:
    """Time of the last change (ns) and size of each file our modules were imported from; zeros where it is gone."""
    files = (getattr(module, "__file__", None) for name, module in list(sys.modules.items()) if _is_ours(name))
    return {file: _stamp(Path(file)) for file in files if file is not None}


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] == _OURS


def _stamp(file: Path) -> _Stamp:
    try:
        found = file.stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_size


if __name__ == "__main__":
    main(sys.argv[1:])
