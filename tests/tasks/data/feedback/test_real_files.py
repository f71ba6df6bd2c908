"""Public preference data, read as it is."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import orjson
import pytest

from plumbline.data_contracts.errors import ContractViolation
from plumbline.tasks.data.feedback.batches import store_batch
from plumbline.tasks.data.feedback.validate import raw_batches, validate
from plumbline.tasks.params.feedback import FeedbackParams

WARN = FeedbackParams(on_single_label="warn", quarantine_threshold=0.01)


def facts_of(shared: Path, name: str, tmp_path: Path, params: FeedbackParams = WARN) -> dict[str, Any]:
    path = shared / "data" / f"{name}.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"{path} is not on this machine")
    store_batch(path, "human_pairs", tmp_path / "raw")
    (tmp_path / "out").mkdir()
    return validate(raw_batches(tmp_path / "raw", tmp_path), params, tmp_path / "out")


def test_hh_harmless(shared: Path, tmp_path: Path) -> None:
    """Counted apart from this code: 2 empty responses; 4 responses with a marker of a further turn inside; 2
    prompts with two turns of the assistant in a row. Every label is a.
    """
    facts = facts_of(shared, "hh_harmless_test", tmp_path)
    assert (facts["read"], facts["accepted"], facts["quarantined"]) == (1586, 1578, 8)
    assert facts["reasons"] == {"turn_order": 6, "empty_text": 2}
    assert facts["formats"] == {"response_label_hh_prompt": 1586}
    assert facts["label_counts"] == {"a": 1586}
    assert len(facts["warnings"]) == 1


def test_hh_harmless_stops_by_default(shared: Path, tmp_path: Path) -> None:
    with pytest.raises(ContractViolation, match=r"one class only.*\(a 1586\)"):
        facts_of(shared, "hh_harmless_test", tmp_path, FeedbackParams())


@pytest.mark.slow
def test_ukp_convarg_pairs(shared: Path, tmp_path: Path) -> None:
    facts = facts_of(shared, "ukp_convarg_pairs", tmp_path)
    assert (facts["read"], facts["accepted"], facts["quarantined"]) == (8278, 8278, 0)
    assert facts["label_counts"] == {"a": 4184, "b": 4094}


@pytest.mark.slow
def test_ties_of_the_crowd(shared: Path, tmp_path: Path) -> None:
    """The ties are counted here from the file itself."""
    facts = facts_of(shared, "ukp_convarg_crowd", tmp_path)
    with gzip.open(shared / "data" / "ukp_convarg_crowd.jsonl.gz") as file:
        ties = sum(orjson.loads(line)["label"] == "tie" for line in file)
    assert facts["reasons"] == {"tie": ties}
    assert facts["accepted"] == facts["read"] - ties
