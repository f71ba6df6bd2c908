from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from plumbline.data_contracts.artifact import Artifact, read_artifact, writing
from plumbline.data_contracts.errors import ParamsError, RegistryError
from plumbline.tasks.params.registry import RegistryParams
from plumbline.tasks.pipeline.stage import StageRecord
from plumbline.tasks.registry.store.client import Store, refusals
from plumbline.tasks.registry.store.runs import figures, open_run

PARAMS = RegistryParams()
MD5_DIR = "0123456789abcdef0123456789abcdef.dir"  # 36 characters, as many as MLflow takes


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, migrated_store: Path) -> Path:
    root = tmp_path_factory.mktemp("runs")
    (root / ".plumbline").mkdir()
    shutil.copy(migrated_store, root / ".plumbline/mlflow.db")
    return root


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    with writing(tmp_path / "policy", contract="policy", version=1) as draft:
        lines = '{"step": 10, "loss": 0.5, "win@64": 1}\n{"step": 20, "loss": NaN}\n'.replace("NaN", "null")
        (draft.path / "training.jsonl").write_text(lines)
        draft.facts = {"beta": 0.1, "best": {"step": 20}, "name": "dpo", "converged": True, "worst": None}
    return read_artifact(tmp_path / "policy")


def test_a_flow_is_a_parent_run_with_a_child_a_stage(root: Path, artifact: Artifact) -> None:
    with open_run(root, PARAMS, flow_run_id="flow-7") as run:
        child_id = run.log_stage(StageRecord("finetune", 2.5, True, artifact))
        run.log_datasets({"data/curated": MD5_DIR}, {"data/curated": "curated"})
        run.log_outcome({"win": {"value": 0.7, "low": 0.6}}, {"dpo": {"beta": 0.1}}, {"plumbline.key": "k"})
    client = run.store.client
    parent, child = client.get_run(run.run_id), client.get_run(child_id)
    assert (parent.info.status, child.info.status) == ("FINISHED", "FINISHED")
    assert child.data.tags["mlflow.parentRunId"] == run.run_id
    assert child.data.tags["plumbline.reused"] == "true"
    assert child.data.metrics["seconds"] == 2.5
    assert child.data.metrics["best.step"] == 20
    assert child.info.end_time - child.info.start_time == 2500
    curve = client.get_metric_history(child_id, "curve/loss")
    assert [(point.step, point.value) for point in curve] == [(10, 0.5)]
    assert child.data.metrics["curve/win_64"] == 1
    assert parent.data.metrics == {"win.value": 0.7, "win.low": 0.6}
    assert parent.data.params == {"dpo.beta": "0.1"}
    assert parent.data.tags["prefect.flow_run_id"] == "flow-7"
    (dataset,) = parent.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("data/curated", MD5_DIR)


@pytest.mark.parametrize(("error", "status"), [(ValueError("no"), "FAILED"), (KeyboardInterrupt(), "KILLED")])
def test_a_flow_that_fails_leaves_no_run_open(root: Path, error: BaseException, status: str) -> None:
    with pytest.raises(type(error)), open_run(root, PARAMS) as run:
        raise error
    assert run.store.client.get_run(run.run_id).info.status == status


def test_a_run_of_a_killed_process_is_closed_and_that_of_a_living_one_is_not(root: Path) -> None:
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    store = Store(root, PARAMS)
    experiment = store.experiment_id()
    opened = {
        pid: store.client.create_run(
            experiment, tags={"plumbline.host": socket.gethostname(), "plumbline.pid": pid}
        ).info.run_id
        for pid in (gone.stdout.strip(), str(os.getppid()))
    }
    with open_run(root, PARAMS):
        pass
    statuses = [store.client.get_run(run_id).info.status for run_id in opened.values()]
    assert statuses == ["KILLED", "RUNNING"]


@pytest.mark.slow
def test_a_stage_whose_process_was_killed_while_it_was_logged_is_closed_and_tells_no_time(
    root: Path, artifact: Artifact
) -> None:
    done = subprocess.run([sys.executable, "-c", _KILLED, str(root), str(artifact.path)], check=False)
    assert done.returncode == -9
    with open_run(root, PARAMS) as run:
        assert run.seconds_of("killed", artifact.digest) is None
        run.log_stage(StageRecord("killed", 2.5, False, artifact))
        assert run.seconds_of("killed", artifact.digest) == 2.5
        open_ones = run.store.client.search_runs([run.experiment_id], "attributes.status = 'RUNNING'")
        assert "killed" not in {each.info.run_name for each in open_ones}


_KILLED = """
import os, signal, sys
from pathlib import Path
from plumbline.data_contracts.artifact import read_artifact
from plumbline.tasks.params.registry import RegistryParams
from plumbline.tasks.registry.store.runs import open_run
from plumbline.tasks.pipeline.stage import StageRecord

with open_run(Path(sys.argv[1]), RegistryParams()) as run:
    run.store.client.log_batch = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
    run.log_stage(StageRecord("killed", 2.5, False, read_artifact(Path(sys.argv[2]))))
"""


def test_an_unreachable_store_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("this is not a database, however long the text may go on" * 20)
    params = RegistryParams(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    with pytest.raises(RegistryError, match=r"MLflow store sqlite:///.* cannot be opened"):
        Store(tmp_path, params)


def test_refusals_name_what_was_tried(root: Path) -> None:
    with pytest.raises(RegistryError, match=r"reading a run: MLflow refused: .*not found"), refusals("reading a run"):
        Store(root, PARAMS).client.get_run("0" * 32)


def test_the_default_store_leaves_no_trace_in_the_environment(root: Path) -> None:
    import mlflow

    before = mlflow.get_tracking_uri()
    store = Store(root, PARAMS)
    with store.as_default():
        assert mlflow.get_tracking_uri() == store.uri
    assert mlflow.get_tracking_uri() == before
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_figures_are_the_finite_numbers_by_dotted_key() -> None:
    values = {"a": 1, "b": {"c": 2.5, "d": float("nan"), "e": "text"}, "f": True, "g": [1, 2], "h": float("inf")}
    assert figures(values) == {"a": 1.0, "b.c": 2.5, "f": 1.0}


def test_a_store_may_be_named_by_an_environment_variable(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = RegistryParams(tracking_uri="$MLFLOW_TRACKING_URI")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ParamsError, match="MLFLOW_TRACKING_URI, found it unset"):
        Store(root, params)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "bogus://me:pw@host/db")
    with pytest.raises(RegistryError, match=r"store bogus://me:\*\*\*@host/db cannot be opened") as refused:
        Store(root, params)
    assert "pw@" not in str(refused.value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root / '.plumbline/mlflow.db'}")
    assert Store(root, params).client.search_experiments()


@pytest.mark.parametrize("uri", ["postgresql://me:pw@host/db", "bogus://host", "mlruns", "$1"])
def test_a_store_that_cannot_be_or_must_not_be_written_down_is_refused(uri: str) -> None:
    with pytest.raises(ValidationError, match="expected"):
        RegistryParams(tracking_uri=uri)
