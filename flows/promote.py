"""Promotion as a flow, for a deployment: the same verb as `plumbline promote`, on record in Prefect as well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE

from plumbline.data_contracts.errors import CheckFailed
from plumbline.flows.graph.promotion_report import promotion_payload, refusal
from plumbline.tasks.operations.promote_model import Override, Promotion
from plumbline.tasks.operations.promote_model import promote as promote_version
from plumbline.tasks.params.layers import load_params


@flow(name="promote", validate_parameters=False)
def promote(
    root: str = ".",
    model: str | None = None,
    alias: str = "champion",
    reason: str = "",
    override: str | None = None,
    override_reason: str = "",
    actor: str | None = None,
) -> dict[str, Any]:
    """Promote a version (by default the candidate) if its gates, or a named override, let it.

    Returns what `plumbline promote --json` prints. Raises `CheckFailed` with the reasons where a gate said no, so that
    the run is a failed one, and `RegistryError` where another promotion won.
    """
    named = None if override is None else Override(override, override_reason)
    why = reason or override_reason or "asked for through its deployment"
    promotion = examine_and_move(Path(root).resolve(), model, alias, why, named, actor)
    for gate in promotion.gates:
        get_run_logger().info("%s: %s", gate.name, gate.text)
    if not promotion.promoted:
        raise CheckFailed(refusal(promotion))
    return promotion_payload(promotion)


# No retries: a refusal stays one, and a race that was lost is to be decided anew.
@task(name="examine and move", cache_policy=NO_CACHE)
def examine_and_move(
    root: Path, model: str | None, alias: str, reason: str, override: Override | None, actor: str | None
) -> Promotion:
    """Hold the version to the gates and move the alias."""
    params, _ = load_params(root)
    return promote_version(root, params, model, alias, reason=reason, override=override, actor=actor)
