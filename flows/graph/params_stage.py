"""The first stage of the graph: `params.resolved.yaml` from `params.yaml` and its recipe.

It is made here, not by `tasks.pipeline`, because every other stage takes its params from it. A run writes it and
records it with DVC, so that `dvc repro` finds it made; a value for one run (`--once`) is written and not recorded, so
that the next run, and `dvc repro`, make it anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plumbline.data_contracts.errors import ParamsError
from plumbline.flows.graph.stages import GRAPH_KEYS
from plumbline.tasks.params.layers import load_params
from plumbline.tasks.params.resolved import GRAPH, read_resolved, resolved_values, write_resolved
from plumbline.tasks.params.section import PARAMS_FILE, RESOLVED_FILE
from plumbline.tasks.params.whole import Params
from plumbline.tasks.storage.versioning.lock import PARAMS_STAGE
from plumbline.tasks.storage.versioning.workspace import Versions


def values_for_dvc(params: Params) -> dict[str, Any]:
    """The content of `params.resolved.yaml`."""
    return resolved_values(params, GRAPH_KEYS)


def settle_resolved(root: Path, params: Params, *, passing: bool = False) -> None:
    """Write the params of a run where DVC reads them, and record that. Call it with the workspace held.

    `passing`: they hold for this run alone, so nothing is recorded.
    """
    write_resolved(root, values_for_dvc(params))
    if not passing:
        Versions(root).record(PARAMS_STAGE)


def resolve(root: Path, *, for_dvc: bool) -> None:
    """Make the resolved set of `params.yaml` as it stands. `for_dvc`: `dvc repro` asks for it, before other stages.

    DVC filled `dvc.yaml` before it called: where values that name inputs changed, the graph it works on is of before.
    Then this writes, and raises `ParamsError`, so that DVC starts again.
    """
    before = _graph_of(root)
    values = values_for_dvc(load_params(root)[0])
    write_resolved(root, values)
    if for_dvc and before != values[GRAPH]:
        raise ParamsError(
            f"{root / PARAMS_FILE}: the inputs of stages changed, and DVC had read {RESOLVED_FILE} before. It is "
            f"written now: run `dvc repro` again, or `plumbline retrain`."
        )


def _graph_of(root: Path) -> Mapping[str, Any] | None:
    return read_resolved(root).get(GRAPH) if (root / RESOLVED_FILE).is_file() else None
