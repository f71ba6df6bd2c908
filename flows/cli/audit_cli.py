"""`plumbline audit` and `plumbline reproduce`: what a version rests on, what rests on a thing, a version made again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from plumbline.flows.cli.arguments import HERE, Directory, Json, workspace_root
from plumbline.flows.cli.output import Output

Format = Literal["tree", "json", "html", "openlineage", "cyclonedx"]
_MODEL = "models:/NAME@ALIAS, models:/NAME/VERSION or NAME."


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command()(audit)
    app.command()(reproduce)


def audit(
    model: Annotated[str | None, typer.Argument(help=_MODEL)] = None,
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
    form: Annotated[
        str, typer.Option("--format", help="How to show a model: tree, json, html, openlineage or cyclonedx.")
    ] = "tree",
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
    """Walk a model to its raw feedback and re-hash every object, or list what rests on a record, person or hash."""
    from plumbline.flows.cli import audits

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
    asked = audits.Asked(model, {kind: key for kind, key in things.items() if key is not None})
    asked.require_one()
    root = workspace_root(workspace)
    if asked.model is None:
        audits.trace(root, *next(iter(asked.things.items())), Output(json))
        return
    shown = audits.Shown(cast(Format, form), out, openlineage)
    audits.audit(root, asked.model, shown, Output(json), rehash=rehash)


def reproduce(
    model: Annotated[str, typer.Argument(help=_MODEL)],
    to: Annotated[
        Path | None, typer.Option(help="Keep the reproduction in this folder; resumes one that was killed.")
    ] = None,
    workspace: Directory = HERE,
    json: Json = False,
) -> None:
    """Restore a version, run every stage again from raw data and compare hashes; say which stage differs first."""
    from plumbline.flows.cli import audits

    audits.reproduce(workspace_root(workspace), model, to and to.resolve(), Output(json))
