"""The worker of a laptop: Prefect's process worker with flow runs that are already half started.

A flow run's process spends seconds on imports before it runs, and Prefect starts two of them, one after the other (one
prepares the code, one runs it). Here each run takes a process that waits with everything imported (`flows.standby`),
and another takes its place. Polling, states, cancellation and the verdict on a process that died are Prefect's own.

A run that no standby fits, because its folder or environment differs (modules read it while they are imported), gets a
process that begins then; the next standby has that environment. A run of other code, with pull steps or a command of
its own, starts as Prefect starts it.

The folder of the run is on no import path: a `tasks.py` or `random.py` there would take the place of ours or Python's.
"""

from __future__ import annotations

import abc
import argparse
import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.flows import Flow, load_flow_from_entrypoint
from prefect.runner._control_channel import ControlChannel
from prefect.runner._flow_run_executor import FlowRunExecutionResult, FlowRunExecutorContext
from prefect.runner._process_manager import ProcessHandle, create_isolated_termination_scope
from prefect.settings import PREFECT_WORKER_HEARTBEAT_SECONDS, get_current_settings
from prefect.utilities.processutils import sanitize_subprocess_env, setup_signal_handlers_worker
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker, ProcessWorkerResult

from flows.deployments import describe
from flows.environment import ENVIRONMENT
from flows.params import Params
from tasks.services.plan import WORK_POOL

ENTRYPOINTS = tuple(item.entrypoint for item in describe(Params(), ""))
_RUN_VARIABLES = "PREFECT__"  # what Prefect tells one process of its run; everything else is told to all
_REPLACE_AFTER_S = 3.0  # by then the run before is under way, and the imports of the next do not slow its start


class Standbys:
    """Processes that wait for a run, all with one environment and one folder."""

    def __init__(self, count: int, folder: Path) -> None:
        self.folder = folder
        self._count = count
        self._environment = _shared_environment(ENVIRONMENT)
        self._waiting: list[anyio.abc.Process] = []
        self._closed = False
        self._changing = asyncio.Lock()

    async def fill(self, environment: Mapping[str, str] | None = None) -> None:
        """Start what is missing; with another environment where one is given, in place of those that wait."""
        async with self._changing:
            wanted = self._environment if environment is None else _shared(environment)
            if wanted != self._environment:
                self._environment = wanted
                await self._end()
            self._waiting = [process for process in self._waiting if process.returncode is None]
            while len(self._waiting) < self._count and not self._closed:
                self._waiting.append(await self.begin(self._environment, self.folder))

    def take(self, environment: Mapping[str, str], folder: Path) -> anyio.abc.Process | None:
        """One that waits for a run with this environment in this folder, no longer kept here; None where none fits."""
        if folder != self.folder or _shared(environment) != self._environment:
            return None
        while self._waiting:
            process = self._waiting.pop(0)
            if process.returncode is None:
                return process
        return None

    async def begin(self, environment: Mapping[str, str], folder: Path) -> anyio.abc.Process:
        """Start one with this environment (but for what is told of one run) in this folder; it is not kept here."""
        # Its own session, as Prefect gives its runs: a signal to the run reaches what the run has started.
        return await anyio.open_process(
            [sys.executable, "-m", "flows.standby", *ENTRYPOINTS],
            stdin=subprocess.PIPE,
            stdout=None,
            stderr=None,
            cwd=folder,
            env=_shared(environment),
            start_new_session=True,
        )

    async def close(self) -> None:
        """End those that wait, and start no more."""
        self._closed = True
        await self._end()

    async def _end(self) -> None:
        while self._waiting:
            await _release(self._waiting.pop())


async def _release(process: anyio.abc.Process) -> None:
    """End a process unless it has ended, and let go of its pipe."""
    if process.returncode is None:
        process.terminate()
    with anyio.CancelScope(shield=True):
        await process.aclose()


def _shared_environment(given: Mapping[str, str | None]) -> dict[str, str]:
    """The environment of a process of this worker but for what it is told of its run, as Prefect composes it."""
    settings = get_current_settings().to_environment_variables(exclude_unset=True)
    return _shared(sanitize_subprocess_env({**os.environ, **settings, **given}))


def _shared(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.startswith(_RUN_VARIABLES)}


class Starter:
    """Hands one run to a process that waits, and sees it to its end (Prefect's protocol of a starter)."""

    def __init__(self, process: anyio.abc.Process, environment: Mapping[str, str], channel: ControlChannel) -> None:
        self._process = process
        self._environment = environment
        self._channel = channel

    async def start(
        self,
        flow_run: FlowRun,
        task_status: anyio.abc.TaskStatus[ProcessHandle] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        """Tell the process its run; return when it has ended."""
        process = self._process
        assert process.stdin is not None
        try:
            await process.stdin.send(json.dumps({**self._environment, **self._control(flow_run)}).encode())
            await process.stdin.aclose()
            scope = create_isolated_termination_scope(process.pid)
            task_status.started(ProcessHandle(process, termination_scope=scope))
            await process.wait()
        finally:
            await _release(process)  # alive only where the worker itself was told to end at once

    def _control(self, flow_run: FlowRun) -> dict[str, str]:
        try:
            port, token = self._channel.register(flow_run.id)
        except RuntimeError:  # no port was free for the channel: Prefect then cancels by a signal alone
            return {}
        return {"PREFECT__CONTROL_PORT": str(port), "PREFECT__CONTROL_TOKEN": token}


class WarmWorker(ProcessWorker, abc.ABC):  # abc.ABC: not put into Prefect's registry in place of its own
    """Prefect's process worker, with `standbys` processes that wait for a run of its folder."""

    def __init__(self, *arguments: Any, standbys: int, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._standbys = Standbys(standbys, Path.cwd().resolve())

    async def setup(self) -> None:
        """Start the standbys, then whatever Prefect sets up."""
        await super().setup()
        await self._fill()

    async def teardown(self, *exc_info: Any) -> None:
        """End the standbys; runs that are under way end as Prefect has it."""
        await self._standbys.close()
        await super().teardown(*exc_info)

    async def run(
        self,
        flow_run: FlowRun,
        configuration: ProcessJobConfiguration,
        task_status: anyio.abc.TaskStatus[int] | None = None,
    ) -> ProcessWorkerResult:
        """Hand the run to a standby that fits, or start it as Prefect does; then see to the next standby."""
        deployment: DeploymentResponse | None = configuration._related_objects.get("deployment")
        if deployment is None or not _is_plain(deployment, configuration):
            return await super().run(flow_run, configuration, task_status)
        folder = Path(configuration.working_dir or "").resolve()
        environment = _run_environment(flow_run, deployment, configuration, folder)
        process = self._standbys.take(environment, folder) or await self._begin(environment, folder)
        assert self._runs_task_group is not None
        self._runs_task_group.start_soon(self._replace, environment if folder == self._standbys.folder else None)
        if process is None:
            return await super().run(flow_run, configuration, task_status)
        try:
            return await _run_in(process, flow_run, deployment, environment, task_status or anyio.TASK_STATUS_IGNORED)
        finally:
            await _release(process)  # alive only where the run was cancelled before it was told

    async def _begin(self, environment: Mapping[str, str], folder: Path) -> anyio.abc.Process | None:
        try:
            return await self._standbys.begin(environment, folder)
        except OSError as error:  # no memory, no process left, or no such folder: Prefect says so of the run
            self._logger.warning("no process could be started for the run: %s", error)
            return None

    async def _replace(self, environment: Mapping[str, str] | None) -> None:
        await anyio.sleep(_REPLACE_AFTER_S)
        await self._fill(environment)

    async def _fill(self, environment: Mapping[str, str] | None = None) -> None:
        try:
            await self._standbys.fill(environment)
        except OSError as error:  # no memory or no process left: runs start cold, and the next one asks again
            self._logger.warning("no process could be started to wait for the next run: %s", error)


def _is_plain(deployment: DeploymentResponse, configuration: ProcessJobConfiguration) -> bool:
    """Whether the run is one of our installed flows in a folder that is there already."""
    fetched = deployment.pull_steps or deployment.storage_document_id or deployment.path
    return (
        deployment.entrypoint in ENTRYPOINTS
        and not fetched
        and not configuration._command_configured
        and configuration.stream_output
        and configuration.working_dir is not None
    )


def _run_environment(
    flow_run: FlowRun, deployment: DeploymentResponse, configuration: ProcessJobConfiguration, folder: Path
) -> dict[str, str]:
    """What Prefect tells the process of this run (`prefect.runner._starter_engine`, `_workspace_supervisor`)."""
    given = sanitize_subprocess_env({**os.environ, **configuration.env})
    told = {name: value for name, value in given.items() if name.startswith(_RUN_VARIABLES)}
    return {
        **_shared_environment(configuration.env),
        **told,
        "PREFECT__FLOW_RUN_ID": str(flow_run.id),
        "PREFECT__FLOW_ENTRYPOINT": str(deployment.entrypoint),
        "PREFECT__ENABLE_CANCELLATION_AND_CRASHED_HOOKS": "false",
    }


async def _run_in(
    process: anyio.abc.Process,
    flow_run: FlowRun,
    deployment: DeploymentResponse,
    environment: Mapping[str, str],
    task_status: anyio.abc.TaskStatus[int],
) -> ProcessWorkerResult:
    """`ProcessWorker.run` with a process that is there already."""

    async def resolve(_: FlowRun) -> Flow[..., Any]:
        return await asyncio.to_thread(load_flow_from_entrypoint, str(deployment.entrypoint))

    executions: list[FlowRunExecutionResult | None] = []
    async with FlowRunExecutorContext() as context:
        starter = Starter(process, environment, context.control_channel)
        executor = context.create_executor(flow_run, starter, resolve_flow=resolve, propose_submitting=False)

        async def execute(*, task_status: anyio.abc.TaskStatus[ProcessHandle]) -> None:
            executions.append(await executor.submit(task_status=task_status))

        async with anyio.create_task_group() as group:
            handle: ProcessHandle = await group.start(execute)
            task_status.started(process.pid)
    (execution,) = executions
    if execution is None or execution.status_code is None:
        raise RuntimeError("the flow run's process could not be started")
    return ProcessWorkerResult(status_code=execution.status_code, identifier=str(handle.pid))


async def _work(name: str, limit: int, standbys: int) -> None:
    setup_signal_handlers_worker(os.getpid(), "the worker", _say)
    worker = WarmWorker(
        name=name,
        work_pool_name=WORK_POOL,
        limit=limit,
        heartbeat_interval_seconds=int(PREFECT_WORKER_HEARTBEAT_SECONDS.value()),
        standbys=standbys,
    )
    try:
        await worker.start(printer=_say)
    except asyncio.CancelledError:  # SIGINT, which is also what SIGTERM becomes
        _say(f"Worker {name!r} stopped!")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main(argv: list[str] | None = None) -> None:
    """Take runs of the pool until told to end, in the present folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--name", required=True, help="the worker's name at the server")
    parser.add_argument("--limit", type=int, required=True, help="flow runs at once")
    parser.add_argument("--standbys", type=int, required=True, help="processes that wait for a run")
    given = parser.parse_args(argv)
    asyncio.run(_work(given.name, given.limit, given.standbys))


if __name__ == "__main__":
    main()
