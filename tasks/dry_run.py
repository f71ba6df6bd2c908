"""Verb: contract check and curation of files without ingesting them."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import orjson

from data_contracts.errors import ContractViolation
from data_contracts.records import PreferencePair, dump_jsonl, load_jsonl
from tasks.curate_preferences import account
from tasks.curation.curate import curate
from tasks.curation.params import CurationParams
from tasks.feedback.batches import store_batch
from tasks.feedback.params import FeedbackParams
from tasks.feedback.validate import validate


def dry_run(
    root: Path, source: str, paths: list[str], feedback: FeedbackParams, curation: CurationParams, seed: int
) -> dict[str, Any]:
    """Account for every row of the files as a run would; keep only the report and the quarantine file.

    Where a run would stop, over the threshold for one, "stopped" says why, and what was quarantined is the
    contract's part alone; else it is None. Raises `UsageError` for unreadable files.
    """
    home = root / ".plumbline" / "dry-run"
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home) as name:
        folder = Path(name)
        stored = {store_batch(path, source, folder / "raw").path: path for path in paths}
        (folder / "validated").mkdir()
        batches = [(source, path, batch) for batch, path in stored.items()]
        try:
            facts = validate(batches, feedback, folder / "validated", report_to=home)
        except ContractViolation as stop:
            return _stopped(home, str(stop))
        pairs = list(load_jsonl(folder / "validated" / "accepted.jsonl", PreferencePair))
        curated = curate(pairs, curation, seed)
        counts = account(facts, curated)
        quarantine = home / "quarantine.jsonl"
        shutil.copyfile(folder / "validated" / "quarantine.jsonl", quarantine)
        dump_jsonl(folder / "more.jsonl", curated.quarantined)
        with quarantine.open("ab") as file:
            file.write((folder / "more.jsonl").read_bytes())
    return {**counts, "quarantine_path": str(quarantine), "stopped": None}


def _stopped(home: Path, why: str) -> dict[str, Any]:
    report = orjson.loads((home / "report.json").read_bytes())
    names = ("read", "accepted", "merged", "quarantined", "reasons")
    counts = {name: report[name] for name in names}
    return {**counts, "quarantine_path": str(home / "quarantine.jsonl"), "stopped": why}
