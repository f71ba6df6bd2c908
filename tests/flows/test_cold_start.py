"""What a command imports: an answer in a shell is as slow as the heaviest library that its process loads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.audit_scale import build

HEAVY = {"torch", "transformers", "mlflow", "prefect", "pandas", "polars", "datasets", "great_expectations", "fastapi"}
_LIST = "import atexit, sys; atexit.register(lambda: sys.stderr.write('LOADED ' + ' '.join(sys.modules)));"
_MAIN = f"{_LIST} from plumbline.flows.cli.main import main; main()"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dozen versions over one dataset of forty records, in a real workspace."""
    root = tmp_path_factory.mktemp("cold") / "workspace"
    build(root, versions=12, records=40)
    return root


def _loaded(*arguments: str) -> tuple[int, set[str]]:
    done = subprocess.run([sys.executable, "-c", _MAIN, *arguments], capture_output=True, text=True, check=False)
    _, found, names = done.stderr.rpartition("LOADED ")
    assert found, done.stderr
    return done.returncode, {part for name in names.split() for part in (name, name.partition(".")[0])}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("question", "light"),
    [
        (("models:/assistant@champion", "--no-rehash"), {"dvc", "numpy"}),
        (("--annotator", "annotator-119"), {"dvc", "numpy"}),
        (("--judge-prompt", "helpfulness@1"), {"dvc", "numpy"}),
        (("--record", "record-0-7"), {"dvc.repo"}),
    ],
)
def test_an_audit_loads_no_library_that_it_does_not_need(
    registry: Path, question: tuple[str, ...], light: set[str]
) -> None:
    """The derived indexes are there already: a first question may need DVC to make them."""
    _loaded("audit", "--annotator", "annotator-119", "-C", str(registry))
    code, loaded = _loaded("audit", *question, "-C", str(registry), "--json")
    assert code == 0
    assert loaded & (HEAVY | light) == set()


def test_help_loads_no_library_that_it_does_not_need() -> None:
    code, loaded = _loaded("--help")
    assert code == 0
    assert loaded & (HEAVY | {"dvc", "httpx", "numpy", "pydantic", "sqlalchemy"}) == set()


@pytest.mark.slow
def test_an_ingest_loads_no_prefect_to_check_a_schedule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own process is part of the time from a file to a running flow."""
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")  # nobody listens: the event stays pending
    assert _loaded("init", str(tmp_path / "workspace"))[0] == 0
    cron = "schedule.retrain_cron=0 3 * * 1"
    assert _loaded("params", "set", cron, "-C", str(tmp_path / "workspace"))[0] == 0
    pair = {"prompt": "Which?", "response_a": "This one.", "response_b": "That one.", "label": "a"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair) + "\n")
    code, loaded = _loaded("ingest", "human_pairs", str(tmp_path / "pairs.jsonl"), "-C", str(tmp_path / "workspace"))
    assert code == 0
    assert loaded & HEAVY == set()
