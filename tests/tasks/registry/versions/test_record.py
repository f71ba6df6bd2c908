"""What MLflow shows of a version, altered in its database and through its client: each change is found and named."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Dataset, DatasetInput, InputTag

from plumbline.tasks.registry.register_model import register_model
from plumbline.tasks.registry.store.client import Store
from plumbline.tasks.registry.store.client_reader import ClientReader
from plumbline.tasks.registry.store.runs import open_run
from plumbline.tasks.registry.store.tables import TableReader
from plumbline.tasks.registry.versions.record import RecordCheck, check_record
from plumbline.tasks.registry.versions.registered import StoredFiles, resolve

URI = "models:/assistant/1"


@pytest.fixture(scope="module")
def logged(make_worlds: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A version registered as the flow does it: a run with a child for each stage."""
    world = make_worlds(tmp_path_factory.mktemp("logged") / "workspace")
    records = world.bring_up_to_date()
    with open_run(world.root, world.registry, flow_run_id="flow-1") as run:
        for record in records:
            run.log_stage(record)
        register_model(world.root, world.registry, records, run)
    return world


@pytest.fixture(scope="module")
def manifest(logged: Any) -> dict[str, Any]:
    store = Store(logged.root, logged.registry)
    return StoredFiles(store, resolve(store, URI)).manifest()


@pytest.fixture
def store(logged: Any, tmp_path: Path) -> Store:
    """A store of its own with the same rows."""
    (tmp_path / ".plumbline").mkdir()
    for end in ("", "-wal", "-shm"):
        path = logged.root / ".plumbline" / f"mlflow.db{end}"
        if path.exists():
            shutil.copy(path, tmp_path / ".plumbline")
    return Store(tmp_path, logged.registry)


def check(store: Store, manifest: dict[str, Any]) -> RecordCheck:
    return check_record(store, resolve(store, URI), manifest)


def runs(store: Store) -> dict[str, str]:
    """Ids of the runs: of each stage by its name, and of the whole."""
    with sqlite3.connect(store.root / ".plumbline/mlflow.db") as connection:
        found = dict(connection.execute("SELECT value, run_uuid FROM tags WHERE key = 'plumbline.stage'").fetchall())
        whole, source = connection.execute("SELECT run_id, source FROM model_versions WHERE version = 1").fetchone()
    return {**found, "whole": whole, "model": source.removeprefix("models:/")}


def test_what_was_registered_is_what_mlflow_shows(store: Store, manifest: dict[str, Any]) -> None:
    assert isinstance(store.reader, TableReader)
    assert check(store, manifest) == RecordCheck()
    store.reader = ClientReader(store.client)  # as behind HTTP: the client answers
    assert check(store, manifest) == RecordCheck()


SQL = {
    "metric": (
        "UPDATE latest_metrics SET value = 0.99 WHERE key = 'win_rate.judge.value' AND run_uuid = :whole",
        ["metric win_rate.judge.value of run {whole}: MLflow shows 0.99, the signed manifest says 0.7."],
    ),
    "figure of the evaluation beside its metrics": (
        "UPDATE latest_metrics SET value = 3 WHERE key = 'control_tokens.rows' AND run_uuid = :evaluate",
        ["metric control_tokens.rows of run {evaluate} of stage evaluate: MLflow shows 3.0, the signed manifest says "],
    ),
    "point of a metric": (
        "UPDATE metrics SET value = 0.99 WHERE key = 'win_rate.judge.value' AND run_uuid = :whole",
        ["metric win_rate.judge.value of run {whole}: MLflow shows 0.99, the signed manifest says 0.7."],
    ),
    "no number": (
        "UPDATE latest_metrics SET is_nan = 1 WHERE key = 'win_rate.judge.low' AND run_uuid = :whole",
        ["metric win_rate.judge.low of run {whole}: MLflow shows nan, the signed manifest says 0.68."],
    ),
    "param": (
        "UPDATE params SET value = '0.5' WHERE key = 'finetune.dpo.beta' AND run_uuid = :whole",
        ["param finetune.dpo.beta of run {whole}: MLflow shows 0.5, the signed manifest says 0.1."],
    ),
    "param gone": (
        "DELETE FROM params WHERE key = 'finetune.dpo.beta' AND run_uuid = :whole",
        ["param finetune.dpo.beta of run {whole}: MLflow shows none, the signed manifest says 0.1."],
    ),
    "tag of the run": (
        "UPDATE tags SET value = 'other' WHERE key = 'prefect.flow_run_id' AND run_uuid = :whole",
        ["tag prefect.flow_run_id of run {whole}: MLflow shows other, the signed manifest says flow-1."],
    ),
    "dataset": (
        "UPDATE datasets SET digest = 'other.dir' WHERE name = 'data/curated'",
        ["dataset data/curated of run {whole}: MLflow shows other.dir (curated), the signed manifest says "],
    ),
    "use of a dataset": (
        "UPDATE input_tags SET value = 'raw' WHERE value = 'curated'",
        ["dataset data/curated of run {whole}: MLflow shows ", ".dir (raw), the signed manifest says "],
    ),
    "verdict": (
        "UPDATE model_version_tags SET value = 'rejected' WHERE key = 'plumbline.gate'",
        ["tag plumbline.gate of models:/assistant/1: MLflow shows rejected, the signed manifest says passed."],
    ),
    "hash in a tag": (
        "UPDATE model_version_tags SET value = 'x' WHERE key = 'plumbline.md5.policy'",
        ["tag plumbline.md5.policy of models:/assistant/1: MLflow shows x, the signed manifest says "],
    ),
    "description": (
        "UPDATE model_versions SET description = 'approved by all'",
        ["description of models:/assistant/1: MLflow shows approved by all, the signed manifest says none."],
    ),
    "another run": (
        "UPDATE model_versions SET run_id = :gate",
        ["run of models:/assistant/1: MLflow shows {gate}, the signed manifest says {whole}."],
    ),
    "no run": (
        "UPDATE model_versions SET run_id = NULL",
        ["run of models:/assistant/1: MLflow shows none, the signed manifest says {whole}."],
    ),
    "run marked as deleted": (
        "UPDATE runs SET lifecycle_stage = 'deleted' WHERE run_uuid = :whole",
        ["run {whole}: deleted in MLflow."],
    ),
    "run gone": ("DELETE FROM runs WHERE run_uuid = :whole", ["run {whole}: gone from MLflow"]),
    "figure of a stage": (
        "UPDATE latest_metrics SET value = 3 WHERE key = 'beta' AND run_uuid = :finetune",
        ["metric beta of run {finetune} of stage finetune: MLflow shows 3.0, the signed manifest says 0.1."],
    ),
    "artifact of a stage": (
        "UPDATE tags SET value = 'x' WHERE key = 'plumbline.artifact' AND run_uuid = :reward",
        ["tag plumbline.artifact of run {reward} of stage reward: MLflow shows x, the signed manifest says "],
    ),
    "run of a stage deleted": (
        "UPDATE runs SET lifecycle_stage = 'deleted' WHERE run_uuid = :gate",
        ["run {gate} of stage gate: deleted in MLflow."],
    ),
    "run of a stage taken away": (
        "DELETE FROM tags WHERE key = 'mlflow.parentRunId' AND run_uuid = :evaluate",
        ["run of stage evaluate below run {whole}: gone from MLflow."],
    ),
    "run of a stage under another name": (
        "UPDATE tags SET value = 'finetune-2' WHERE key = 'mlflow.parentRunId' AND run_uuid = :evaluate",
        ["run of stage evaluate below run {whole}: gone from MLflow."],
    ),
    "further param of a stage": (
        "INSERT INTO params(key, value, run_uuid) VALUES('finetune.dpo.beta', '0.9', :finetune)",
        ["param finetune.dpo.beta of run {finetune} of stage finetune: MLflow shows 0.9, the signed"],
    ),
}


@pytest.mark.parametrize("change", SQL)
def test_what_somebody_changed_in_the_database_is_named_with_both_values(
    store: Store, manifest: dict[str, Any], change: str
) -> None:
    statement, words = SQL[change]
    named = runs(store)
    with sqlite3.connect(store.root / ".plumbline/mlflow.db") as connection:
        given = {name: value for name, value in named.items() if f":{name}" in statement}
        assert connection.execute(statement, given).rowcount > 0
    (problem,) = check(store, manifest).problems
    assert all(word.format(**named) in problem for word in words), problem


def _more_data(client: Any, named: dict[str, str]) -> None:
    dataset = Dataset(name="data/other", digest="o.dir", source_type="dvc", source="{}")
    client.log_inputs(named["whole"], [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])


CLIENT: dict[str, tuple[Callable[[Any, dict[str, str]], Any], str]] = {
    "metric": (
        lambda client, named: client.log_metric(named["whole"], "win_rate.judge.value", 0.99),
        "metric win_rate.judge.value of run {whole}: MLflow shows 0.99, the signed manifest says 0.7.",
    ),
    "further metric": (
        lambda client, named: client.log_metric(named["whole"], "accuracy", 1.0),
        "metric accuracy of run {whole}: MLflow shows 1.0, the signed manifest says none.",
    ),
    "further param": (
        lambda client, named: client.log_param(named["whole"], "reviewed", "yes"),
        "param reviewed of run {whole}: MLflow shows yes, the signed manifest says none.",
    ),
    "tag": (
        lambda client, named: client.set_tag(named["whole"], "plumbline.key", "k"),
        "tag plumbline.key of run {whole}: MLflow shows k, the signed manifest says ",
    ),
    "description of the run": (
        lambda client, named: client.set_tag(named["whole"], "mlflow.note.content", "the best"),
        "description of run {whole}: MLflow shows the best, the signed manifest says none.",
    ),
    "further data": (
        _more_data,
        "dataset data/other of run {whole}: MLflow shows o.dir (training), the signed manifest says none.",
    ),
    "tag of the version": (
        lambda client, named: client.set_model_version_tag("assistant", "1", "plumbline.md5.extra", "e"),
        "tag plumbline.md5.extra of models:/assistant/1: MLflow shows e, the signed manifest says none.",
    ),
    "tag of the version deleted": (
        lambda client, named: client.delete_model_version_tag("assistant", "1", "plumbline.md5.curated"),
        "tag plumbline.md5.curated of models:/assistant/1: MLflow shows none, the signed manifest says ",
    ),
    "description": (
        lambda client, named: client.update_model_version("assistant", "1", "safe for children"),
        "description of models:/assistant/1: MLflow shows safe for children, the signed manifest says none.",
    ),
    "metric of the logged model": (
        lambda client, named: client.log_metric(named["whole"], "curve/x", 0.99, model_id=named["model"]),
        "metric curve/x of logged model {model}: MLflow shows 0.99, the signed manifest says none.",
    ),
    "param of the logged model": (
        lambda client, named: client.log_model_params(named["model"], {"beta": "0.5"}),
        "param beta of logged model {model}: MLflow shows 0.5, the signed manifest says none.",
    ),
    "tag of the logged model": (
        lambda client, named: client.set_logged_model_tags(named["model"], {"plumbline.gate": "passed"}),
        "tag plumbline.gate of logged model {model}: MLflow shows passed, the signed manifest says none.",
    ),
    "deleted run": (lambda client, named: client.delete_run(named["whole"]), "run {whole}: deleted in MLflow."),
    "deleted run of a stage": (
        lambda client, named: client.delete_run(named["evaluate"]),
        "run {evaluate} of stage evaluate: deleted in MLflow.",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("tables", [True, False], ids=["tables", "client"])
@pytest.mark.parametrize("change", CLIENT)
def test_what_somebody_changed_through_the_client_is_named_with_both_values(
    store: Store, manifest: dict[str, Any], change: str, tables: bool
) -> None:
    act, words = CLIENT[change]
    named = runs(store)
    act(store.client, named)
    if not tables:
        store.reader = ClientReader(store.client)
    problems = check(store, manifest).problems
    assert [problem for problem in problems if words.format(**named) in problem], problems
    assert len(problems) == 1


def test_a_list_of_mappings_is_the_same_in_any_order_of_its_keys(store: Store, manifest: dict[str, Any]) -> None:
    """An older program logged the keys as the file had them; the manifest keeps no order. Another value is found."""
    terms = [{"kind": "safety", "asks": ["bomb"], "weight": 1.0}]
    store.client.log_param(runs(store)["whole"], "mixture.terms", str(terms))
    held = {**manifest, "settings": {**manifest["settings"], "mixture": {"terms": [dict(sorted(terms[0].items()))]}}}
    assert check(store, held) == RecordCheck()
    held["settings"]["mixture"]["terms"][0]["weight"] = 2.0
    (problem,) = check(store, held).problems
    assert problem.startswith("param mixture.terms of run ")


def test_a_run_that_nobody_signed_does_not_stand_below_the_run(store: Store, manifest: dict[str, Any]) -> None:
    tags = {"mlflow.parentRunId": runs(store)["whole"], "mlflow.runName": "evaluate"}
    experiment = store.client.get_run(runs(store)["whole"]).info.experiment_id
    store.client.create_run(experiment, tags=tags)
    (problem,) = check(store, manifest).problems
    assert problem.endswith("the manifest has no such run; nobody signed what it shows.")


def test_plots_are_those_that_were_signed(logged: Any, store: Store, manifest: dict[str, Any]) -> None:
    whole = runs(store)["whole"]
    folder = store.root / ".plumbline/mlartifacts" / whole / "artifacts"
    shutil.copytree(logged.root / ".plumbline/mlartifacts" / whole / "artifacts", folder)
    assert check(store, manifest) == RecordCheck()
    (plot, *_) = sorted((folder / "plots").iterdir())
    plot.write_bytes(b"another")
    (folder / "plots/more.png").write_bytes(b"more")
    (folder / "REPORT.md").write_text("the best")
    found = check(store, manifest)
    assert [problem.split(" ")[1] for problem in found.problems] == sorted([f"plots/{plot.name}", "plots/more.png"])
    assert found.notes == [f"file REPORT.md of run {whole} is on no record."]


def test_an_alias_that_the_ledger_does_not_keep_is_a_note(store: Store, manifest: dict[str, Any]) -> None:
    store.client.set_registered_model_alias("assistant", "production", "1")
    found = check(store, manifest)
    assert (found.problems, len(found.notes)) == ([], 1)
    assert "alias production" in found.notes[0]


def test_tags_of_peoples_own_are_a_note(store: Store, manifest: dict[str, Any]) -> None:
    store.client.set_model_version_tag("assistant", "1", "team", "desk")
    store.client.set_tag(runs(store)["whole"], "team", "desk")
    found = check(store, manifest)
    assert found.problems == []
    assert found.notes == ["tag team of models:/assistant/1 is on no record."]


def test_a_version_of_an_older_program_is_compared_by_what_its_manifest_holds(
    store: Store, manifest: dict[str, Any]
) -> None:
    """Without the id of its run the version's own is taken; without facts of stages their runs are passed over."""
    older = {name: value for name, value in manifest.items() if name not in ("mlflow_run_id", "as_run", "warnings")}
    with sqlite3.connect(store.root / ".plumbline/mlflow.db") as connection:  # a figure that it did not log
        for table in ("metrics", "latest_metrics"):
            connection.execute(f"DELETE FROM {table} WHERE key = 'control_tokens.rows'")
    assert check(store, older) == RecordCheck()
    nameless = replace(resolve(store, URI), run_id=None)
    found = check_record(store, nameless, older)
    assert found.problems == []
    assert found.notes == ["MLflow names no run of this version: its figures and params could not be compared."]
