"""`plumbline validate`, `ingest` and `withdraw`: feedback files, checked, taken in, and taken out of later runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from plumbline.data_contracts.errors import CheckFailed, ContractViolation, UsageError
from plumbline.flows.cli import completion
from plumbline.flows.cli.arguments import HERE, Directory, Json, Trial, TrialOverlays, loaded, loaded_or_default
from plumbline.flows.cli.fit_view import fit_view, stopping
from plumbline.flows.cli.output import Output

if TYPE_CHECKING:
    from plumbline.tasks.data.curation.curate import Curated
    from plumbline.tasks.data.feedback.withdrawals import Kind
    from plumbline.tasks.operations.take_feedback import TakenFeedback
    from plumbline.tasks.operations.withdraw_feedback import Withdrawn
    from plumbline.tasks.params.whole import Params

app = typer.Typer()
Words = Annotated[
    list[str],
    typer.Argument(
        metavar="[SOURCE] FILE...",
        help="Kind of feedback (human_pairs, judged_pairs or unpaired_responses; by default what each file says), then "
        "files, folders, patterns, - for standard input, or a datasets name.",
        autocompletion=completion.sources,
    ),
]
Map = Annotated[
    list[str] | None,
    typer.Option(
        "--map", metavar="NAME=COLUMN", help="Which column is which: prompt=question, label.a=0. Repeatable; kept."
    ),
]


@app.command(epilog="Example: plumbline validate pairs.jsonl --base MODEL")
def validate(
    words: Words,
    columns: Map = None,
    base: Annotated[str | None, typer.Option(help="A model: tell also what a run could do with it.")] = None,
    params: TrialOverlays = None,
    settings: Trial = None,
    workspace: Directory = HERE,
    json: Json = False,
) -> None:
    """Check feedback files and curate them; ingest nothing.

    With --base: what fits the model, which gates cannot pass with so little data, minutes and disk. Exit code 1 when a
    run would stop, or its gate cannot pass. Outside of a workspace the default params hold.
    """
    from plumbline.tasks.data.dry_run import try_files
    from plumbline.tasks.data.feedback.accounts import describe_notes
    from plumbline.tasks.data.feedback.mapping import parse_map

    output = Output(json)
    root, read = loaded_or_default(workspace, output, params, settings)
    source, files = source_and_files(words)
    with output.working("validating and curating"):
        tried = try_files(
            root,
            source,
            files,
            read.feedback,
            read.curation,
            read.seed,
            columns=parse_map(columns or []),
            trust_remote_code=read.reference.trust_remote_code,
        )
    report, fit = tried.report, None
    if source is None:
        _tell_found(report["found"], output)
    for line in describe_notes(report):
        output.remark(line)
    if base is not None and tried.curated is not None:
        fit = _fit(read, tried.curated, base, tried.feedback_bytes, output)
    _show_validated(report, fit, output)
    if report["stopped"] is not None:
        raise ContractViolation(report["stopped"])
    if fit is not None and stopping(fit):
        raise CheckFailed("a run with this file and model cannot pass:\n" + "\n".join(stopping(fit)))


def source_and_files(words: list[str]) -> tuple[str | None, list[str]]:
    """The source that was named, if any, and the files. A first word that is no file is a source misspelt."""
    from plumbline.tasks.data.feedback import SOURCES

    first, *rest = words
    if first in SOURCES and rest:
        return first, rest
    if rest and first != "-" and not Path(first).exists() and not {"/", ".", "*", "?"} & set(first):
        require_source(first)
    return None, words


def _tell_found(found: Mapping[str, str | None], output: Output) -> None:
    """Remark what files are that nobody named the source of."""
    for file, text in found.items():
        if text is not None:
            output.remark(f"{file}: {text}.")


def _fit(params: Params, curated: Curated, base: str, feedback_bytes: int, output: Output) -> dict[str, Any]:
    from plumbline.tasks.training.fit_feedback import fit_feedback

    splits = {"train": curated.train, "validation": curated.validation, "test": curated.test}
    with output.working(f"reading them with {base}"):
        return fit_feedback(params, splits, base, feedback_bytes)


def _show_validated(report: Mapping[str, Any], fit: dict[str, Any] | None, output: Output) -> None:
    if fit is None:
        output.result(dict(report), lambda: _validated(report))
    else:
        output.result({**report, "fit": fit}, lambda: Group(_validated(report), fit_view(fit)))


def _validated(report: Mapping[str, Any]) -> Table:
    from plumbline.tasks.data.feedback.shares import percent

    table = Table("rows", "", "share", box=None)
    table.columns[1].overflow = "fold"  # a path is read whole, or not at all
    for name in ("read", "accepted", "merged", "quarantined"):
        table.add_row(name, str(report[name]), percent(report[name] / max(report["read"], 1)))
    for name, count in report["reasons"].items():
        table.add_row(f"  {name}", str(count), percent(report["shares"]["reasons"][name]))
    for name, count in report.get("refused_by_template", {}).items():
        table.add_row(f"refused by the chat template: {name}", str(count))
    for token, count in report.get("control_tokens", {"tokens": {}})["tokens"].items():
        table.add_row(f"spell {token}, read as text", str(count))
    table.add_row("quarantine", report["quarantine_path"])
    return table


@app.command(epilog="Example: plumbline ingest pairs.jsonl")
def ingest(words: Words, columns: Map = None, workspace: Directory = HERE, json: Json = False) -> None:
    """Take feedback files into the append-only raw store.

    They are versioned by DVC and announced to the Prefect server. A file in no known form is read by --map.
    """
    from plumbline.flows.deployment.servers import server_url
    from plumbline.tasks.data.feedback.mapping import parse_map
    from plumbline.tasks.operations.take_feedback import take_feedback

    source, files = source_and_files(words)
    named = parse_map(columns or [])
    output = Output(json)
    root, params = loaded(workspace)
    with output.working("ingesting"):
        taken = take_feedback(root, params, source, files, server_url(), columns=named)
    if source is None:
        _tell_found({row.file: row.found for row in taken.batches}, output)
    if taken.pending is not None:
        output.remark(f"ingested, not announced: {taken.pending}")
    output.result(asdict(taken), lambda: _ingested(taken))


def _ingested(taken: TakenFeedback) -> Table:
    table = Table("file", "batch", "", "event", box=None)
    for row in taken.batches:
        standing = "new" if row.new else "already there"
        standing += ", comes in when the run under way has ended" if row.waits else ""
        table.add_row(escape(row.file), escape(row.batch), standing, "announced" if row.announced else "pending")
    return table


def require_source(source: str) -> None:
    """Raise `UsageError` for a kind of feedback that does not exist."""
    from plumbline.tasks.data.feedback import SOURCES

    if source not in SOURCES:
        raise UsageError(f"{source}: unknown source of feedback; expected one of {', '.join(SOURCES)}.")


@app.command(epilog='Example: plumbline withdraw --annotator ann --reason "asked to be forgotten"')
def withdraw(
    batch: Annotated[str | None, typer.Option(help="A raw batch: its path or digest.")] = None,
    token: Annotated[str | None, typer.Option(help="All that was or will be sent with the token of this name.")] = None,
    annotator: Annotated[str | None, typer.Option(help="All that names this annotator, now or later.")] = None,
    reason: Annotated[str | None, typer.Option(help="Why; kept with your name and the time.")] = None,
    undo: Annotated[bool, typer.Option("--undo", help="Take a withdrawal back, on record too.")] = False,
    listed: Annotated[bool, typer.Option("--list", help="Show every withdrawal instead.")] = False,
    workspace: Directory = HERE,
    json: Json = False,
) -> None:
    """Take feedback out of all later runs, on record.

    Lists the versions that used it. The raw store keeps it, and --undo brings it back; `plumbline erase` deletes it.
    """
    root, params = loaded(workspace)
    output = Output(json)
    named = {kind: name for kind, name in (("batch", batch), ("token", token), ("annotator", annotator)) if name}
    if listed and not named:
        return _list_withdrawals(root, output)
    if len(named) != 1 or listed or reason is None:
        raise UsageError(
            "withdraw: expected one of --batch, --token and --annotator, and --reason; or --list alone. "
            "Name one thing at a time, and say why."
        )
    from plumbline.tasks.operations.promote_model import current_actor
    from plumbline.tasks.operations.withdraw_feedback import withdraw as verb

    ((kind, name),) = named.items()
    with output.working("looking for it in all feedback"):
        done = verb(root, params.registry, cast("Kind", kind), name, reason=reason, by=current_actor(root), undo=undo)
    for problem in done.problems:
        output.remark(problem)
    output.result(asdict(done), lambda: _withdrawn(done, undo))
    if kind == "token" and not undo:
        output.remark(f"The token itself may still send; `plumbline intake token {name} --revoke` ends that.")


def _withdrawn(done: Withdrawn, undo: bool) -> Table:
    table = Table("version", "aliases", "gate", "use", box=None, title=escape(_sentence(done, undo)))
    for row in done.versions:
        verdict = "passed" if row["passed"] else "rejected"
        table.add_row(row["model_uri"], ", ".join(row["aliases"]), verdict, escape(row["use"]))
    return table


def _sentence(done: Withdrawn, undo: bool) -> str:
    entry = done.entry
    what = f"{entry.kind} {entry.name} ({done.rows} rows)"
    if done.changed:
        return f"{what}: {'back in' if undo else 'out of'} all later runs. Versions that used it:"
    standing = "it is not withdrawn" if undo else f"it was withdrawn at {entry.at} by {entry.by}: {entry.reason}"
    return f"{what}: nothing changed, {standing}. Versions that used it:"


def _list_withdrawals(root: Path, output: Output) -> None:
    from plumbline.tasks.data.feedback.withdrawals import load_withdrawals
    from plumbline.tasks.data.validate_feedback import RAW

    entries = load_withdrawals(root / RAW).entries
    table = Table("when", "who", "", "what", "why", box=None)
    for entry in entries:
        action = "taken back" if entry.undone else "withdrawn"
        table.add_row(entry.at, escape(entry.by), action, escape(f"{entry.kind} {entry.name}"), escape(entry.reason))
    output.result({"withdrawals": [asdict(entry) for entry in entries]}, table)
