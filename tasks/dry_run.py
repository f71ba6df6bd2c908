"""Verb: contract check and curation of files without ingesting them."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from data_contracts.records import PreferencePair, dump_jsonl, load_jsonl
from tasks.curate_preferences import account
from tasks.curation.curate import curate
from tasks.curation.params import CurationParams
from tasks.feedback.batches import store_batch
from tasks.feedback.params import FeedbackParams
from tasks.feedback.validate import raw_batches, validate


def dry_run(
    root: Path, source: str, paths: list[str], feedback: FeedbackParams, curation: CurationParams, seed: int
) -> dict[str, Any]:
    """Account for every row of the files as a run would; keep only the quarantine file.

    Raises as the stages do: `UsageError` for unreadable files, `ContractViolation` over the threshold.
    """
    home = root / ".plumbline" / "dry-run"
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home) as name:
        folder = Path(name)
        for path in paths:
            store_batch(path, source, folder / "raw")
        (folder / "validated").mkdir()
        facts = validate(raw_batches(folder / "raw", within=folder), feedback, folder / "validated", report_to=home)
        pairs = list(load_jsonl(folder / "validated" / "accepted.jsonl", PreferencePair))
        curated = curate(pairs, curation, seed)
        counts = account(facts, curated)
        quarantine = home / "quarantine.jsonl"
        shutil.copyfile(folder / "validated" / "quarantine.jsonl", quarantine)
        dump_jsonl(folder / "more.jsonl", curated.quarantined)
        with quarantine.open("ab") as file:
            file.write((folder / "more.jsonl").read_bytes())
    return {**counts, "quarantine_path": str(quarantine)}
