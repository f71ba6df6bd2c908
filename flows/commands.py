"""The commands of daily use beside `retrain`: each loads params, calls one verb and prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from data_contracts.errors import CheckFailed, ContractViolation, UsageError
from flows.output import Output
from flows.params import load_params, resolve_overlays


def ingest(root: Path, source: str, files: Sequence[str], output: Output) -> None:
    """`plumbline ingest SOURCE FILE…`."""
    from tasks.ingest_feedback import ingest_feedback

    _check_source(source)
    with output.working("ingesting"):
        batches = ingest_feedback(root, source, list(files))
    table = Table("file", "batch", "", box=None)
    rows = []
    for name, batch in zip(files, batches, strict=True):
        path = batch.path.relative_to(root).as_posix()
        table.add_row(escape(name), escape(path), "new" if batch.new else "already there")
        rows.append({"file": name, "batch": path, "sha256": batch.digest, "new": batch.new})
    output.result({"batches": rows}, table)


def validate(
    root: Path, source: str, files: Sequence[str], overlays: Sequence[Path], settings: Sequence[str], output: Output
) -> None:
    """`plumbline validate SOURCE FILE…`: contract check and curation, nothing kept but the quarantine."""
    from tasks.dry_run import dry_run

    _check_source(source)
    params, _ = load_params(root, resolve_overlays(root, overlays), settings)
    with output.working("validating and curating"):
        report = dry_run(root, source, list(files), params.feedback, params.curation, params.seed)
    table = Table("rows", "", box=None)
    for name in ("read", "accepted", "merged", "quarantined"):
        table.add_row(name, str(report[name]))
    for name, count in report["reasons"].items():
        table.add_row(f"  {name}", str(count))
    table.add_row("quarantine", report["quarantine_path"])
    output.result(report, table)
    if report["stopped"] is not None:
        raise ContractViolation(report["stopped"])


def audit(root: Path, model: str | None, record: str | None, output: Output) -> None:
    """`plumbline audit MODEL` or `plumbline audit --record ID`."""
    from tasks import audit_lineage

    if (model is None) == (record is None):
        raise UsageError("audit: expected a model (models:/NAME@ALIAS) or --record ID, one of the two.")
    params, _ = load_params(root)
    if record is not None:
        used = audit_lineage.audit_record(root, record, params.registry)
        output.result(asdict(used), audit_lineage.render_record(used))
        if not used.found:
            raise CheckFailed(f"record {record}: no dataset of any registered model has it ({used.searched} searched).")
        return
    with output.working(f"re-hashing everything behind {model}"):
        report = audit_lineage.audit_model(root, str(model), params.registry)
    output.result(asdict(report), audit_lineage.render_tree(report))
    if not report.verified:
        raise CheckFailed(f"audit of {report.model_uri}: {len(report.problems)} problems, listed above.")


def restore(root: Path, model: str, to: Path, output: Output) -> None:
    """`plumbline restore MODEL --to DIR`."""
    from tasks.restore_version import restore_version

    params, _ = load_params(root)
    with output.working(f"restoring {model}"):
        restored = restore_version(root, model, to, params.registry)
    table = Table("restored", "hash", box=None)
    for name, digest in restored["objects"].items():
        table.add_row(name, digest)
    output.result(restored, table)


def self_play(root: Path, overlays: Sequence[Path], settings: Sequence[str], output: Output) -> None:
    """`plumbline self-play`."""
    from flows.display import Display
    from flows.preflight import settle_params
    from flows.workspaces import exclusive_run
    from tasks import self_play as verb

    with exclusive_run(root):
        params, changed = settle_params(root, overlays, settings)
        for line in changed:
            output.remark(f"params.yaml: {line}")
        with Display([verb.STAGE]):
            played = verb.self_play(root, params)
    batch = played.batch.path.relative_to(root).as_posix()
    table = Table("prompts", "", box=None)
    for name, count in played.counts.items():
        table.add_row(name.replace("_", " "), str(count))
    table.add_row("judge", f"{played.reliability['judge']}, kappa {played.reliability['kappa']:.3f} with people")
    table.add_row("batch", f"{batch} ({'new' if played.batch.new else 'already there'})")
    table.add_row("next", f"plumbline retrain -C {escape(str(root))}")
    output.result(
        {
            "batch": batch,
            "sha256": played.batch.digest,
            "new": played.batch.new,
            "counts": played.counts,
            "judge": played.reliability,
        },
        table,
    )


def _check_source(source: str) -> None:
    from tasks.feedback import SOURCES

    if source not in SOURCES:
        raise UsageError(f"{source}: unknown source of feedback; expected one of {', '.join(SOURCES)}.")
