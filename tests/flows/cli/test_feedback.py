"""`plumbline ingest` and `validate` on files that say what they are, and on tables that a map explains."""

from __future__ import annotations

import subprocess
from pathlib import Path

import orjson
import pytest

from plumbline.flows.graph.workspaces import init_workspace
from plumbline.tasks.data.feedback import SOURCES
from tests.flows.conftest import Workspace

pytestmark = pytest.mark.slow

NAMED = ("prompt=task", "response_a=one", "response_b=two", "label=vote", "label.a=0", "label.b=1")
MAP = [word for each in NAMED for word in ("--map", each)]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    init_workspace(tmp_path / "workspace")
    return Workspace(tmp_path / "workspace", "http://127.0.0.1:9/api")


def table(folder: Path, rows: int = 20) -> Path:
    path = folder / "table.tsv"
    lines = (f"t {n}\tyes\tno\t{n % 2}\n" for n in range(rows))
    path.write_text("task\tone\ttwo\tvote\n" + "".join(lines))
    return path


def test_the_files_of_a_folder_say_what_they_are(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/pairs.csv").write_text("prompt,chosen,rejected\n" + "".join(f"p {n},yes,no\n" for n in range(3)))
    thumbs = [{"prompt": f"p {n}", "response": "yes", "thumb": "up"} for n in range(3)]
    (tmp_path / "in/thumbs.json").write_bytes(orjson.dumps(thumbs))
    done = workspace.run("ingest", tmp_path / "in", "--json")
    assert done.code == 0, done.err
    assert [(Path(row["file"]).name, row["source"], row["new"]) for row in done.payload["batches"]] == [
        ("pairs.csv", "human_pairs", True),
        ("thumbs.json", "unpaired_responses", True),
    ]
    assert "TRL's standard pairs (format trl_standard, 3 of the first 3 rows), read as human_pairs." in done.err
    again = workspace.run("ingest", f"{tmp_path}/in/*.csv", "--json")
    assert [row["new"] for row in again.payload["batches"]] == [False]


def test_a_table_is_read_by_its_map_now_and_later(workspace: Workspace, tmp_path: Path) -> None:
    path = table(tmp_path)
    refused = workspace.run("ingest", path, "--json")
    assert refused.code == 2 and "--map prompt=COLUMN" in refused.err
    done = workspace.run("ingest", path, *MAP, "--json")
    assert done.code == 0, done.err
    report = workspace.run("validate", path, *MAP, "--json").payload
    assert (report["read"], report["accepted"] + report["merged"]) == (20, 20)
    (batch,) = done.payload["batches"]
    stored = workspace.root / batch["batch"]
    assert [row.label for row in SOURCES["human_pairs"](stored, "f")] == ["a", "b"] * 10
    assert [path.name for path in stored.parent.glob(".*.map")]
    again = workspace.run("ingest", path, "--json")
    assert again.code == 0 and [row["new"] for row in again.payload["batches"]] == [False]


def test_a_map_of_params_goes_with_the_path(workspace: Workspace, tmp_path: Path) -> None:
    columns = ", ".join(each.replace("=", ": ", 1) for each in NAMED)
    settings = (
        "--set",
        "reference.base=given",
        "--set",
        f"feedback.path={table(tmp_path)}",
        "--set",
        f"feedback.map={{{columns}}}",
    )
    done = workspace.run("retrain", "--dry-run", *settings, "--json")
    assert done.code == 0, done.err
    (batch,) = done.payload["to_ingest"]
    assert (batch["rows"], batch["source"], batch["new"]) == (20, "human_pairs", True)


def test_words_that_are_no_map_and_no_source(workspace: Workspace, tmp_path: Path) -> None:
    for words, message in (
        (["--map", "promt=x", table(tmp_path)], "Did you mean prompt"),
        (["human-pairs", table(tmp_path)], "human-pairs: unknown source of feedback"),
        ([f"{tmp_path}/*.nothing"], "no file is named so"),
    ):
        done = workspace.run("ingest", *words)
        assert done.code == 2
        assert message in done.err


def test_standard_input_is_read_once(workspace: Workspace) -> None:
    lines = b"".join(orjson.dumps({"prompt": f"p {n}", "chosen": "yes", "rejected": "no"}) + b"\n" for n in range(3))
    with workspace.start(
        "plumbline", "ingest", "-", "--json", stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        out, _ = process.communicate(lines, timeout=300)
    assert process.returncode == 0
    assert [row["source"] for row in orjson.loads(out)["batches"]] == ["human_pairs"]


def test_a_forgotten_prompt_column_stops(workspace: Workspace, tmp_path: Path) -> None:
    """Twenty pairs whose common start is Yes or No; a common start of many words is a prompt."""
    starts = ("Yes,", "No,")
    rows = [{"chosen": f"{starts[n % 2]} use {n}.", "rejected": f"{starts[n % 2]} never {n}"} for n in range(20)]
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b"\n".join(map(orjson.dumps, rows)))
    done = workspace.run("validate", path, "--json")
    assert done.code == 1
    assert "no prompt column: expected a prompt for each pair" in done.payload["stopped"]
    assert "20 rows, 2 prompts, 20 below 4 words" in done.payload["stopped"]
    warned = workspace.run("validate", path, "--set", "feedback.on_implied_prompts=warn", "--json")
    assert "no prompt column" not in str(warned.payload)
    for row, n in zip(rows, range(20), strict=True):
        row.update({side: f"What is the capital of country {n}? {row[side]}" for side in ("chosen", "rejected")})
    path.write_bytes(b"\n".join(map(orjson.dumps, rows)))
    assert "no prompt column" not in str(workspace.run("validate", path, "--json").payload["stopped"])
