"""What the audit commands do: load params, call one verb, print or write."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import orjson

from plumbline.data_contracts.artifact import full_disk_as_stage_error, write_bytes
from plumbline.data_contracts.errors import CheckFailed, UsageError
from plumbline.flows.cli.output import Output
from plumbline.tasks.params.document import load_params
from plumbline.tasks.params.whole import Params
from plumbline.tasks.registry.audit_lineage import Walk, render_audit, walk_model

FORMATS = ("tree", "json", "html", "openlineage", "cyclonedx")


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line asks for: a model, or one thing whose dependents are wanted."""

    model: str | None
    things: Mapping[str, str]

    def require_one(self) -> None:
        """Raise `UsageError` unless exactly one is asked for."""
        if (self.model is not None) + len(self.things) != 1:
            raise UsageError(
                "audit: expected a model (models:/NAME@ALIAS), or one of --record, --batch, --annotator, --token, "
                "--judge-prompt, --dataset, --reward-model and --commit; one of them alone."
            )


@dataclass(frozen=True, slots=True)
class Shown:
    """How an audit is shown, and where."""

    form: str
    out: Path | None
    openlineage: str | None

    def __post_init__(self) -> None:
        if self.form not in FORMATS:
            raise UsageError(f"--format {self.form}: expected one of {', '.join(FORMATS)}.")
        if self.out is not None and not self.out.parent.is_dir():
            raise UsageError(f"{self.out}: expected its folder to exist. Make it, or choose another place.")


def audit(root: Path, model: str, shown: Shown, output: Output, *, rehash: bool) -> None:
    """`plumbline audit MODEL`."""
    params, _ = load_params(root)
    with output.working(f"re-hashing everything behind {model}" if rehash else f"walking {model}"):
        walk = walk_model(root, model, params.registry, params.operations, rehash=rehash)
    report = walk.report
    if shown.openlineage is not None and walk.graph is not None:
        _send(walk, shown.openlineage, output)
    if shown.form == "tree" and shown.out is None:
        output.result(asdict(report), lambda: render_audit(walk))
    else:
        _write(walk, shown, output)
    if report.verified is False:
        raise CheckFailed(f"audit of {report.model_uri}: {len(report.problems)} problems, listed above.")


def _write(walk: Walk, shown: Shown, output: Output) -> None:
    if walk.graph is None and shown.form not in ("tree", "json"):
        raise CheckFailed(f"{walk.report.problems[0]} There is nothing to show as {shown.form}.")
    data = _RENDERERS[shown.form](walk)
    if shown.out is None:
        output.raw(data)
        return
    with full_disk_as_stage_error(shown.out):
        try:
            write_bytes(shown.out, data)
        except PermissionError as error:
            raise UsageError(f"{shown.out}: cannot write there ({error.strerror}). Choose another place.") from error
    written = {"model_uri": walk.report.model_uri, "format": shown.form, "out": str(shown.out), "bytes": len(data)}
    summary = {"verified": walk.report.verified, "problems": walk.report.problems}
    lines = [f"{walk.report.model_uri}: wrote {shown.out} ({len(data):,} bytes).", *walk.report.problems]
    output.result({**written, **summary}, "\n".join(lines))


def _tree(walk: Walk) -> bytes:
    from io import StringIO

    from rich.console import Console

    stream = StringIO()
    Console(file=stream, width=160, highlight=False).print(render_audit(walk), soft_wrap=True)
    return stream.getvalue().encode()


def _json(walk: Walk) -> bytes:
    return orjson.dumps(walk.report.lineage, option=orjson.OPT_INDENT_2) + b"\n"


def _html(walk: Walk) -> bytes:
    from plumbline.tasks.registry.lineage.page import render_page

    assert walk.graph is not None
    report = walk.report
    checked = {"objects": report.objects, "problems": report.problems, "notes": report.notes}
    return render_page(walk.graph, walk.manifest, report.verified, checked, report.timeline).encode()


def _openlineage(walk: Walk) -> bytes:
    from plumbline.tasks.registry.lineage.openlineage_events import run_events, serialise

    return b"".join(serialise(event) + b"\n" for event in run_events(walk.manifest, walk.about))


def _cyclonedx(walk: Walk) -> bytes:
    from plumbline.tasks.registry.lineage.bill_of_materials import render_bom

    return render_bom(walk.manifest, walk.about)


_RENDERERS: Mapping[str, Callable[[Walk], bytes]] = {
    "tree": _tree,
    "json": _json,
    "html": _html,
    "openlineage": _openlineage,
    "cyclonedx": _cyclonedx,
}


def _send(walk: Walk, target: str, output: Output) -> None:
    from plumbline.tasks.registry.lineage.openlineage_events import emit, run_events

    count = emit(run_events(walk.manifest, walk.about), target)
    output.remark(f"sent {count} OpenLineage events to {target}")


def trace(root: Path, kind: str, key: str, output: Output) -> None:
    """`plumbline audit --record ID`, `--annotator NAME` and so on."""
    from plumbline.tasks.registry import trace_lineage

    params, _ = load_params(root)
    if kind == "record":
        used = trace_lineage.audit_record(root, key, params.registry)
        output.result(asdict(used), lambda: trace_lineage.render_record(used))
        if not used.found:
            raise CheckFailed(f"record {key}: no dataset of any registered model has it ({used.searched} searched).")
        return
    report = trace_lineage.trace(root, cast(trace_lineage.Thing, kind), key, params.registry)
    output.result(asdict(report), lambda: trace_lineage.render_trace(report))
    if not report.found:
        what = kind.replace("_", " ")
        raise CheckFailed(f"{what} {key}: no registered version rests on it ({report.searched} searched).")


def reproduce(root: Path, model: str, to: Path | None, output: Output) -> None:
    """`plumbline reproduce MODEL`."""
    from plumbline.flows.cli.display import Display
    from plumbline.flows.graph.stages import STAGES
    from plumbline.flows.graph.workspaces import exclusive_run
    from plumbline.tasks.pipeline.isolation import warm_up
    from plumbline.tasks.registry.reproduce_version import open_reproduction, render_reproduction, reproduce_version

    params, _ = load_params(root)
    with output.working(f"restoring {model}"):
        reproduction = open_reproduction(root, model, params.registry, to)
    warm_up()
    stages = list(STAGES.values())
    with exclusive_run(reproduction.workspace), Display(stages):
        report = reproduce_version(reproduction, stages, _params_of)
    output.result(asdict(report), lambda: render_reproduction(report))
    if not report.equal:
        raise CheckFailed(f"{report.model_uri}: not reproduced; stage {report.first} is the first that differs.")


def _params_of(root: Path) -> Params:
    return load_params(root)[0]
