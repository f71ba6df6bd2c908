"""`plumbline audit`, `reproduce` and `restore`: what a version rests on, and the version made again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import orjson
import typer
from rich.table import Table

from plumbline.data_contracts.artifact import full_disk_as_stage_error, write_bytes
from plumbline.data_contracts.errors import CheckFailed, UsageError
from plumbline.flows.cli import completion
from plumbline.flows.cli.arguments import HERE, Directory, Json, Model, loaded
from plumbline.flows.cli.output import Output

if TYPE_CHECKING:
    from plumbline.tasks.params.whole import Params
    from plumbline.tasks.registry.audit_lineage import AuditedVersion
    from plumbline.tasks.registry.trace_lineage import Thing

app = typer.Typer()
Format = Literal["tree", "json", "html", "openlineage", "cyclonedx"]


@app.command(epilog="Example: plumbline audit models:/assistant@champion --format html --out lineage.html")
def audit(
    model: Annotated[
        str | None,
        typer.Argument(help="models:/NAME@ALIAS, models:/NAME/VERSION or NAME.", autocompletion=completion.models),
    ] = None,
    record: Annotated[str | None, typer.Option(help="List what used this record, instead.")] = None,
    batch: Annotated[str | None, typer.Option(help="List what rests on this raw batch: digest or path.")] = None,
    annotator: Annotated[str | None, typer.Option(help="List what rests on this annotator's labels.")] = None,
    token: Annotated[str | None, typer.Option(help="List what rests on feedback sent with this token.")] = None,
    judge_prompt: Annotated[
        str | None, typer.Option(help="List what rests on this judge's rubric: NAME@VERSION or digest.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="List what rests on this dataset, by its hash.")] = None,
    reward_model: Annotated[str | None, typer.Option(help="List what rests on this reward model, by its hash.")] = None,
    commit: Annotated[str | None, typer.Option(help="List what was made at this git commit.")] = None,
    form: Annotated[Format, typer.Option("--format", help="How to show a model.")] = "tree",
    out: Annotated[Path | None, typer.Option(help="Write it to this file instead of standard output.")] = None,
    openlineage: Annotated[
        str | None, typer.Option(help="Send OpenLineage events to this URL, or append them to this file.")
    ] = None,
    rehash: Annotated[
        bool, typer.Option("--rehash/--no-rehash", help="Re-hash every object and verify signatures, or only walk.")
    ] = True,
    workspace: Directory = HERE,
    json: Json = False,
) -> None:
    """Walk a model to its raw feedback and re-hash all of it.

    Exit code 1 when something changed. With an option such as --record, list the versions that rest on it.
    """
    things = {
        "record": record,
        "batch": batch,
        "annotator": annotator,
        "token": token,
        "judge_prompt": judge_prompt,
        "dataset": dataset,
        "reward_model": reward_model,
        "commit": commit,
    }
    asked = [(kind, key) for kind, key in things.items() if key is not None]
    if (model is not None) + len(asked) != 1:
        raise UsageError(
            "audit: expected a model (models:/NAME@ALIAS), or one of --record, --batch, --annotator, --token, "
            "--judge-prompt, --dataset, --reward-model and --commit; one of them alone."
        )
    if out is not None and not out.parent.is_dir():
        raise UsageError(f"{out}: expected its folder to exist. Make it, or choose another place.")
    root, params = loaded(workspace)
    if model is None:
        _trace(root, params, *asked[0], Output(json))
    else:
        _audit(root, params, model, form, out, openlineage, Output(json), rehash=rehash)


def _audit(
    root: Path,
    params: Params,
    model: str,
    form: Format,
    out: Path | None,
    openlineage: str | None,
    output: Output,
    *,
    rehash: bool,
) -> None:
    from plumbline.tasks.registry.audit_lineage import audit_version, render_audit

    with output.working(f"re-hashing everything behind {model}" if rehash else f"walking {model}"):
        audited = audit_version(root, model, params.registry, params.operations, rehash=rehash)
    report = audited.report
    if openlineage is not None and audited.graph is not None:
        _send(audited, openlineage, output)
    if form == "tree" and out is None:
        output.result(asdict(report), lambda: render_audit(audited))
    else:
        _write(audited, form, out, output)
    if report.verified is False:
        raise CheckFailed(f"audit of {report.model_uri}: {len(report.problems)} problems, listed above.")


def _write(audited: AuditedVersion, form: Format, out: Path | None, output: Output) -> None:
    if audited.graph is None and form not in ("tree", "json"):
        raise CheckFailed(f"{audited.report.problems[0]} There is nothing to show as {form}.")
    data = _RENDERERS[form](audited)
    if out is None:
        output.raw(data)
        return
    with full_disk_as_stage_error(out):
        try:
            write_bytes(out, data)
        except PermissionError as error:
            raise UsageError(f"{out}: cannot write there ({error.strerror}). Choose another place.") from error
    written = {"model_uri": audited.report.model_uri, "format": form, "out": str(out), "bytes": len(data)}
    summary = {"verified": audited.report.verified, "problems": audited.report.problems}
    lines = [f"{audited.report.model_uri}: wrote {out} ({len(data):,} bytes).", *audited.report.problems]
    output.result({**written, **summary}, "\n".join(lines))


def _tree(audited: AuditedVersion) -> bytes:
    from io import StringIO

    from rich.console import Console

    from plumbline.tasks.registry.audit_lineage import render_audit

    stream = StringIO()
    Console(file=stream, width=160, highlight=False).print(render_audit(audited), soft_wrap=True)
    return stream.getvalue().encode()


def _json(audited: AuditedVersion) -> bytes:
    return orjson.dumps(audited.report.lineage, option=orjson.OPT_INDENT_2) + b"\n"


def _html(audited: AuditedVersion) -> bytes:
    from plumbline.tasks.registry.lineage.page import render_page

    assert audited.graph is not None
    report = audited.report
    checked = {"objects": report.objects, "problems": report.problems, "notes": report.notes}
    return render_page(audited.graph, audited.manifest, report.verified, checked, report.timeline).encode()


def _openlineage(audited: AuditedVersion) -> bytes:
    from plumbline.tasks.registry.lineage.openlineage_events import run_events, serialise

    return b"".join(serialise(event) + b"\n" for event in run_events(audited.manifest, audited.about))


def _cyclonedx(audited: AuditedVersion) -> bytes:
    from plumbline.tasks.registry.lineage.bill_of_materials import render_bom

    return render_bom(audited.manifest, audited.about)


_RENDERERS: Mapping[Format, Callable[[AuditedVersion], bytes]] = {
    "tree": _tree,
    "json": _json,
    "html": _html,
    "openlineage": _openlineage,
    "cyclonedx": _cyclonedx,
}


def _send(audited: AuditedVersion, target: str, output: Output) -> None:
    from plumbline.tasks.registry.lineage.openlineage_events import emit, run_events

    count = emit(run_events(audited.manifest, audited.about), target)
    output.remark(f"sent {count} OpenLineage events to {target}")


def _trace(root: Path, params: Params, kind: str, key: str, output: Output) -> None:
    from plumbline.tasks.registry import trace_lineage

    if kind == "record":
        used = trace_lineage.audit_record(root, key, params.registry)
        output.result(asdict(used), lambda: trace_lineage.render_record(used))
        if not used.found and not used.erased:
            raise CheckFailed(f"record {key}: no dataset of any registered model has it ({used.searched} searched).")
        return
    report = trace_lineage.trace(root, cast("Thing", kind), key, params.registry)
    output.result(asdict(report), lambda: trace_lineage.render_trace(report))
    if not report.found:
        what = kind.replace("_", " ")
        raise CheckFailed(f"{what} {key}: no registered version rests on it ({report.searched} searched).")


@app.command(epilog="Example: plumbline reproduce models:/assistant@champion --to again")
def reproduce(
    model: Model,
    to: Annotated[
        Path | None, typer.Option(help="Keep the reproduction in this folder; resumes one that was killed.")
    ] = None,
    workspace: Directory = HERE,
    json: Json = False,
) -> None:
    """Run a version's stages again and compare hashes.

    Starts from raw feedback. Says which stage is the first that differs.
    """
    from plumbline.flows.cli.display import Display
    from plumbline.flows.graph.stages import STAGES
    from plumbline.flows.graph.workspaces import exclusive_run
    from plumbline.tasks.params.resolved import load_resolved
    from plumbline.tasks.pipeline.isolation import warm_up
    from plumbline.tasks.registry.reproduce_version import open_reproduction, render_reproduction, reproduce_version

    root, params = loaded(workspace)
    output = Output(json)
    with output.working(f"restoring {model}"):
        reproduction = open_reproduction(root, model, params.registry, to and to.resolve())
    warm_up()
    stages = list(STAGES.values())
    with exclusive_run(reproduction.workspace), Display(stages):
        report = reproduce_version(reproduction, stages, load_resolved)
    output.result(asdict(report), lambda: render_reproduction(report))
    if not report.equal:
        raise CheckFailed(f"{report.model_uri}: not reproduced; stage {report.first} is the first that differs.")


@app.command(epilog="Example: plumbline restore models:/assistant@champion --to restored")
def restore(
    model: Model,
    to: Annotated[Path, typer.Option(help="The new folder to restore into.")],
    workspace: Directory = HERE,
    json: Json = False,
) -> None:
    """Bring back a version's dataset, π_ref, params and model."""
    from plumbline.tasks.registry.restore_version import restore_version

    root, params = loaded(workspace)
    output = Output(json)
    with output.working(f"restoring {model}"):
        restored = restore_version(root, model, to.resolve(), params.registry)
    table = Table("restored", "hash", box=None)
    for name, digest in restored["objects"].items():
        table.add_row(name, digest)
    output.result(restored, table)
