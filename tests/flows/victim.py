"""Runs of `plumbline retrain` that end in SIGKILL at a chosen point, each a process of its own.

A command pays ten seconds of imports before its first stage. So this program imports everything once, starts the
fork server of the training stages, and forks a run for each line on stdin; then it waits for the run's end and
answers on stdout how that was. The runs, their stages and the kills are real; what they share is the imports.

A line is a JSON object: `root`, `log`, and `kill`, a list of a place below and its arguments, or null.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from io import StringIO
from typing import Any

from plumbline.flows.graph import environment

STAGES = (
    "sample_world",
    "base",
    "validate",
    "curate",
    "reference",
    "lengths",
    "reward",
    "finetune",
    "evaluate",
    "gate",
)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _around(owner: Any, name: str, kill: Callable[..., bool], *, behind: bool) -> None:
    """Let `owner.name` die before its call, or behind it, once `kill` says so of the arguments."""
    step = getattr(owner, name)

    def dying(*arguments: Any, **named: Any) -> Any:
        due = kill(*arguments, **named)
        if due and not behind:
            die()
        result = step(*arguments, **named)
        if due:
            die()
        return result

    setattr(owner, name, dying)


def _once_in(number: int) -> Callable[..., bool]:
    calls = iter(range(1, 1_000_000))
    return lambda *_, **__: next(calls) == number


def before(stage: str) -> None:
    """When DVC found the stage dirty and its process is about to start."""
    from plumbline.flows.graph import run_stage

    _around(run_stage, "run_isolated", lambda it, *_: it.name == stage, behind=False)


def uncommitted(stage: str) -> None:
    """When its artifact is whole and DVC knows nothing of it."""
    from plumbline.flows.graph import run_stage

    _around(run_stage, "run_isolated", lambda it, *_: it.name == stage, behind=True)


def unrecorded(stage: str) -> None:
    """When DVC's cache has the artifact, and the file that would say so is half written."""
    from dvc.dvcfile import ProjectFile
    from ruamel.yaml import YAML

    def half_dump(self: YAML, data: Any, stream: Any, **named: Any) -> None:
        text = StringIO()
        dump(self, data, text, **named)
        stream.write(text.getvalue()[: len(text.getvalue()) // 2])
        stream.flush()
        die()

    def dumping(self: ProjectFile, stages: Any, *arguments: Any, **named: Any) -> None:
        if any(it.name == stage for it in stages):
            YAML.dump = half_dump
        dump_stages(self, stages, *arguments, **named)

    dump, dump_stages = YAML.dump, ProjectFile.dump_stages
    ProjectFile.dump_stages = dumping


def committed(stage: str) -> None:
    """When DVC recorded the stage and nobody else was told."""
    from plumbline.tasks.storage.versioning.workspace import Versions

    _around(Versions, "commit_stage", lambda _, name: name == stage, behind=True)


def at_work(stage: str, fraction: float, who: str) -> None:
    """When the stage told that this part of its work is done: the run itself ("flow") or its trainer."""
    from plumbline.tasks.pipeline import isolation

    follow = isolation._follow

    def following(process: Any, receiver: Any, it: Any, log: Any, progress: Any, cancelled: Any) -> Any:
        def watching(done: int, total: int, note: str) -> None:
            if it.name == stage and done >= fraction * total:
                os.kill(process.pid if who == "trainer" else os.getpid(), signal.SIGKILL)
            progress(done, total, note)

        return follow(process, receiver, it, log, watching, cancelled)

    isolation._follow = following


def in_migration(step: int) -> None:
    """When this many of the migrations of a new MLflow store are done."""
    from alembic.runtime.migration import HeadMaintainer

    _around(HeadMaintainer, "update_to_step", _once_in(step), behind=False)


def in_mlflow(call: str, number: int) -> None:
    """Behind this call of MLflow's client."""
    from mlflow import MlflowClient

    _around(MlflowClient, call, _once_in(number), behind=True)


def pushing(number: int) -> None:
    """Before this file goes to the remote."""
    from dvc_objects.fs.base import FileSystem

    put = _once_in(number)
    _around(FileSystem, "put_file", put, behind=False)


def before_the_end_of_the_claim() -> None:
    """When the version is registered, and admission does not know how the run ended."""
    from plumbline.flows import fresh

    _around(fresh, "finish_run", lambda *_, **__: True, behind=False)


PLACES = (
    before,
    uncommitted,
    unrecorded,
    committed,
    at_work,
    in_migration,
    in_mlflow,
    pushing,
    before_the_end_of_the_claim,
)
MISSED = 77


def _end_behind(name: str) -> None:
    """Run no stage behind this one, and end there: stages side by side would be done before their own kill."""
    from plumbline.flows import retrain

    every = retrain.bring_up_to_date

    def some(stages: Any, session: Any, params: Any) -> Any:
        ordered = list(stages)
        last = next(at for at, stage in enumerate(ordered) if stage.name == name)
        every(ordered[: last + 1], session, params)
        os._exit(MISSED)

    retrain.bring_up_to_date = some


def _prepare() -> None:
    """Import what a run imports, and start the fork server."""
    from multiprocessing import forkserver

    for name in ("alembic.runtime.migration", "dvc.repo", "dvc.stage", "mlflow.store.tracking.sqlalchemy_store"):
        importlib.import_module(name)
    for name in ("prefect", "plumbline.flows.cli.main", "plumbline.flows.cli.display", "plumbline.flows.fresh"):
        importlib.import_module(name)
    from plumbline.tasks.pipeline.isolation import warm_up

    warm_up()
    # A forked run uses this one's fork server; it cannot ask whether that lives, which only a parent can.
    forkserver.ensure_running = lambda: None
    forkserver.ForkServer.ensure_running = lambda self: None  # type: ignore[method-assign]


def _run(order: dict[str, Any]) -> None:
    """One run, in this process, which ends with it."""
    os.setsid()
    os.chdir(order["root"])
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if order["kill"]:
        place, *arguments = order["kill"]
        next(it for it in PLACES if it.__name__ == place)(*arguments)
        if arguments and arguments[0] in STAGES:
            _end_behind(arguments[0])
    os._exit(_poll() if order.get("poll") else _retrain())


def _retrain() -> int:
    from plumbline.flows.cli.main import main

    sys.argv = ["plumbline", "retrain", "--json"]
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    finally:
        sys.stdout.flush()
    return 0


def _poll() -> int:
    from plumbline.flows.fresh import poll_freshness

    state = poll_freshness(".", return_state=True)
    sys.stdout.write(f"{state.name}: {state.message}\n")
    sys.stdout.flush()
    return 0 if state.is_completed() else 3


def serve() -> None:
    """Fork a run for each line on stdin and answer how it ended: its exit code, or minus the signal."""
    _prepare()
    assert threading.active_count() == 1, "a fork would lose the other threads"
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            _run(json.loads(line))
        _, status = os.waitpid(pid, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    environment.prepare(threads=1)
    serve()
