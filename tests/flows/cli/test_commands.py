"""The commands of daily use, through the command line, on a workspace that the loop really made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest

from plumbline.data_contracts.artifact import verify_artifact
from plumbline.flows.graph.stages import STAGES
from plumbline.tasks.params.layers import load_params
from plumbline.tasks.storage.versioning.objects import ObjectStore
from tests.flows.cli.test_main import COMMANDS
from tests.flows.conftest import Trained, Workspace, write_hh_pairs

# --- audit -----------------------------------------------------------------------------------------------------------


def test_an_audit_walks_from_the_model_to_raw_feedback(trained: Trained) -> None:
    done = trained.run("audit", "models:/assistant@champion", "--json")
    assert done.code == 0, done.err
    report = done.payload
    assert {"model_uri", "verified", "objects", "problems"} <= set(report)
    assert (report["model_uri"], report["verified"], report["problems"]) == ("models:/assistant/1", True, [])
    assert all(item["ok"] for item in report["objects"])

    (batch,) = (trained.root / "data/raw/human_pairs").glob("*.jsonl")
    named = {item["name"] for item in report["objects"]}
    assert {f"data/raw/human_pairs/{batch.name}", "data/world/feedback/human_pairs.jsonl"} <= named
    assert {stage.out for stage in STAGES.values()} <= {name.rstrip("/") for name in named}
    tree = trained.run("audit", "assistant").out
    assert "CHANGED" not in tree
    assert batch.name in tree


def _cached(trained: Trained, folder: str, file: str) -> Path:
    store = ObjectStore(trained.root)
    return store.cache_path(store.listing(trained.hashes()[folder])[file])


def _in_mlflow(trained: Trained, file: str) -> Path:
    (path,) = (trained.root / ".plumbline/mlartifacts").rglob(file)
    return path


@pytest.mark.parametrize(
    ("where", "named"),
    [
        (lambda t: _cached(t, "models/policy", "model.safetensors"), "models/policy/model.safetensors"),
        (lambda t: _cached(t, "data/world", "feedback/human_pairs.jsonl"), "data/world/feedback/human_pairs.jsonl"),
        (lambda t: next((t.root / "data/raw/human_pairs").glob("*.jsonl")), "data/raw/human_pairs/"),
        (lambda t: t.root / "data/curated/train.jsonl", "data/curated/train.jsonl"),
        (lambda t: _in_mlflow(t, "model/model.safetensors"), "model/model.safetensors"),
        (lambda t: _in_mlflow(t, "artifacts/manifest.json"), "manifest.json"),
    ],
    ids=["cached policy", "cached world", "raw batch", "curated file", "registered weights", "registered manifest"],
)
def test_one_changed_byte_is_found_and_named(trained: Trained, where: object, named: str) -> None:
    with _one_byte_changed(where(trained)):  # type: ignore[operator]
        done = trained.run("audit", "assistant", "--json")
        shown = trained.run("audit", "assistant").out
    assert done.code == 1
    report = done.payload
    assert report["verified"] is False
    assert any(named in problem for problem in report["problems"])
    # what was signed is no longer what lies there, which the signature says of itself
    bad = [item for item in report["objects"] if not item["ok"] and item["kind"] != "signature"]
    assert bad
    assert all(named in item["name"] for item in bad)
    assert "CHANGED" in shown
    assert trained.run("audit", "assistant", "--json").payload["verified"] is True


@contextmanager
def _one_byte_changed(path: Path) -> Iterator[None]:
    """Flip the lowest bit of the middle byte, and put file, mode and times back."""
    data, stat = path.read_bytes(), path.stat()
    middle = len(data) // 2
    path.chmod(0o644)
    path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    try:
        yield
    finally:
        path.write_bytes(data)
        path.chmod(stat.st_mode)


def test_a_record_is_traced_to_what_became_of_it(trained: Trained) -> None:
    accepted = trained.lines("data/curated/train.jsonl")[0]
    merged = trained.lines("data/curated/merged.jsonl")[0]
    contradicting = trained.lines("data/curated/quarantine.jsonl")[0]
    invalid = next(row for row in trained.lines("data/validated/quarantine.jsonl") if row["record_id"])
    for name, use, where in (
        (accepted["id"], "trained on", accepted["origin"]),
        (merged["record_id"], "not used: merged into another record", merged["origin"]),
        (contradicting["record_id"], "not used: quarantined", {key: contradicting[key] for key in ("file", "line")}),
        (invalid["record_id"], "not used: quarantined", {key: invalid[key] for key in ("file", "line")}),
    ):
        done = trained.run("audit", "--record", name, "--json")
        assert done.code == 0, done.err
        found = done.payload
        assert (found["record"], found["found"], found["origins"]) == (name, True, [where])
        assert {(item["model_uri"], item["use"]) for item in found["versions"]} == {("models:/assistant/1", use)}


def test_an_unknown_record_is_said_to_be_unknown(trained: Trained) -> None:
    done = trained.run("audit", "--record", "nobody", "--json")
    assert done.code == 1
    assert done.payload["found"] is False
    assert "record nobody: no dataset" in done.err


@pytest.mark.parametrize("model", ["models:/assistant/99", "models:/assistant@best", "models:/stranger/1", "stranger"])
@pytest.mark.parametrize("command", ["audit", "restore"])
def test_an_unknown_model_is_named(trained: Trained, tmp_path: Path, command: str, model: str) -> None:
    extra = ["--to", tmp_path / "new"] if command == "restore" else []
    done = trained.run(command, model, *extra, "--json")
    assert done.code == 2
    assert done.payload["error"]["kind"] == "UnknownModelError"
    assert model in done.err
    assert not (tmp_path / "new").exists()


def test_an_audit_needs_a_model_or_a_record(trained: Trained) -> None:
    assert trained.run("audit").code == 2
    assert trained.run("audit", "assistant", "--record", "hp-000001").code == 2


# --- restore ---------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_restored_folder_is_the_workspace_that_made_the_model(trained: Trained, tmp_path: Path) -> None:
    to = tmp_path / "restored"
    done = trained.run("restore", "models:/assistant@champion", "--to", to, "--json")
    assert done.code == 0, done.err
    assert done.payload["model_uri"] == "models:/assistant/1"
    restored = Workspace(to, trained.server)
    assert restored.hashes() == trained.hashes() == done.payload["objects"]
    assert load_params(to) == load_params(trained.root)
    assert all(verify_artifact(to / stage.out) == [] for stage in STAGES.values())
    assert orjson.loads(restored.shell("dvc", "status", "--json").out) == {}
    assert restored.run("retrain", "--json").redone == []


def test_restore_refuses_a_folder_with_content(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    done = trained.run("restore", "assistant", "--to", tmp_path)
    assert done.code == 2
    assert "expected a new or empty folder" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


# --- validate and ingest ---------------------------------------------------------------------------------------------


def test_validate_accounts_for_every_row_and_ingests_nothing(trained: Trained, tmp_path: Path) -> None:
    """Ten good rows, the first one twice, one line that is no JSON: 12 read, 10 + 1 + 1."""
    batch = write_hh_pairs(tmp_path / "rows.jsonl", 10, seed=5)
    lines = batch.read_bytes().splitlines(keepends=True)
    batch.write_bytes(b"".join([*lines, lines[0], b'{"chosen": \n']))
    before = sorted((trained.root / "data").rglob("*"))

    done = trained.run("validate", "human_pairs", batch, "--set", "feedback.quarantine_threshold=0.2", "--json")
    assert done.code == 0, done.err
    report = done.payload
    assert {"read", "accepted", "merged", "quarantined", "reasons", "quarantine_path"} <= set(report)
    counts = report["read"], report["accepted"], report["merged"], report["quarantined"]
    assert counts == (12, 10, 1, 1)
    assert report["reasons"] == {"broken_json": 1}
    (row,) = map(orjson.loads, Path(report["quarantine_path"]).read_bytes().splitlines())
    assert (row["reason"], row["line"]) == ("broken_json", 12)

    assert sorted((trained.root / "data").rglob("*")) == before
    assert load_params(trained.root)[0].feedback.quarantine_threshold == 0.1
    assert "read" in trained.run("validate", "human_pairs", batch, "--set", "feedback.quarantine_threshold=0.2").out


def test_validate_says_no_when_too_many_rows_are_bad(trained: Trained, tmp_path: Path) -> None:
    batch = write_hh_pairs(tmp_path / "rows.jsonl", 4, seed=6)
    with batch.open("ab") as file:
        file.write(b"not json\n")
    done = trained.run("validate", "human_pairs", batch, "--json")
    assert done.code == 1
    assert "found 1 of 5 = 20.0%" in done.err
    assert f"{batch} line 5" in done.err
    report = done.payload
    assert (report["read"], report["accepted"], report["merged"], report["quarantined"]) == (5, 4, 0, 1)
    assert report["reasons"] == {"broken_json": 1}
    assert "found 1 of 5 = 20.0%" in report["stopped"]
    (row,) = map(orjson.loads, Path(report["quarantine_path"]).read_bytes().splitlines())
    assert (row["file"], row["line"]) == (str(batch), 5)


@pytest.mark.parametrize("command", ["ingest", "validate"])
def test_files_and_sources_that_are_not_there_are_named(trained: Trained, tmp_path: Path, command: str) -> None:
    for source, file, message in (
        ("human_pairs", tmp_path / "missing.jsonl", "missing.jsonl"),
        ("rankigns", tmp_path, "expected one of human_pairs"),
    ):
        done = trained.run(command, source, file, "--json")
        assert done.code == 2
        assert message in done.err
        assert done.payload == {"error": {"kind": "UsageError", "message": done.err[11:-1], "exit_code": 2}}


# --- every command ---------------------------------------------------------------------------------------------------

ARGUMENTS = {
    "retrain": [],
    "compare": [],
    "self-play": [],
    "stage": ["gate"],
    "ingest": ["human_pairs", "file.jsonl"],
    "audit": ["assistant"],
    "reproduce": ["assistant"],
    "restore": ["assistant", "--to", "new"],
    "up": [],
    "down": [],
    "status": [],
    "deploy": [],
    "schedule": ["0 3 * * 1"],
    "run": ["retrain"],
    "inbox watch": [],
    "inbox scan": [],
    "intake serve": [],
    "intake token": ["ann"],
    "outbox list": [],
    "outbox drain": [],
    "promote": ["assistant", "--reason", "better"],
    "rollback": ["--reason", "worse"],
    "history": [],
    "delete": ["assistant/1", "--reason", "old"],
    "canary list": [],
    "canary retry": ["--reason", "fixed"],
    "serve": [],
    "harvest": [],
    "traffic": [],
    "monitor": [],
    "live": [],
    "keys list": [],
    "keys rotate": ["--reason", "yearly"],
    "keys add": ["other.pub", "--reason", "second"],
    "keys revoke": ["0" * 64, "--reason", "lost"],
    "keys export": [],
    "params show": [],
    "params set": ["seed=4"],
    "params unset": ["seed"],
    "migrate": [],
    "backup": ["elsewhere"],
    "withdraw": ["--token", "ann", "--reason", "asked"],
    "clinic": [],
    "erase": ["--annotator", "ann", "--reason", "asked"],
    "export": ["pairs.jsonl", "--to", "trl"],
}


def test_the_table_of_arguments_holds_every_command_that_needs_a_workspace() -> None:
    anywhere = {"init", "doctor", "restore-workspace", "keys trust", "validate"}
    assert {*ARGUMENTS, *anywhere} == set(COMMANDS)


@pytest.mark.parametrize("command", ARGUMENTS)
def test_outside_a_workspace_a_command_says_how_to_make_one(tmp_path: Path, command: str) -> None:
    done = Workspace(tmp_path, "http://127.0.0.1:9/api").run(*command.split(), *ARGUMENTS[command])
    assert (done.code, done.out) == (2, "")
    assert "plumbline init DIR" in done.err
    assert "Traceback" not in done.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_outside_a_workspace_the_process_ends_without_a_traceback(tmp_path: Path) -> None:
    done = Workspace(tmp_path, "http://127.0.0.1:9/api").shell("plumbline", "retrain", "--json")
    assert (done.code, done.payload["error"]["exit_code"]) == (2, 2)
    assert done.err.startswith("plumbline: ")
    assert done.err.count("\n") == 1


@pytest.mark.slow
def test_a_command_line_never_shows_a_password(tmp_path: Path) -> None:
    """Refused wherever it would be kept, and masked in the refusal: params, and DVC's remote."""
    place = Workspace(tmp_path, "http://127.0.0.1:9/api")
    assert place.run("init", "ws").code == 0
    for arguments in (
        ("retrain", "-C", "ws", "--set", "registry.tracking_uri=postgresql://me:hunter2@host/db", "--json"),
        ("init", "other", "--remote", "https://me:hunter2@host/x", "--json"),
    ):
        done = place.run(*arguments)
        assert done.code == 2
        assert "://me:***@host" in done.payload["error"]["message"]
        assert "hunter2" not in done.out + done.err
    assert "hunter2" not in (tmp_path / "ws/params.yaml").read_text()
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(("command", "path"), [("init", "/proc/new"), ("restore", "/proc/new/x")])
def test_a_folder_that_cannot_be_made_is_named(trained: Trained, command: str, path: str) -> None:
    done = trained.run(*(("init", path) if command == "init" else ("restore", "assistant", "--to", path)))
    assert done.code == 2
    assert f"{path}: cannot write there" in done.err


def test_a_command_works_from_a_folder_inside_the_workspace(trained: Trained) -> None:
    inside = Workspace(trained.root / "data/curated", trained.server)
    assert inside.run("audit", "assistant", "--json").code == 0


def test_an_unknown_stage_is_named(trained: Trained) -> None:
    done = trained.run("stage", "curat")
    assert done.code == 2
    assert "curate" in done.err


def test_doctor_looks_at_everything(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", trained.server)
    done = trained.run("doctor", "--json")
    report = done.payload
    findings = {finding["name"]: finding for finding in report["findings"]}
    assert {
        "torch",
        "trl",
        "prefect",
        "mlflow",
        "mlflow store",
        "dvc",
        "dvc remote",
        "git",
        "workspace",
        "disk",
        "gpu",
    } <= set(findings)
    ill = [name for name, finding in findings.items() if not finding["ok"]]
    assert (report["ok"], done.code) == (not ill, 1 if ill else 0)
    assert findings["workspace"]["found"] == str(trained.root)
    assert findings["mlflow store"]["ok"]
    assert findings["dvc remote"]["found"] == str(trained.root / ".plumbline/remote")


@pytest.mark.slow
def test_doctor_finds_a_store_that_is_down_and_a_remote_that_is_gone(tmp_path: Path) -> None:
    place = Workspace(tmp_path, "http://127.0.0.1:9/api")
    assert place.run("init", ".").code == 0
    place.set_params("registry.tracking_uri=http://127.0.0.1:9")
    (tmp_path / ".plumbline/remote").rmdir()
    done = place.run("doctor", "--json")
    ill = {finding["name"]: finding for finding in done.payload["findings"] if not finding["ok"]}
    assert "refused" in ill["mlflow store"]["found"]
    assert "registry.tracking_uri" in ill["mlflow store"]["advice"]
    assert "mount the folder" in ill["dvc remote"]["advice"]

    assert place.run("init", ".", "--remote", "s3://bucket/x").code == 0
    done = place.run("doctor", "--json")
    (remote,) = (finding for finding in done.payload["findings"] if finding["name"] == "dvc remote")
    assert not remote["ok"]
    assert "requires 'dvc-s3' to be installed" in remote["advice"]


def test_doctor_says_what_is_wrong_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    done = Workspace(tmp_path, "http://127.0.0.1:9/api").run("doctor", "--json")
    assert done.code == 1
    ill = {finding["name"]: finding["advice"] for finding in done.payload["findings"] if not finding["ok"]}
    assert "plumbline init" in ill["workspace"]
    assert "start the server" in ill["prefect"]


@pytest.mark.slow
def test_init_is_repeatable_and_keeps_what_is_there(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path, "http://127.0.0.1:9/api")
    first = workspace.run("init", "new", "--json")
    assert first.code == 0, first.err
    assert {"params.yaml", "dvc.yaml", ".gitignore"} <= set(first.payload["written"])
    params = tmp_path / "new/params.yaml"
    params.write_text(params.read_text().replace("seed: 17", "seed: 4"))
    assert workspace.run("init", "new", "--json").payload["written"] == ["params.resolved.yaml"]
    assert workspace.run("init", "new", "--json").payload["written"] == []
    assert "seed: 4" in params.read_text()


def test_init_over_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    done = Workspace(tmp_path, "http://127.0.0.1:9/api").run("init", "taken")
    assert done.code == 2
    assert "found a file" in done.err
