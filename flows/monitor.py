"""The monitor as a flow: look, log to MLflow, publish, and fail if a finding could not be sent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from plumbline.data_contracts.errors import OperationsError
from plumbline.flows.deployment.servers import server_url
from plumbline.tasks.operations.monitor_policy import monitor_policy
from plumbline.tasks.operations.monitoring.report import markdown
from plumbline.tasks.params.layers import load_params
from plumbline.tasks.params.whole import Params
from plumbline.tasks.registry.store.runs import open_run


@flow(name="monitor", validate_parameters=False)
def monitor(root: str = ".", look: str | None = None) -> dict[str, Any]:
    """Take one look (by default that of the day) at the champion; returns the report.

    A finding asks for a retraining run, once. Raises `OperationsError`, after the report is written, where a finding
    could not be sent to the server.
    """
    workspace = Path(root).resolve()
    params, _ = load_params(workspace)
    report = take_look(workspace, params, look)
    log_look(workspace, params, report)
    create_markdown_artifact(markdown(report), key="monitor", description="What the monitor sees.")
    for reading in report["readings"]:
        get_run_logger().info("%s: %s: %s", reading["name"], reading["verdict"], reading["why"])
    untold = [request["state"] for request in report["requests"].values() if request["state"].startswith("not sent")]
    if untold:
        raise OperationsError(f"a finding could not be sent to the server: {untold[0]}")
    return report


# Looking again counts nothing twice, so a failed look may be repeated.
@task(name="look", cache_policy=NO_CACHE, retries=1, retry_delay_seconds=5)
def take_look(root: Path, params: Params, look: str | None) -> dict[str, Any]:
    """One look of the monitor."""
    return monitor_policy(root, params, look=look, server=server_url())


@task(name="log look", cache_policy=NO_CACHE)
def log_look(root: Path, params: Params, report: dict[str, Any]) -> None:
    """A run in MLflow with every reading's figures and the report."""
    names = ("value", "low", "high", "n", "threshold", "smallest_difference", "log_e")
    figures = {
        reading["name"]: {name: reading[name] for name in names if reading[name] is not None}
        | {"finding": reading["verdict"] == "finding"}
        for reading in report["readings"]
    }
    tags = {"plumbline.monitor.champion": report["champion"] or "none", "plumbline.monitor.look": report["look"]}
    with open_run(root, params.registry, flow_run_id=str(flow_run.id), name="monitor") as run:
        run.log_outcome(figures, params.monitor.model_dump(mode="json"), tags)
        run.log_files(root / report["path"], "monitor")
