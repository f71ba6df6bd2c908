"""The loop as `plumbline retrain` runs it: its answer, what it reuses, redoes and refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from plumbline.data_contracts.private_files import PRIVATE, open_to_others
from plumbline.flows.graph.stages import STAGES
from tests.flows.conftest import Trained, Workspace, write_hh_pairs


def test_the_answer_is_one_json_object(trained: Trained) -> None:
    """480 clean pairs, 30 repeated rows (2 % of 480 is 10, of three kinds), 24 ingested: 534 rows.

    Merged: 10 exact and 10 near duplicates. Quarantined: both sides of 10 contradictions of one vote
    each, and 4 rows (0.8 % of 480) of each of five kinds of spoilt rows: 20 + 20 = 40.
    """
    answer = trained.first.payload
    assert answer["model_uri"] == "models:/assistant/1"
    assert answer["alias_uris"] == ["models:/assistant@candidate", "models:/assistant@champion"]
    assert answer["gate"]["passed"] is True
    assert {reason["passed"] for reason in answer["gate"]["reasons"]} == {True}
    assert {"preference", "win_rate", "divergence", "calibration", "gold"} <= set(answer["metrics"])
    assert [stage["name"] for stage in answer["stages"]] == list(STAGES)
    assert trained.first.redone == list(STAGES)
    assert all(stage["seconds"] > 0 for stage in answer["stages"])

    counts = answer["counts"]
    assert {name: counts[name] for name in ("read", "accepted", "merged", "quarantined")} == {
        "read": 534,
        "accepted": 474,
        "merged": 20,
        "quarantined": 40,
    }
    assert sum(counts["reasons"].values()) == 40
    assert sum(counts["splits"].values()) == 474


def test_a_second_run_reuses_every_stage_and_the_version(trained: Trained) -> None:
    before = trained.hashes()
    again = trained.run("retrain", "--json")
    assert again.redone == []
    assert again.payload["model_uri"] == trained.first.payload["model_uri"]
    assert again.payload["metrics"] == trained.first.payload["metrics"]
    assert trained.hashes() == before


def test_people_read_the_same_facts(trained: Trained) -> None:
    text = trained.run("retrain").out
    assert "Feedback: read 534 = accepted 474 + merged 20 + quarantined 40" in text
    assert "plumbline audit models:/assistant@candidate" in text
    assert all(name in text for name in STAGES)


@pytest.mark.long
def test_one_prompt_has_no_interval_and_its_result_is_shown_all_the_same(copy: Workspace) -> None:
    done = copy.run("retrain", "--set", "evaluation.max_prompts=1")
    assert done.code == 1, done.err
    assert "Traceback" not in done.err
    assert "the tables could not be made" not in done.err
    assert "REJECTED by the gate" in done.out
    line = next(line for line in done.out.splitlines() if "(reward model)" in line and "at equal length" not in line)
    assert line.split()[-1] == "1"
    assert "[" not in line


def test_nothing_that_a_whole_run_leaves_is_open_to_others(trained: Trained) -> None:
    """The run was started under umask 0: stages, DVC, MLflow and Prefect wrote in processes of their own."""
    assert open_to_others(trained.root, trained.root / "inbox") == []
    written = [path for name in PRIVATE for path in (trained.root / name).rglob("*") if path.is_file()]
    assert {path.suffix for path in written} >= {".db", ".jsonl", ".safetensors", ".log"}


SPOILT = {
    "empty_response": "empty_text",
    "overlong_response": "over_long",
    "broken_json": "broken_json",
    "wrong_type": "wrong_type",
    "unknown_field": "unknown_field",
}


@pytest.fixture(scope="module")
def planted(trained: Trained) -> dict[str, list[dict[str, Any]]]:
    """The generator's own record of what it planted, by kind."""
    found: dict[str, list[dict[str, Any]]] = orjson.loads((trained.root / "data/world/planted.json").read_bytes())[
        "planted"
    ]
    assert all(found.values()), "a kind of defect was not planted at all"
    return found


@pytest.mark.parametrize("kind", ["exact_duplicate", "near_duplicate"])
def test_exactly_the_planted_duplicates_are_merged(
    trained: Trained, planted: dict[str, list[dict[str, Any]]], kind: str
) -> None:
    """Recall and precision 1: the merged pairs are the planted ones; the earlier row of each stays."""
    merged = trained.lines("data/curated/merged.jsonl")
    found = {(row["into"], row["record_id"]) for row in merged if row["reason"] == kind}
    assert found == {tuple(sorted((defect["id"], defect["of"]))) for defect in planted[kind]}


def test_exactly_the_planted_contradictions_are_set_aside(
    trained: Trained, planted: dict[str, list[dict[str, Any]]]
) -> None:
    """One vote against one is a tie: both sides go."""
    rows = trained.lines("data/curated/quarantine.jsonl")
    found = {row["record_id"] for row in rows if row["reason"] == "contradiction"}
    assert found == {name for defect in planted["contradiction"] for name in (defect["id"], defect["of"])}


def test_exactly_the_spoilt_rows_are_quarantined_with_their_reason(
    trained: Trained, planted: dict[str, list[dict[str, Any]]]
) -> None:
    rows = trained.lines("data/validated/quarantine.jsonl") + trained.lines("data/curated/quarantine.jsonl")
    found = {(row["line"], row["reason"]) for row in rows if row["reason"] != "contradiction"}
    assert found == {(defect["line"], reason) for kind, reason in SPOILT.items() for defect in planted[kind]}


def test_exactly_the_leaks_are_cut_and_the_text_is_whole_again(
    trained: Trained, planted: dict[str, list[dict[str, Any]]]
) -> None:
    pairs = [pair for name in ("train", "validation", "test") for pair in trained.lines(f"data/curated/{name}.jsonl")]
    cleaned = {pair["id"]: pair for pair in pairs if pair["cleaned"]}
    assert set(cleaned) == {leak["id"] for leak in planted["leaked_label"]}
    for leak in planted["leaked_label"]:
        pair = cleaned[leak["id"]]
        text = pair["chosen"] if leak["field"] == "chosen" else pair["prompt"][-1]["content"]
        assert text == leak["clean"]


@pytest.mark.parametrize(
    ("setting", "redone"),
    [
        pytest.param("finetune.dpo.beta=0.3", ["finetune", "evaluate", "gate"], marks=pytest.mark.long),
        # No prompt is that long: curation gives the same bytes, and all that follows stays.
        ("curation.limits.max_prompt=15000", ["curate"]),
    ],
)
def test_a_changed_param_redoes_what_depends_on_it_and_nothing_else(
    copy: Workspace, trained: Trained, setting: str, redone: list[str]
) -> None:
    before = trained.hashes()
    assert copy.run("retrain", "--set", setting, "--json").redone == redone
    changed = {STAGES[name].out for name in redone}
    assert {path for path, digest in copy.hashes().items() if digest != before[path]} <= changed


@pytest.mark.long
def test_going_back_to_earlier_params_reuses_their_results(copy: Workspace, trained: Trained) -> None:
    copy.run("retrain", "--set", "gate.min_prompts=17", "--json")
    back = copy.run("retrain", "--set", "gate.min_prompts=16", "--json")
    assert back.redone == []
    assert back.payload["model_uri"] == trained.first.payload["model_uri"]
    assert copy.hashes() == trained.hashes()


@pytest.mark.long
def test_a_model_that_fails_the_gate_is_registered_as_rejected(copy: Workspace) -> None:
    done = copy.run("retrain", "--set", "gate.min_preference_accuracy=1.0", "--json")
    assert done.code == 1
    assert "the gate said no" in done.err
    answer = done.payload
    assert answer["model_uri"] == "models:/assistant/2"
    assert answer["alias_uris"] == []
    assert answer["gate"]["passed"] is False
    assert [reason["name"] for reason in answer["gate"]["reasons"] if not reason["passed"]] == [
        "min_preference_accuracy"
    ]
    assert copy.run("audit", "models:/assistant@champion", "--json").payload["model_uri"] == "models:/assistant/1"


@pytest.mark.long
def test_a_new_batch_joins_and_is_redone_from_validation_on(copy: Workspace, trained: Trained, tmp_path: Path) -> None:
    """12 new rows in another format, one of them a tie: 534 + 12 rows read, 474 + 11 accepted."""
    pairs = [orjson.loads(line) for line in write_hh_pairs(tmp_path / "hh.jsonl", 12, seed=2).read_bytes().splitlines()]
    rows = [
        {
            "prompt": pair["chosen"].split("\n\n")[1].removeprefix("Human: "),
            "response_a": pair["chosen"].rsplit("Assistant: ", 1)[1],
            "response_b": pair["rejected"].rsplit("Assistant: ", 1)[1],
            "label": label,
        }
        for pair, label in zip(pairs, ["a", "b"] * 5 + ["a", "tie"], strict=True)
    ]
    batch = tmp_path / "second.jsonl"
    batch.write_bytes(b"".join(orjson.dumps({"id": f"new-{n}", **row}) + b"\n" for n, row in enumerate(rows)))

    (taken,) = copy.run("ingest", "human_pairs", batch, "--json").payload["batches"]
    assert taken["new"] is True
    assert (copy.root / taken["batch"]).read_bytes() == batch.read_bytes()

    done = copy.run("retrain", "--json")
    assert done.redone == ["validate", "curate", "lengths", "reward", "finetune", "evaluate", "gate"]
    counts = done.payload["counts"]
    assert (counts["read"], counts["accepted"], counts["merged"], counts["quarantined"]) == (546, 485, 20, 41)

    used = copy.run("audit", "--record", "new-0", "--json").payload
    assert used["origins"] == [{"file": taken["batch"], "line": 1}]
    assert {use["model_uri"] for use in used["versions"]} == {done.payload["model_uri"]}

    (again,) = copy.run("ingest", "human_pairs", batch, "--json").payload["batches"]
    assert again == {**taken, "new": False}
    assert copy.run("retrain", "--json").redone == []


def test_an_ingest_that_fails_half_way_leaves_a_workspace_that_runs(copy: Workspace, tmp_path: Path) -> None:
    """The first file is taken, the second does not exist: what was taken is versioned all the same."""
    batch = write_hh_pairs(tmp_path / "good.jsonl", 3, seed=3)
    done = copy.run("ingest", "human_pairs", batch, tmp_path / "missing.jsonl")
    assert done.code == 2
    assert "missing.jsonl" in done.err
    status = copy.shell("dvc", "status", "--json", "data/raw.dvc")
    assert orjson.loads(status.out) == {}


def test_a_batch_stored_by_a_killed_ingest_is_versioned_by_the_next(copy: Workspace, tmp_path: Path) -> None:
    """A kill between storing and versioning leaves a batch that DVC does not know."""
    batch = write_hh_pairs(tmp_path / "good.jsonl", 3, seed=4)
    before = copy.hashes()["data/raw"]
    from plumbline.tasks.data.feedback.batches import store_batch

    store_batch(batch, "human_pairs", copy.root / "data/raw")
    assert copy.run("ingest", "human_pairs", batch, "--json").payload["batches"][0]["new"] is False
    assert copy.hashes()["data/raw"] != before
    assert orjson.loads(copy.shell("dvc", "status", "--json", "data/raw.dvc").out) == {}


@pytest.mark.long
def test_a_file_edited_by_hand_is_refused_and_kept(copy: Workspace) -> None:
    train = copy.root / "data/curated/train.jsonl"
    train.chmod(0o644)
    edited = train.read_bytes().replace(b"chosen", b"CHOSEN", 1)
    train.write_bytes(edited)
    done = copy.run("retrain", "--json")
    assert (done.code, done.payload["error"]["exit_code"]) == (3, 3)
    assert "data/curated" in done.err
    assert "train.jsonl" in done.err
    assert "dvc checkout data/curated" in done.err
    assert train.read_bytes() == edited

    assert copy.shell("dvc", "checkout", "--force", "data/curated").code == 0
    assert copy.run("retrain", "--json").redone == []


def test_uncommitted_changes_are_refused_before_any_work(copy: Workspace) -> None:
    """With `on_dirty: refuse` nothing runs: the gate, which this setting makes dirty, keeps its result."""
    before = copy.hashes()
    done = copy.run("retrain", "--set", "registry.on_dirty=refuse", "--set", "gate.min_prompts=17")
    assert done.code == 3
    assert "Commit them" in done.err
    assert copy.hashes() == before


def test_a_server_that_does_not_answer_is_named_without_a_traceback(copy: Workspace) -> None:
    """Where there is something to do: else no server is asked."""
    nowhere = Workspace(copy.root, "http://127.0.0.1:9/api")
    done = nowhere.run("retrain", "--set", "gate.min_prompts=17", "--json")
    assert (done.code, done.payload["error"]["kind"]) == (2, "UsageError")
    assert "http://127.0.0.1:9/api" in done.err
    assert "Traceback" not in done.err
