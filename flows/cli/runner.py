"""Flows and stages in this process: params settled, a Prefect server found or started, the stages on display."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from plumbline.data_contracts.errors import UsageError
from plumbline.flows.cli.output import Output
from plumbline.flows.cli.temporary_server import naming_its_end, temporary_server
from plumbline.flows.graph import environment
from plumbline.flows.graph.params_stage import resolve
from plumbline.flows.graph.preflight import settle_params
from plumbline.flows.graph.stages import STAGES
from plumbline.flows.graph.up_to_date import up_to_date
from plumbline.flows.graph.workspaces import exclusive_run
from plumbline.tasks.params.resolved import load_resolved
from plumbline.tasks.params.whole import Params
from plumbline.tasks.storage.versioning.lock import PARAMS_STAGE

if TYPE_CHECKING:
    from plumbline.tasks.evaluation.compare_policies import Compared
    from plumbline.tasks.evaluation.self_play import SelfPlayed
    from plumbline.tasks.operations.settle_champion import Settled


def retrain_here(
    root: Path, overlays: Sequence[Path], settings: Sequence[str], output: Output, once: Sequence[str] = ()
) -> tuple[Settled, float]:
    """Write params to `params.yaml`, but not `once`, and run the flow; what it registered, and the seconds it took.

    A flow that would have nothing to do is not started: its imports and a server of its own take 15 s of CPU.
    """
    started = time.monotonic()
    params = _settled(root, overlays, settings, output, once)
    with exclusive_run(root):
        registered = up_to_date(root, params, passing=bool(once))
    if registered is None:
        registered = _run_retrain(root, output, once)
    else:
        output.remark("Nothing to do: every stage is up to date, and its model is registered.")
    return registered, time.monotonic() - started


def _run_retrain(root: Path, output: Output, once: Sequence[str]) -> Settled:
    with _server(root):
        from plumbline.flows.retrain import retrain

    with output.display(list(STAGES.values())), naming_its_end():
        return retrain(root=str(root), once=list(once), ingest=False)  # `up_to_date` did


def compare_here(
    root: Path, overlays: Sequence[Path], settings: Sequence[str], output: Output, once: Sequence[str] = ()
) -> Compared:
    """Write params to `params.yaml`, but not `once`, and run the comparison."""
    params = _settled(root, overlays, settings, output, once, comparing=True)
    with _server(root):
        from plumbline.flows.compare import compare, shown_stages

    with output.display(shown_stages(params)), naming_its_end():
        return compare(root=str(root), once=list(once))


def self_play_here(
    root: Path, overlays: Sequence[Path], settings: Sequence[str], output: Output, once: Sequence[str] = ()
) -> SelfPlayed:
    """Write params to `params.yaml`, but not `once`, answer, judge and ingest; no Prefect server is needed."""
    from plumbline.tasks.evaluation import self_play as verb

    with exclusive_run(root):
        params = _settled(root, overlays, settings, output, once)
        with output.display([verb.STAGE]):
            return verb.self_play(root, params)


def _settled(
    root: Path,
    overlays: Sequence[Path],
    settings: Sequence[str],
    output: Output,
    once: Sequence[str],
    *,
    comparing: bool = False,
) -> Params:
    params, changed = settle_params(root, overlays, settings, once, comparing=comparing)
    for line in changed:
        output.remark(f"params.yaml: {line}")
    return params


@contextmanager
def _server(root: Path) -> Iterator[None]:
    """Inside, a temporary server starts unless one is configured: import there. Afterwards the server answers."""
    environment.quiet_prefect()
    with temporary_server(root):
        from plumbline.tasks.pipeline.isolation import warm_up

        warm_up()
        yield
    _require_server()


def stage_here(root: Path, name: str) -> None:
    """Run one stage in this process. DVC calls it (`dvc repro`) and commits what it wrote.

    By hand, it runs under the params as they stand now; for DVC, under those that DVC has recorded it to run under.
    """
    if name not in (PARAMS_STAGE, *STAGES):
        raise UsageError(f"{name}: unknown stage; expected one of {', '.join((PARAMS_STAGE, *STAGES))}.")
    by_dvc = "DVC_STAGE" in os.environ
    if name == PARAMS_STAGE or not by_dvc:
        resolve(root, for_dvc=by_dvc)
    if name == PARAMS_STAGE:
        return
    params = load_resolved(root)
    environment.prepare(params.threads, root)
    from plumbline.flows.cli.display import Display
    from plumbline.tasks.pipeline.isolation import end_with_driver
    from plumbline.tasks.pipeline.stage import execute

    stage = STAGES[name]
    if by_dvc:
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
