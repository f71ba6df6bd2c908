"""`plumbline clinic` through the command line: over files, over a workspace, and the way back by `ingest`."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import orjson
import pytest

from plumbline.data_contracts.artifact import verify_artifact
from plumbline.flows.graph.workspaces import init_workspace
from plumbline.tasks.storage.versioning.git import run_git
from tests.flows.conftest import Done, Workspace

pytestmark = pytest.mark.slow


def write_votes(path: Path, pairs: int = 40) -> Path:
    """Three annotators on each pair; ann and bob always name the good response, zed draws by chance."""
    rng = Random(0)
    rows: list[dict[str, Any]] = []
    for n in range(pairs):
        good = rng.choice("ab")
        two = {"a": f"evil{n} words{n}", "b": f"evil{n} words{n}", good: f"good{n} reply{n}"}
        texts = {f"response_{side}": text for side, text in two.items()}
        for who, label in (("ann", good), ("bob", good), ("zed", rng.choice("ab"))):
            rows.append({"prompt": f"question{n}?", **texts, "label": label, "annotator": who})
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return path


def outside(place: Path, *arguments: object) -> Done:
    return Workspace(place, "http://127.0.0.1:9/api").run("clinic", *arguments)


def test_files_are_examined_outside_of_a_workspace(tmp_path: Path) -> None:
    """On some of 40 pairs zed says otherwise, and each of these is offered; two of three votes are for its label."""
    file = write_votes(tmp_path / "votes.jsonl")
    rows = list(map(orjson.loads, file.read_bytes().splitlines()))
    zed = sum(rows[n]["label"] != rows[n + 2]["label"] for n in range(0, 120, 3))
    done = outside(tmp_path, file, "--out", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    report = done.payload
    assert report["read"] == {"rows": 120, "pairs": 120, "ties": 0, "set_aside": 0}
    assert (report["votes"]["units"], report["votes"]["judged_twice"]) == (40, 40)
    assert [row["annotator"] for row in report["annotators"]["listed"] if row["suspicious"]] == ["zed"]
    assert report["second_look"] == {"doubtful": zed, "listed": zed, "reward_model": False}
    assert verify_artifact(Path(report["folder"])) == []
    assert orjson.loads((tmp_path / "out/report.json").read_bytes()) == {
        name: value for name, value in report.items() if name != "folder"
    }
    assert len((tmp_path / "out/second_look.jsonl").read_bytes().splitlines()) == zed


def test_a_person_reads_figures_reasons_and_where_to_go_on(tmp_path: Path) -> None:
    done = outside(tmp_path, write_votes(tmp_path / "votes.jsonl"), "--out", tmp_path / "out", "--most", 3)
    assert done.code == 0, done.err
    assert "Read 120 rows = 120 pairs + 0 ties + 0 set aside." in done.out
    for words in (
        "Krippendorff's alpha",
        "best accuracy of a reward model, most",
        "zed agrees with the others less than the rest",
    ):
        assert words in done.out
    assert "3 of them are in" in done.out
    assert len((tmp_path / "out/second_look.jsonl").read_bytes().splitlines()) == 3


def test_the_feedback_of_a_workspace_and_the_votes_that_come_back(tmp_path: Path) -> None:
    """Two new annotators who name the other response of a pair with one vote turn its label at the next look."""
    init_workspace(tmp_path / "workspace")
    workspace = Workspace(tmp_path / "workspace", "http://127.0.0.1:9/api")
    none = workspace.run("clinic")
    assert none.code == 2
    assert "expected feedback to examine, found none" in none.err
    assert workspace.run("ingest", write_votes(tmp_path / "votes.jsonl")).code == 0
    assert workspace.run("clinic", "--json").code == 0
    folder = workspace.root / "reports/clinic"
    assert "reports" not in run_git(workspace.root, "status", "--porcelain", "--untracked-files=all")
    asked = [orjson.loads(line) for line in (folder / "second_look.jsonl").read_bytes().splitlines()]
    reasons = {row["clinic"]: row for row in map(orjson.loads, (folder / "reasons.jsonl").read_bytes().splitlines())}
    answered = tmp_path / "answered.jsonl"
    rows = []
    for row in asked:
        other = "b" if row["response_a"] == reasons[row["metadata"]["clinic"]]["label"] else "a"
        rows += [{**row, "label": other, "annotator": f"new {number}"} for number in range(2)]
    answered.write_bytes(b"\n".join(map(orjson.dumps, rows)))
    assert workspace.run("ingest", answered).code == 0
    report = workspace.run("clinic", "--json").payload
    assert report["read"]["set_aside"] == 0
    assert report["votes"]["votes"] == 120 + len(rows)
    after = {row["clinic"]: row for row in map(orjson.loads, (folder / "reasons.jsonl").read_bytes().splitlines())}
    assert set(after) == set(reasons)
    for name, row in after.items():
        assert row["votes"] == {"label": 3, "other": 2, "tie": 0}
        assert row["label"] != reasons[name]["label"], "three votes of five have turned it"


def test_a_row_that_nobody_labelled_is_set_aside_alone(tmp_path: Path) -> None:
    outside(tmp_path, write_votes(tmp_path / "votes.jsonl"), "--out", tmp_path / "out")
    rows = [orjson.loads(line) for line in (tmp_path / "out/second_look.jsonl").read_bytes().splitlines()]
    rows[0]["label"] = "a"
    (tmp_path / "half.jsonl").write_bytes(b"\n".join(map(orjson.dumps, rows)))
    read = outside(tmp_path, "human_pairs", tmp_path / "half.jsonl", "--out", tmp_path / "again", "--json").payload[
        "read"
    ]
    assert read == {"rows": len(rows), "pairs": 1, "ties": 0, "set_aside": len(rows) - 1}
