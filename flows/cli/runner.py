"""`plumbline retrain` and `plumbline stage`: run the flow or one stage from the command line and report."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType

from plumbline.data_contracts.errors import UsageError
from plumbline.flows.cli.comparison_report import comparison_payload, comparison_view
from plumbline.flows.cli.output import Output
from plumbline.flows.cli.report import payload_of, tables_of
from plumbline.flows.cli.temporary_server import naming_its_end, temporary_server
from plumbline.flows.graph import environment
from plumbline.flows.graph.preflight import settle_params
from plumbline.flows.graph.stages import STAGES
from plumbline.tasks.params.document import load_params


@dataclass(frozen=True, slots=True)
class CompareReport:
    """What `plumbline compare` prints, and the labels of the variants that failed."""

    failed: list[str]
    payload: dict[str, Any]
    view: Callable[[], RenderableType]


@dataclass(frozen=True, slots=True)
class RetrainReport:
    """What `plumbline retrain` prints, and whether the gate passed."""

    passed: bool
    payload: dict[str, Any]
    view: Callable[[], RenderableType]


def retrain_here(root: Path, overlays: Sequence[Path], settings: Sequence[str], output: Output) -> RetrainReport:
    """Validate params, write them to `params.yaml`, run the flow and report on it."""
    started = time.monotonic()
    _, changed = settle_params(root, overlays, settings)
    for line in changed:
        output.remark(f"params.yaml: {line}")
    environment.quiet_prefect()
    with temporary_server(root):
        from plumbline.tasks.pipeline.isolation import warm_up

        warm_up()
        from plumbline.flows.cli.display import Display
        from plumbline.flows.retrain import retrain

    _require_server()
    with Display(list(STAGES.values())), naming_its_end():
        registered = retrain(root=str(root))
    seconds = time.monotonic() - started
    return RetrainReport(
        registered.passed, payload_of(registered, seconds), lambda: Group(*tables_of(registered, seconds, root))
    )


def compare_here(root: Path, overlays: Sequence[Path], settings: Sequence[str], output: Output) -> CompareReport:
    """Validate params and variants, write params to `params.yaml`, run the comparison and report on it."""
    params, changed = settle_params(root, overlays, settings, comparing=True)
    for line in changed:
        output.remark(f"params.yaml: {line}")
    environment.quiet_prefect()
    with temporary_server(root):
        from plumbline.tasks.pipeline.isolation import warm_up

        warm_up()
        from plumbline.flows.cli.display import Display
        from plumbline.flows.compare import compare, shown_stages

        shown = shown_stages(params)
    _require_server()
    with Display(shown), naming_its_end():
        compared = compare(root=str(root))
    return CompareReport(list(compared.failed), comparison_payload(compared), lambda: comparison_view(compared))


def stage_here(root: Path, name: str) -> None:
    """Run one stage in this process. DVC calls it (`dvc repro`) and commits what it wrote."""
    if name not in STAGES:
        raise UsageError(f"{name}: unknown stage; expected one of {', '.join(STAGES)}.")
    params, _ = load_params(root)
    environment.prepare(params.threads, root)
    from plumbline.flows.cli.display import Display
    from plumbline.tasks.pipeline.isolation import end_with_driver
    from plumbline.tasks.pipeline.stage import execute

    stage = STAGES[name]
    if "DVC_STAGE" in os.environ:
        end_with_driver()
    with Display([stage]) as display:
        display.started(stage)
        execute(stage, root, params, display.progress(stage))


def _require_server() -> None:
    """Say which Prefect server does not answer, or is another version, before the client does in a hundred lines."""
    from prefect.client.orchestration import get_client
    from prefect.exceptions import PrefectHTTPStatusError
    from prefect.settings import PREFECT_API_URL

    from plumbline.tasks.operations.services.health import refused_credentials, require_version, why_silent

    url = PREFECT_API_URL.value()
    if not url:
        return
    client = get_client(sync_client=True)
    error = client.api_healthcheck()
    if error is not None:
        raise UsageError(
            f"PREFECT_API_URL: expected a Prefect server at {url}, found none ({why_silent(error)}). Start it "
            f"(`plumbline up`), correct the URL, or unset it for a temporary server of the run's own."
        )
    try:
        require_version(url.rstrip("/"), "PREFECT_API_URL", client.api_version())
    except PrefectHTTPStatusError as refusal:
        if refusal.response.status_code == 401:
            raise UsageError(refused_credentials(url)) from None
        raise
