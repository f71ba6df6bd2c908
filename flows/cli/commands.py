"""The commands of daily use beside `retrain`: each loads params, calls one verb and prints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from plumbline.data_contracts.errors import ContractViolation, OperationsError, UsageError
from plumbline.flows.cli.output import Output
from plumbline.tasks.params.document import load_params, resolve_overlays


def ingest(root: Path, source: str, files: Sequence[str], output: Output) -> None:
    """`plumbline ingest SOURCE FILE…`: store, version, enter into the outbox, tell the server."""
    from plumbline.tasks.data.ingest_feedback import count_rows, ingest_feedback
    from plumbline.tasks.operations.announce import announce_batches

    _check_source(source)
    params, _ = load_params(root)
    with output.working("ingesting"):
        batches = ingest_feedback(root, source, list(files), params.feedback.limits())
    pending = None
    try:
        entries = announce_batches(root, params, source, batches, count_rows(batches))
        announced = {entry.payload["sha256"]: entry.emitted_at is not None for entry in entries}
    except OperationsError as error:  # the batch is safe and versioned; a later drain or poll announces it
        announced, pending = {}, str(error)
    table = Table("file", "batch", "", "event", box=None)
    rows = []
    for name, batch in zip(files, batches, strict=True):
        path, told = batch.path.relative_to(root).as_posix(), announced.get(batch.digest, False)
        standing = "new" if batch.new else "already there"
        if waits := not batch.path.is_file():
            standing += ", comes in when the run under way has ended"
        table.add_row(escape(name), escape(path), standing, "announced" if told else "pending")
        rows.append(
            {"file": name, "batch": path, "sha256": batch.digest, "new": batch.new, "waits": waits, "announced": told}
        )
    if pending is not None:
        output.remark(f"ingested, not announced: {pending}")
    output.result({"batches": rows, "pending": pending}, table)


def validate(
    root: Path, source: str, files: Sequence[str], overlays: Sequence[Path], settings: Sequence[str], output: Output
) -> None:
    """`plumbline validate SOURCE FILE…`: contract check and curation, nothing kept but the quarantine."""
    from plumbline.tasks.data.dry_run import dry_run
    from plumbline.tasks.data.feedback.ledger import describe_notes
    from plumbline.tasks.data.feedback.shares import percent

    _check_source(source)
    params, _ = load_params(root, resolve_overlays(root, overlays), settings)
    with output.working("validating and curating"):
        report = dry_run(
            root,
            source,
            list(files),
            params.feedback,
            params.curation,
            params.seed,
            trust_remote_code=params.reference.trust_remote_code,
        )
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
    for line in describe_notes(report):
        output.remark(line)
    output.result(report, table)
    if report["stopped"] is not None:
        raise ContractViolation(report["stopped"])


def restore(root: Path, model: str, to: Path, output: Output) -> None:
    """`plumbline restore MODEL --to DIR`."""
    from plumbline.tasks.registry.restore_version import restore_version

    params, _ = load_params(root)
    with output.working(f"restoring {model}"):
        restored = restore_version(root, model, to, params.registry)
    table = Table("restored", "hash", box=None)
    for name, digest in restored["objects"].items():
        table.add_row(name, digest)
    output.result(restored, table)


def self_play(root: Path, overlays: Sequence[Path], settings: Sequence[str], output: Output) -> None:
    """`plumbline self-play`."""
    from plumbline.flows.cli.display import Display
    from plumbline.flows.graph.preflight import settle_params
    from plumbline.flows.graph.workspaces import exclusive_run
    from plumbline.tasks.evaluation import self_play as verb

    with exclusive_run(root):
        params, changed = settle_params(root, overlays, settings)
        for line in changed:
            output.remark(f"params.yaml: {line}")
        with Display([verb.STAGE]):
            played = verb.self_play(root, params)
    batch = played.batch.path.relative_to(root).as_posix()

    def view() -> Table:
        table = Table("prompts", "", box=None)
        for name, count in played.counts.items():
            table.add_row(name.replace("_", " "), str(count))
        kappa = played.reliability["kappa"]
        agreement = "not measured" if kappa is None else f"{kappa:.3f}"
        table.add_row("judge", f"{played.reliability['judge']}, kappa {agreement} with people")
        table.add_row("batch", f"{batch} ({'new' if played.batch.new else 'already there'})")
        table.add_row("next", f"plumbline retrain -C {escape(str(root))}")
        return table

    output.result(
        {
            "batch": batch,
            "sha256": played.batch.digest,
            "new": played.batch.new,
            "counts": played.counts,
            "judge": played.reliability,
        },
        view,
    )


def _check_source(source: str) -> None:
    from plumbline.tasks.data.feedback import SOURCES

    if source not in SOURCES:
        raise UsageError(f"{source}: unknown source of feedback; expected one of {', '.join(SOURCES)}.")
