"""`plumbline erase`: feedback deleted for good, on record, with a search that shows that nothing is left."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from plumbline.data_contracts.errors import UsageError
from plumbline.flows.cli.arguments import HERE, Directory, Json, loaded
from plumbline.flows.cli.output import Output

if TYPE_CHECKING:
    from plumbline.tasks.operations.erasure.journal import ErasureRequest
    from plumbline.tasks.operations.erasure.plan import ErasureReport

app = typer.Typer()


@app.command(epilog='Example: plumbline erase --annotator ann --reason "asked for it" --dry-run')
def erase(
    record: Annotated[str | None, typer.Option(help="The record of this id, and every one that says the same.")] = None,
    annotator: Annotated[str | None, typer.Option(help="All that this person judged.")] = None,
    matching: Annotated[
        str | None, typer.Option(help="All with this text in it; between slashes a regular expression.")
    ] = None,
    reason: Annotated[str | None, typer.Option(help="Why; kept with the name and the time.")] = None,
    by: Annotated[str | None, typer.Option(help="Who decided it; by default you.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be erased; change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    yes_all: Annotated[
        bool, typer.Option("--yes-all", help="Do not ask, though a pattern matches over a tenth of all rows.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Complete an erasure that was cut off.")] = False,
    workspace: Directory = HERE,
    json: Json = False,
) -> None:
    """Delete feedback for good, everywhere, on signed record.

    Raw batches, datasets, DVC's cache and remote, caches, logs and captured traffic lose it. A search shows that
    nothing is left; exit code 1 names what is. To keep it and leave it out of later runs: `plumbline withdraw`.
    """
    from plumbline.flows.graph.workspaces import exclusive_run
    from plumbline.tasks.operations import erase_feedback as verb
    from plumbline.tasks.operations.promote_model import current_actor

    request = _request(record, annotator, matching, resume=resume)
    root, params = loaded(workspace)
    output = Output(json)
    if request is not None and reason is None:
        raise UsageError("erase: expected --reason: why, for the record that stays.")
    confirm = _Confirmation(output, dry_run=dry_run, yes=yes or yes_all)
    with exclusive_run(root):
        try:
            if request is None:
                done = verb.resume(root, params)
            else:
                who = by or current_actor(root)
                done = verb.erase(root, params, request, reason=str(reason), by=who, confirm=confirm, large=yes_all)
        except verb.LeftOver as left:
            report = left.report
            output.result(asdict(report), lambda: _erased(report))
            raise
    output.result(asdict(done), lambda: _erased(done))


def _request(record: str | None, annotator: str | None, matching: str | None, *, resume: bool) -> ErasureRequest | None:
    """What is to be erased; None to complete what was cut off. Raises `UsageError` unless one thing is named."""
    from plumbline.tasks.operations.erasure.journal import ErasureRequest

    given = {"record": record, "annotator": annotator, "matching": matching}
    named = [ErasureRequest(kind, value) for kind, value in given.items() if value]
    if len(named) + resume != 1:
        raise UsageError(
            "erase: expected one of --record, --annotator and --matching, with --reason; or --resume alone."
        )
    return named[0] if named else None


class _Confirmation:
    """The person's answer to a plan: none is asked for with --yes, and none given with --dry-run."""

    def __init__(self, output: Output, *, dry_run: bool, yes: bool) -> None:
        self._output, self._dry_run, self._yes = output, dry_run, yes

    def __call__(self, plan: ErasureReport) -> bool:
        if self._dry_run or self._yes:
            return not self._dry_run
        if not sys.stdin.isatty():
            raise UsageError(f"erase: {_sentence(plan)} Nothing was erased: nobody was there to confirm. Add --yes.")
        self._output.remarks.print(_erased(plan))
        return typer.confirm("Erase this for good?", err=True)


def _sentence(done: ErasureReport) -> str:
    verb = "erased" if done.done else "erased, but not everywhere" if done.left else "would be erased"
    batches = "batch" if len(done.batches) == 1 else "batches"
    rows = f"{done.rows} row{'' if done.rows == 1 else 's'} ({done.share:.1%}) of {len(done.batches)} {batches}"
    return f"{done.what}: {rows} and {done.traffic} captured interactions {verb}."


def _erased(done: ErasureReport) -> RenderableType:
    parts: list[RenderableType] = [escape(_sentence(done)), _places(done)]
    if done.versions:
        parts.append(_versions(done))
    parts += [f"Not erased: {escape(line)}." for line in done.beyond]
    parts += [f"Left: {escape(line)}" for line in done.left]
    if done.shared:
        parts.append(f"{done.shared} pieces of text stay, since other rows have them too.")
    if done.short:
        parts.append(f"{done.short} texts are too short to be looked for outside of the raw store.")
    parts += [escape(problem) for problem in done.problems]
    if done.done:
        parts.append("Searched every file of the workspace, git, DVC's cache and remote: nothing of it is left.")
        parts.append(f"On record as {done.tombstone[:16]}. The next `plumbline retrain` runs without it.")
    return Group(*parts)


def _places(done: ErasureReport) -> Table:
    table = Table("where", "removed" if done.done or done.left else "to remove", box=None)
    for batch in done.batches:
        new = f", now {batch['new']}" if batch["new"] else ", the whole batch"
        table.add_row(escape(batch["old"]), escape(f"line {', '.join(map(str, batch['lines'][:8]))}{new}"))
    for where, count in done.objects.items():
        table.add_row(f"DVC's {where}", f"{count} objects")
    for name in done.removed:
        table.add_row(escape(name), "lines" if name.endswith(".log") else "made anew by the next run")
    return table


def _versions(done: ErasureReport) -> Table:
    table = Table("version", "alias", "use", "", box=None)
    for row in done.versions:
        again = "retrain" if row["model_uri"] in done.retrain and row["use"] == "trained on" else ""
        table.add_row(row["model_uri"], row["alias"] or "", row["use"], again)
    return table
