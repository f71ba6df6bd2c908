"""Feedback that comes in beside a whole run, from processes that are killed as well: the run ends, nothing is lost."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import orjson
import pytest

from tests.flows.conftest import TINY, Workspace, write_hh_pairs

pytestmark = pytest.mark.long

ROWS = 6
MOST = 12  # batches


@pytest.mark.timeout(1800)
def test_ingest_in_a_loop_beside_a_run_with_kills(fresh: Callable[[str], Workspace], tmp_path: Path) -> None:
    """Every second ingest is killed. Each batch that an ingest ended well with is in the store, none twice.

    A batch whose ingest was killed has come in whole or not at all: it is then new to the ingest that repeats it.
    """
    workspace, rng = fresh("beside"), Random(7)
    kept: list[Path] = []
    sent: list[Path] = []
    beside = 0
    with (tmp_path / "log").open("wb") as log:
        run = workspace.start("plumbline", "retrain", "--params", TINY, "--json", stdout=subprocess.PIPE, stderr=log)
        while len(sent) < MOST:
            beside += run.poll() is None
            path = write_hh_pairs(tmp_path / f"{len(sent)}.jsonl", ROWS, seed=1000 + len(sent))
            sent.append(path)
            ingest = workspace.start("plumbline", "ingest", "human_pairs", path, stdout=log, stderr=log)
            if len(sent) % 2 == 0:
                time.sleep(rng.uniform(0.5, 6.0))
                ingest.kill()
            if ingest.wait() == 0:
                kept.append(path)
            assert ingest.returncode in (0, -9), (tmp_path / "log").read_text()
        out, _ = run.communicate(timeout=900)
    assert run.returncode == 0, (tmp_path / "log").read_text() + out.decode()
    assert beside > 2
    assert len(kept) >= MOST / 2
    during = orjson.loads((workspace.root / "data/validated/report.json").read_bytes())
    seen = [batch["file"] for batch in during["batches"] if batch["file"].startswith("data/raw/")]
    assert len(seen) < len(kept), "the run read what was there when it began"

    stored = [path.read_bytes() for path in (workspace.root / "data/raw/human_pairs").iterdir()]
    assert len(stored) == len(set(stored))
    assert {path.read_bytes() for path in kept} <= set(stored)
    again = workspace.shell("plumbline", "ingest", "human_pairs", *sent, "--json").payload
    assert not any(row["new"] for row in again["batches"] if Path(row["file"]) in kept)
    assert workspace.shell("plumbline", "stage", "validate").code == 0
    after = orjson.loads((workspace.root / "data/validated/report.json").read_bytes())
    mine = [batch["read"] for batch in after["batches"] if batch["file"].startswith("data/raw/")]
    assert sum(mine) == 24 + ROWS * len(sent)
    assert "up to date" in workspace.shell("dvc", "status", "data/raw.dvc").out
