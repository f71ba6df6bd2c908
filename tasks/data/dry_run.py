"""Verb: contract check and curation of files without ingesting them."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import orjson

from plumbline.data_contracts.artifact import full_disk_as_stage_error, write_json
from plumbline.data_contracts.errors import ContractViolation, PlumblineError
from plumbline.data_contracts.records import PreferencePair, UnpairedResponse, dump_jsonl, load_jsonl
from plumbline.tasks.data.curate_preferences import UNPAIRED, account, objections, set_aside
from plumbline.tasks.data.curation.curate import curate
from plumbline.tasks.data.curation.curated import Curated
from plumbline.tasks.data.curation.unpaired import curate_unpaired
from plumbline.tasks.data.feedback.batches import Batch, BatchChoices, store_batch
from plumbline.tasks.data.feedback.places import expand
from plumbline.tasks.data.feedback.shares import shares
from plumbline.tasks.data.feedback.validate import validate
from plumbline.tasks.data.ingest_feedback import withdrawals_of
from plumbline.tasks.params.curation import CurationParams, SplitParams
from plumbline.tasks.params.feedback import FeedbackParams
from plumbline.tasks.storage.database.caches import may_write

REPORT, QUARANTINE = "report.json", "quarantine.jsonl"
_NAMED = ("unknown_fields", "notes")  # of the contract's account

BASE = "models/base"
"""The folder in which a run leaves the base, whose tokenizer and chat template every stage has."""


@dataclass(frozen=True, slots=True)
class DryRun:
    """The report of a dry run, the curated pairs (None if the contract stopped it), and the bytes of the files."""

    report: dict[str, Any]
    curated: Curated | None
    feedback_bytes: int


def dry_run(
    root: Path,
    source: str | None,
    paths: list[str],
    feedback: FeedbackParams,
    curation: CurationParams,
    seed: int,
    *,
    columns: Mapping[str, str] = MappingProxyType({}),
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """The report of `try_files`."""
    tried = try_files(
        root, source, paths, feedback, curation, seed, columns=columns, trust_remote_code=trust_remote_code
    )
    return tried.report


def try_files(
    root: Path,
    source: str | None,
    paths: list[str],
    feedback: FeedbackParams,
    curation: CurationParams,
    seed: int,
    *,
    columns: Mapping[str, str] = MappingProxyType({}),
    trust_remote_code: bool = False,
) -> DryRun:
    """Account for every row of the files as a run would; keep only the report and the quarantine file.

    Without a source each file says its own, and one that does not is of the kind that params name. `found` of the
    report says for each file what it is. `columns` is a person's map of the columns.

    Where a run would stop, over a threshold for one, "stopped" says why; else it is None. A contract that stops the
    run is all there is then: curation has not begun. `shares` are those of the rows set aside. Where the workspace has
    its base already, what the chat template makes of accepted rows is counted too.

    `report.json` and `quarantine.jsonl` in `.plumbline/dry-run` are always those of the last call, however it ended;
    the report holds the accounts of contract and curation. Raises `UsageError` for unreadable files.
    """
    home = _report_folder(root)
    for name in (REPORT, QUARANTINE):
        (home / name).unlink(missing_ok=True)
    with full_disk_as_stage_error(home), tempfile.TemporaryDirectory(dir=home) as scratch:
        try:
            intake = BatchChoices(columns, limits=feedback.limits(), fallback=feedback.source)
            stored = [store_batch(path, source, Path(scratch) / "raw", intake=intake) for path in expand(paths)]
            return _account(root, home, Path(scratch), stored, feedback, curation, seed, trust_remote_code)
        except PlumblineError as error:
            write_json(home / REPORT, {"stopped": str(error)})
            raise


def _account(
    root: Path,
    home: Path,
    folder: Path,
    stored: Sequence[Batch],
    feedback: FeedbackParams,
    curation: CurationParams,
    seed: int,
    trust_remote_code: bool,
) -> DryRun:
    """Validate and curate in `folder`, which is a draft; report and quarantine go to `home`."""
    (folder / "validated").mkdir()
    once = {batch.path: batch for batch in stored}.values()
    size = sum(batch.path.stat().st_size for batch in once)
    batches = [(batch.source, batch.given, batch.path) for batch in once]
    found = {batch.given: batch.found.text if batch.found else None for batch in once}
    try:
        facts = validate(
            batches,
            feedback,
            folder / "validated",
            report_to=home,
            needs_pairs=False,
            withdrawn=withdrawals_of(root),
        )
    except ContractViolation as stop:
        return DryRun({**_stopped(home, str(stop)), "found": found}, None, size)
    contract = orjson.loads((folder / "validated" / REPORT).read_bytes())
    pairs = list(load_jsonl(folder / "validated" / "accepted.jsonl", PreferencePair))
    if not pairs:  # single responses alone: there is nothing to split
        curation = curation.model_copy(update={"split": SplitParams(on_empty="warn")})
    curated = curate(pairs, curation, seed)
    single = None
    responses: list[UnpairedResponse] = []
    if (folder / "validated" / UNPAIRED).is_file():
        responses = list(load_jsonl(folder / "validated" / UNPAIRED, UnpairedResponse))
        single = curate_unpaired(responses, pairs, curated, curation, seed)
    counts = account(facts, curated, single)
    stops = objections(facts, curated, single, feedback)
    quarantine = home / QUARANTINE
    shutil.copyfile(folder / "validated" / QUARANTINE, quarantine)
    dump_jsonl(folder / "more.jsonl", set_aside(curated, single)[1])
    with quarantine.open("ab") as file:
        file.write((folder / "more.jsonl").read_bytes())
    report = curated.report | ({"unpaired": single.report} if single else {})
    named = {field: contract[field] for field in _NAMED}
    write_json(home / REPORT, {**contract, **counts, "shares": shares(counts), "curation": report})
    stopped = "\n".join([*stops, f"Every row set aside: {quarantine}; the account: {home / REPORT}."])
    told = {
        **counts,
        **named,
        **_under_template(root / BASE, [*pairs, *responses], trust_remote_code),
        "shares": shares(counts),
        "quarantine_path": str(quarantine),
        "stopped": stopped if stops else None,
        "found": found,
    }
    return DryRun(told, curated, size)


def _report_folder(root: Path) -> Path:
    """`.plumbline/dry-run`, or a new temporary folder for who may not write into the workspace."""
    home = root / ".plumbline" / "dry-run"
    if not may_write(home if home.exists() else root):
        return Path(tempfile.mkdtemp(prefix="plumbline-dry-run-"))
    home.mkdir(parents=True, exist_ok=True)
    return home


def _under_template(
    base: Path, records: Sequence[PreferencePair | UnpairedResponse], trust_remote_code: bool
) -> dict[str, Any]:
    """The number of records that the base's chat template refuses, by its reason, and of those with control tokens."""
    if not (base / "config.json").is_file():
        return {}
    from plumbline.tasks.models.loading import load_tokenizer
    from plumbline.tasks.models.renderable import REFUSED, SPELLED, sift, spelled

    tokenizer = load_tokenizer(base, trust_remote_code=trust_remote_code)
    kept, refused = sift(tokenizer, records)
    return {REFUSED: dict(sorted(Counter(refused.values()).items())), SPELLED: spelled(tokenizer, kept)}


def _stopped(home: Path, why: str) -> dict[str, Any]:
    report = orjson.loads((home / REPORT).read_bytes())
    names = ("read", "accepted", "merged", "quarantined", "reasons", *_NAMED)
    counts = {name: report[name] for name in names}
    return {**counts, "shares": shares(counts), "quarantine_path": str(home / QUARANTINE), "stopped": why}
