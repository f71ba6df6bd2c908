"""The worker of a laptop: Prefect's process worker with flow runs that are already half started.

A flow run's process spends seconds on imports before it runs, and Prefect starts two of them, one after the other (one
prepares the code, one runs it). Here each run takes a process that waits with everything imported
(`flows.deployment.standby`), and another takes its place. Polling, states, cancellation and the verdict on
a process that died are Prefect's own.

Only runs of the deployments that this workspace registered are taken, as it registered them
(`flows.deployment.registered_runs`); any other ends as Crashed, with the reason. On a server that the user named,
those of other workspaces are left to them.

The folder of the run is on no import path: a `plumbline.py` or `random.py` there would take
the place of ours or Python's.
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
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse, WorkerFlowRunResponse
from prefect.exceptions import ObjectNotFound
from prefect.flows import Flow, load_flow_from_entrypoint
from prefect.settings import PREFECT_WORKER_HEARTBEAT_SECONDS, get_current_settings
from prefect.utilities.processutils import sanitize_subprocess_env, setup_signal_handlers_worker
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker, ProcessWorkerResult

from plumbline.data_contracts.errors import OperationsError
from plumbline.data_contracts.private_names import private_names, require_names
from plumbline.flows.deployment.deployments import describe, job_variables
from plumbline.flows.deployment.registered_runs import is_anothers, refusal
from plumbline.flows.graph.environment import ENVIRONMENT
from plumbline.tasks.operations.services.plan import WORK_POOL
from plumbline.tasks.params.whole import Params

with private_names("prefect"):
    from prefect.runner._control_channel import ControlChannel
    from prefect.runner._flow_run_executor import FlowRunExecutionResult, FlowRunExecutorContext
    from prefect.runner._process_manager import ProcessHandle, create_isolated_termination_scope

require_names("prefect", ProcessWorker, "_get_scheduled_flow_runs", "_submit_run_and_capture_errors")
require_names("prefect", ProcessJobConfiguration, "_base_environment")

ENTRYPOINTS = tuple(item.entrypoint for item in describe(Params(), ""))
_RUN_VARIABLES = "PREFECT__"  # Prefect's variables for one process and its run; all others go to every process
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

    async def fill(self) -> None:
        """Start what is missing."""
        async with self._changing:
            self._waiting = [process for process in self._waiting if process.returncode is None]
            while len(self._waiting) < self._count and not self._closed:
                self._waiting.append(await self._begin(self._environment))

    async def take(self, environment: Mapping[str, str]) -> anyio.abc.Process:
        """One for a run with this environment, no longer kept here: one that waits, or a new one."""
        while self._waiting and _shared(environment) == self._environment:
            process = self._waiting.pop(0)
            if process.returncode is None:
                return process
        return await self._begin(_shared(environment))

    async def _begin(self, environment: Mapping[str, str]) -> anyio.abc.Process:
        # Its own session, as Prefect gives its runs: a signal to the run reaches what the run has started.
        return await anyio.open_process(
            [sys.executable, "-m", "plumbline.flows.deployment.standby", *ENTRYPOINTS],
            stdin=subprocess.PIPE,
            stdout=None,
            stderr=None,
            cwd=self.folder,
            env=environment,
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
    """The environment of a process of this worker without the variables of its run, as Prefect composes it."""
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
        """Send the process its run; return when it has ended."""
        process = self._process
        assert process.stdin is not None
        try:
            await process.stdin.send(json.dumps({**self._environment, **self._control(flow_run)}).encode())
            await process.stdin.aclose()
            scope = create_isolated_termination_scope(process.pid)
            task_status.started(ProcessHandle(process, termination_scope=scope))
            await process.wait()
        finally:
            await _release(process)  # alive only if the worker itself had to end at once

    def _control(self, flow_run: FlowRun) -> dict[str, str]:
        try:
            port, token = self._channel.register(flow_run.id)
        except RuntimeError:  # no port was free for the channel: Prefect then cancels by a signal alone
            return {}
        return {"PREFECT__CONTROL_PORT": str(port), "PREFECT__CONTROL_TOKEN": token}


class RefusedRun(OperationsError):
    """A flow run in the pool that this workspace did not register, or not so."""


class WarmWorker(ProcessWorker, abc.ABC):  # abc.ABC: not put into Prefect's registry in place of its own
    """Prefect's process worker for the runs of one workspace, with `standbys` processes that wait for one.

    `shared`: the server has work of other workspaces too, which is left to their workers.
    """

    def __init__(self, *arguments: Any, standbys: int, shared: bool, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._root = Path.cwd().resolve()
        self._standbys = Standbys(standbys, self._root)
        self._shared = shared
        self._names: dict[Any, str] = {}  # deployment id -> name

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
        """Hand the run to a process that waits, or to a new one; then see to the next. Raises `RefusedRun`."""
        deployment = await self._checked(flow_run, configuration)
        environment = _run_environment(flow_run, deployment, configuration)
        process = await self._standbys.take(environment)
        assert self._runs_task_group is not None
        self._runs_task_group.start_soon(self._replace)
        try:
            return await _run_in(process, flow_run, deployment, environment, task_status or anyio.TASK_STATUS_IGNORED)
        finally:
            await _release(process)  # alive only if the run was cancelled before it was sent

    async def _checked(self, flow_run: FlowRun, configuration: ProcessJobConfiguration) -> DeploymentResponse:
        related = configuration._related_objects
        deployment: DeploymentResponse | None = related.get("deployment")
        wanted: ProcessJobConfiguration = await ProcessJobConfiguration.from_template_and_values(
            base_job_template=ProcessWorker.get_default_base_job_template(),
            values=job_variables(str(self._root)),
            client=self.client,
        )
        wanted.prepare_for_flow_run(
            flow_run, deployment, related.get("flow"), self.work_pool, self.name, worker_id=self.backend_id
        )
        reason = refusal(flow_run, deployment, configuration, wanted, self._root)
        if reason is not None or deployment is None:
            message = (
                f"refused: expected a run as `plumbline deploy` registers it for {self._root}, found that {reason}. "
                f"Nothing of it was started. If it is yours, run `plumbline deploy` and start it again."
            )
            _say(f"Flow run {flow_run.name!r} ({flow_run.id}) {message}")
            raise RefusedRun(message)
        return deployment

    async def _get_scheduled_flow_runs(self) -> list[WorkerFlowRunResponse]:
        found = await super()._get_scheduled_flow_runs()
        return [item for item in found if not await self._is_anothers(item.flow_run)] if self._shared else found

    async def _is_anothers(self, flow_run: FlowRun) -> bool:
        known = flow_run.deployment_id
        if known is not None and known not in self._names:
            with suppress(ObjectNotFound):  # Prefect cancels its runs
                self._names[known] = (await self.client.read_deployment(known)).name
        return known is not None and is_anothers(self._names.get(known, ""), self._root)

    async def _replace(self) -> None:
        await anyio.sleep(_REPLACE_AFTER_S)
        await self._fill()

    async def _fill(self) -> None:
        try:
            await self._standbys.fill()
        except OSError as error:  # no memory or no process left: runs start cold, and the next one asks again
            self._logger.warning("no process could be started to wait for the next run: %s", error)


def _run_environment(
    flow_run: FlowRun, deployment: DeploymentResponse, configuration: ProcessJobConfiguration
) -> dict[str, str]:
    """Prefect's variables for the process of this run (`prefect.runner._starter_engine`, `_workspace_supervisor`).

    The entrypoint is that which was checked: the process does not ask the server for it again.
    """
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


async def _work(name: str, limit: int, standbys: int, shared: bool) -> None:
    setup_signal_handlers_worker(os.getpid(), "the worker", _say)
    worker = WarmWorker(
        name=name,
        work_pool_name=WORK_POOL,
        limit=limit,
        heartbeat_interval_seconds=int(PREFECT_WORKER_HEARTBEAT_SECONDS.value()),
        standbys=standbys,
        shared=shared,
    )
    try:
        await worker.start(printer=_say)
    except asyncio.CancelledError:  # SIGINT, which is also what SIGTERM becomes
        _say(f"Worker {name!r} stopped!")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main(argv: list[str] | None = None) -> None:
    """Take runs of the pool until a signal ends it, in the present folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--name", required=True, help="the worker's name at the server")
    parser.add_argument("--limit", type=int, required=True, help="flow runs at once")
    parser.add_argument("--standbys", type=int, required=True, help="processes that wait for a run")
    parser.add_argument("--shared", action="store_true", help="the server has work of other workspaces too")
    given = parser.parse_args(argv)
    asyncio.run(_work(given.name, given.limit, given.standbys, given.shared))


if __name__ == "__main__":
    main()
