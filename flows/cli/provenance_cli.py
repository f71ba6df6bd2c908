"""`plumbline withdraw`: take feedback out of all later runs, on record."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from plumbline.flows.cli.arguments import HERE, Directory, Json, workspace_root
from plumbline.flows.cli.output import Output

if TYPE_CHECKING:
    from plumbline.tasks.data.feedback.withdrawals import Kind
    from plumbline.tasks.operations.withdraw_feedback import Withdrawn


def register(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command()(withdraw)


def withdraw(
    batch: Annotated[str | None, typer.Option(help="A raw batch: its path or digest.")] = None,
    token: Annotated[str | None, typer.Option(help="All that was or will be sent with the token of this name.")] = None,
    annotator: Annotated[str | None, typer.Option(help="All that names this annotator, now or later.")] = None,
    reason: Annotated[str | None, typer.Option(help="Why; it is kept with your name and the time.")] = None,
    undo: Annotated[bool, typer.Option("--undo", help="Take a withdrawal back, on record too.")] = False,
    listed: Annotated[bool, typer.Option("--list", help="Show every withdrawal instead.")] = False,
    workspace: Directory = HERE,
    json: Json = False,
) -> None:
    """Take feedback out of all later runs, on record, and list the models that used it. The raw store keeps it."""
    from plumbline.data_contracts.errors import UsageError

    root, output = workspace_root(workspace), Output(json)
    named = {kind: name for kind, name in (("batch", batch), ("token", token), ("annotator", annotator)) if name}
    if listed and not named:
        return _list(root, output)
    if len(named) != 1 or listed or reason is None:
        raise UsageError(
            "withdraw: expected one of --batch, --token and --annotator, and --reason; or --list alone. "
            "Name one thing at a time, and say why."
        )
    ((kind, name),) = named.items()
    return _withdraw(root, cast("Kind", kind), name, reason, undo, output)


def _withdraw(root: Path, kind: Kind, name: str, reason: str, undo: bool, output: Output) -> None:
    from rich.markup import escape
    from rich.table import Table

    from plumbline.tasks.operations.promote_model import current_actor
    from plumbline.tasks.operations.withdraw_feedback import withdraw as carry_out
    from plumbline.tasks.params.document import load_params

    params, _ = load_params(root)
    with output.working("looking for it in all feedback"):
        done = carry_out(root, params.registry, kind, name, reason=reason, by=current_actor(root), undo=undo)
    for problem in done.problems:
        output.remark(problem)
    table = Table("version", "aliases", "gate", "use", box=None, title=escape(_sentence(done, undo)))
    for row in done.versions:
        verdict = "passed" if row["passed"] else "rejected"
        table.add_row(row["model_uri"], ", ".join(row["aliases"]), verdict, escape(row["use"]))
    output.result(asdict(done), table)
    if kind == "token" and not undo:
        output.remark(f"The token itself may still send; `plumbline intake token {name} --revoke` ends that.")


def _sentence(done: Withdrawn, undo: bool) -> str:
    entry = done.entry
    what = f"{entry.kind} {entry.name} ({done.rows} rows)"
    if done.changed:
        return f"{what}: {'back in' if undo else 'out of'} all later runs. Versions that used it:"
    standing = "it is not withdrawn" if undo else f"it was withdrawn at {entry.at} by {entry.by}: {entry.reason}"
    return f"{what}: nothing changed, {standing}. Versions that used it:"


def _list(root: Path, output: Output) -> None:
    from rich.markup import escape
    from rich.table import Table

    from plumbline.tasks.data.feedback.withdrawals import load_withdrawals
    from plumbline.tasks.data.validate_feedback import RAW

    entries = load_withdrawals(root / RAW).entries
    table = Table("when", "who", "", "what", "why", box=None)
    for entry in entries:
        action = "taken back" if entry.undone else "withdrawn"
        table.add_row(entry.at, escape(entry.by), action, escape(f"{entry.kind} {entry.name}"), escape(entry.reason))
    output.result({"withdrawals": [asdict(entry) for entry in entries]}, table)
