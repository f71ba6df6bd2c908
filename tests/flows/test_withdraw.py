"""`plumbline withdraw` as a person uses it, on a workspace with a registered model."""

from __future__ import annotations

import pytest

from tests.flows.conftest import Workspace

pytestmark = pytest.mark.long


def test_a_withdrawn_batch_is_out_of_the_next_run_and_its_models_are_named(copy: Workspace) -> None:
    """The one ingested batch has 24 sound rows, which model 1 rests on; the sample world's 510 rows are as before."""
    (batch,) = (copy.root / "data/raw/human_pairs").glob("*.jsonl")
    done = copy.run("withdraw", "--batch", batch.stem, "--reason", "bought from a farm", "--json")
    assert done.code == 0, done.err
    told = done.payload
    assert (told["changed"], told["rows"], told["entry"]["reason"]) == (True, 24, "bought from a farm")
    assert [row["model_uri"] for row in told["versions"]] == ["models:/assistant/1"]
    assert batch.is_file()

    again = copy.run("retrain", "--json")
    assert again.code in (0, 1), again.err
    counts = again.payload["counts"]
    assert counts["read"] == counts["accepted"] + counts["merged"] + counts["quarantined"] == 534
    assert counts["reasons"]["withdrawn"] == 24
    used = {row["origin"]["file"] for name in ("train", "test") for row in copy.lines(f"data/curated/{name}.jsonl")}
    assert used
    assert all(file.startswith("data/world/") for file in used)

    listed = copy.run("withdraw", "--list", "--json").payload["withdrawals"]
    assert [(row["kind"], row["name"], row["undone"]) for row in listed] == [
        ("batch", batch.relative_to(copy.root).as_posix(), False)
    ]
    refused = copy.run("withdraw", "--batch", batch.stem)
    assert refused.code == 2
    assert "--reason" in refused.err
