"""The plan of a run, for a person: `plumbline retrain --dry-run`."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from plumbline.flows.graph.plan import RunPlan

_ACTIONS = {
    "reuse": "reused",
    "record": "reused, put into DVC's cache again",
    "restore": "out of DVC's cache",
    "follow": "RUN, unless its inputs come out the same",
    "run": "RUN",
}


def plan_view(plan: RunPlan) -> RenderableType:
    """The stages with their reasons, then model, records, minutes and disk."""
    lines = [*_changes(plan), *_model(plan), *_records(plan), _minutes(plan), *_disk(plan), _closing(plan)]
    return Group(_stages(plan), Text("\n".join(lines)))


def _stages(plan: RunPlan) -> Table:
    table = Table("stage", "", "last run, s", "why", box=None, title="Stages", title_justify="left")
    table.columns[2].justify = "right"
    table.columns[3].overflow = "fold"
    for stage in plan.stages:
        seconds = "" if stage.last_seconds is None else f"{stage.last_seconds:.1f}"
        table.add_row(stage.name, _ACTIONS[stage.standing.action], seconds, escape("\n".join(stage.why)))
    return table


def _changes(plan: RunPlan) -> Iterator[str]:
    for line in plan.params_changed:
        yield f"params.yaml would change: {line}"


def _model(plan: RunPlan) -> Iterator[str]:
    count = plan.model["parameters"]
    size = "a size that is known once it is here" if count is None else f"{count:,} parameters"
    yield f"\nModel:    {plan.model['base']} ({size}), then {' -> '.join(plan.model['methods'])}"


def _records(plan: RunPlan) -> Iterator[str]:
    for batch in plan.to_ingest:
        state = "to be ingested" if batch["new"] else "in the raw store already"
        yield f"Feedback: {batch['path']}: {batch['rows']} rows of {batch['source']}, {state}"
    counts = plan.records
    if counts is None:
        yield "Records:  not counted yet; `plumbline validate` counts those of a file"
    else:
        splits = ", ".join(f"{name} {count}" for name, count in counts["splits"].items())
        yield f"Records:  at the last run read {counts['read']}, accepted {counts['accepted']} ({splits})"


def _minutes(plan: RunPlan) -> str:
    known = [stage.last_seconds for stage in plan.to_run if stage.last_seconds is not None]
    if not plan.to_run:
        return "Time:     no stage would run"
    missing = [stage.name for stage in plan.to_run if stage.last_seconds is None]
    aside = f"; no record of {', '.join(missing)}" if missing else ""
    return f"Time:     about {sum(known) / 60:.1f} min one after the other, by the last run of each stage{aside}"


def _disk(plan: RunPlan) -> Iterator[str]:
    disk = plan.disk
    yield (
        f"Disk:     {decimal(disk['added_bytes'])} stay (each output {disk['copies']} times: workspace, DVC's cache"
        f"{', remote' if disk['copies'] == 3 else ''}), {decimal(disk['working_bytes'])} more while it runs; "
        f"{decimal(disk['free_bytes'])} are free"
    )
    if disk["not_known_of"]:
        yield f"          not estimated: {', '.join(disk['not_known_of'])}"
    if not disk["enough"]:
        yield "          NOT ENOUGH: free some, or `plumbline doctor` says what takes it"


def _closing(plan: RunPlan) -> str:
    if plan.model_uri is not None:
        return f"\nNothing to do: every stage is up to date, and its model is {plan.model_uri}."
    return f"\nA run would register a version of {plan.model['name']}. Nothing was changed."
