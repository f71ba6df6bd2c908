"""The worker of a workspace: Prefect's process worker for the runs that the workspace registered.

Only runs of the deployments that this workspace registered are taken, as it registered them
(`flows.deployment.registered_runs`); any other ends as Crashed, with the reason. On a server that the user named,
those of other workspaces are left to them.

Each run is one process with its own session (`flows.deployment.run_engine`). Prefect would start two, and ask the
server for the entrypoint again. Polling, states, cancellation and the verdict on a process that died are Prefect's own.
"""

from __future__ import annotations

import abc
import argparse
import asyncio
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse, WorkerFlowRunResponse
from prefect.exceptions import ObjectNotFound
from prefect.flows import Flow, load_flow_from_entrypoint
from prefect.settings import PREFECT_WORKER_HEARTBEAT_SECONDS
from prefect.utilities.processutils import command_to_string, setup_signal_handlers_worker
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker, ProcessWorkerResult

from plumbline.data_contracts.errors import OperationsError
from plumbline.data_contracts.private_names import private_names, require_names
from plumbline.flows.deployment.deployments import job_variables
from plumbline.flows.deployment.registered_runs import is_anothers, refusal
from plumbline.tasks.operations.services.plan import WORK_POOL

with private_names("prefect"):
    from prefect.runner._flow_run_executor import FlowRunExecutorContext
    from prefect.runner._process_manager import ProcessHandle
    from prefect.runner._starter_engine import EngineCommandStarter

require_names("prefect", ProcessWorker, "_get_scheduled_flow_runs")
require_names("prefect", ProcessJobConfiguration, "_command_configured", "_related_objects")

_COMMAND = command_to_string([sys.executable, "-m", "plumbline.flows.deployment.run_engine"])


class RefusedRun(OperationsError):
    """A flow run in the pool that this workspace did not register, or not so."""


class WorkspaceWorker(ProcessWorker, abc.ABC):  # abc.ABC: not put into Prefect's registry in place of its own
    """Prefect's process worker for the runs of one workspace.

    `shared`: the server has work of other workspaces too, which is left to their workers.
    """

    def __init__(self, *arguments: Any, shared: bool, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._root = Path.cwd().resolve()
        self._shared = shared
        self._names: dict[Any, str] = {}  # deployment id -> name

    async def run(
        self,
        flow_run: FlowRun,
        configuration: ProcessJobConfiguration,
        task_status: anyio.abc.TaskStatus[int] | None = None,
    ) -> ProcessWorkerResult:
        """Start the run's process and wait for its end. Raises `RefusedRun`."""
        deployment = await self._checked(flow_run, configuration)
        entrypoint = str(deployment.entrypoint)
        return await _run(flow_run, configuration, entrypoint, _Started(task_status or anyio.TASK_STATUS_IGNORED))

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


class _Started:
    """Passes the id of a process on when Prefect says that it has started."""

    def __init__(self, task_status: anyio.abc.TaskStatus[int]) -> None:
        self._task_status = task_status

    def started(self, value: ProcessHandle | None = None) -> None:
        assert value is not None and value.pid is not None
        self._task_status.started(value.pid)


async def _run(
    flow_run: FlowRun, configuration: ProcessJobConfiguration, entrypoint: str, started: _Started
) -> ProcessWorkerResult:
    """`ProcessWorker.run` with our command, a session of its own, and the entrypoint that was checked."""

    async def resolve(_: FlowRun) -> Flow[..., Any]:
        return await asyncio.to_thread(load_flow_from_entrypoint, entrypoint)

    async with FlowRunExecutorContext() as context:
        starter = EngineCommandStarter(
            command=_COMMAND,
            cwd=configuration.working_dir,
            env=configuration.env,
            entrypoint=entrypoint,
            stream_output=configuration.stream_output,
            control_channel=context.control_channel,
            isolate_process_group=True,
            env_overrides_settings=True,
        )
        executor = context.create_executor(flow_run, starter, resolve_flow=resolve, propose_submitting=False)
        execution = await executor.submit(task_status=started)
    if execution is None or execution.status_code is None:
        raise RuntimeError("the flow run's process could not be started")
    return ProcessWorkerResult(status_code=execution.status_code, identifier=str(execution.handle.pid))


async def _work(name: str, limit: int, shared: bool) -> None:
    setup_signal_handlers_worker(os.getpid(), "the worker", _say)
    worker = WorkspaceWorker(
        name=name,
        work_pool_name=WORK_POOL,
        limit=limit,
        heartbeat_interval_seconds=int(PREFECT_WORKER_HEARTBEAT_SECONDS.value()),
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
    parser.add_argument("--shared", action="store_true", help="the server has work of other workspaces too")
    given = parser.parse_args(argv)
    asyncio.run(_work(given.name, given.limit, given.shared))


if __name__ == "__main__":
    main()
