"""The monitor and the live report on a trained workspace: real checkpoints, real MLflow, real Prefect."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from plumbline.data_contracts.interactions import Interaction, InteractionFeedback, ServedCompletion
from plumbline.data_contracts.records import CuratedPair, load_jsonl
from plumbline.tasks.operations.freshness import outbox
from plumbline.tasks.operations.promote_model import champion_of
from plumbline.tasks.operations.serving import log
from plumbline.tasks.params.layers import load_params
from plumbline.tasks.registry.store.client import Store
from plumbline.tasks.storage.database import open_database

if TYPE_CHECKING:
    from tests.flows.conftest import Workspace


def serve(workspace: Workspace, count: int, *, violation: bool, first: int = 0) -> str:
    """Write mirrored requests on training prompts into the log; the challenger is the champion's own twin."""
    params, _ = load_params(workspace.root)
    version = champion_of(workspace.root, params)
    assert version is not None
    engine = open_database(workspace.root, params.operations, log.METADATA)
    pairs = list(load_jsonl(workspace.root / "data/curated/train.jsonl", CuratedPair))[first : first + count]
    for number, pair in enumerate(pairs, start=first):
        served: dict[str, Any] = {"tokens": 3, "finish_reason": "stop", "refusal": False}
        mine = ServedCompletion(
            side="champion",
            model_uri=version.uri,
            text=pair.chosen[:60],
            latency_ms=100 + number,
            violation=violation,
            **served,
        )
        other = ServedCompletion(
            side="challenger",
            model_uri="models:/assistant/2",
            text=pair.rejected[:60],
            latency_ms=90,
            violation=False,
            **served,
        )
        at = datetime.now(UTC) - timedelta(minutes=number + 1)
        log.record(
            engine,
            Interaction(id=f"r{number}", received_at=at, prompt=pair.prompt, canary=False, answers=(mine, other)),
        )
        if number % 2:
            log.add_feedback(engine, InteractionFeedback(request_id=f"r{number}", kind="click", at=at))
    return version.uri


@pytest.mark.timeout(900)
def test_monitor_and_live_on_a_trained_workspace(copy: Workspace, tmp_path: Path) -> None:
    uri = serve(copy, 60, violation=False)
    batch = _labels(copy, tmp_path)
    assert copy.run("ingest", "human_pairs", batch).code == 0

    first = copy.run("monitor", "--look", "day-1", "--json")
    assert first.code in (0, 1), first.err
    readings = {reading["name"]: reading for reading in first.payload["readings"]}
    assert first.payload["champion"] == uri
    assert readings["win_rate_vs_reference"]["n"] == 60, readings["win_rate_vs_reference"]
    assert readings["preference_accuracy"]["n"] == 12, readings["preference_accuracy"]
    assert readings["drift_vocabulary"]["n"] == 60, readings["drift_vocabulary"]
    assert readings["safety_violations"]["verdict"] == "fine"
    assert readings["freshness"]["value"] < 1

    again = copy.run("monitor", "--look", "day-1", "--json").payload
    assert {item["name"]: item["n"] for item in again["readings"]} == {
        name: item["n"] for name, item in readings.items()
    }

    serve(copy, 40, violation=True, first=60)
    found = copy.run("monitor", "--look", "day-2", "--json")
    assert found.code == 1
    assert "safety_violations" in found.payload["findings"]
    params, _ = load_params(copy.root)
    entries = {
        s.entry.key: s.entry for s in outbox.entry_states(open_database(copy.root, params.operations, outbox.METADATA))
    }
    told = entries[found.payload["requests"]["safety_violations"]["key"]]
    assert told.emitted_at is not None  # the server confirmed the event
    assert uri in told.payload["why"]

    store = Store(copy.root, params.registry)
    runs = store.client.search_runs([store.experiment_id()], "tags.`plumbline.monitor.look` = 'day-2'")
    assert runs[0].data.metrics["safety_violations.finding"] == 1
    assert {item.path for item in store.client.list_artifacts(runs[0].info.run_id, "monitor")} >= {"monitor/report.md"}

    page = tmp_path / "live.html"
    live = copy.run("live", "--html", page, "--json")
    assert live.code == 0, live.err
    rows = {row["name"]: row for row in live.payload["rows"]}
    assert rows["judge win rate of the challenger"]["n"] == 100
    assert rows["click-through rate, champion alone"]["value"] == 0.5
    assert rows["safety violations, challenger less champion"]["value"] == -0.4
    assert "judge win rate" in page.read_text()
    assert copy.run("live", "--since", "2999-01-01").code == 0
    assert copy.run("live", "--since", "yesterday").code == 2


def _labels(workspace: Workspace, folder: Path) -> Path:
    from tests.flows.conftest import write_hh_pairs

    return write_hh_pairs(folder / "labels.jsonl", 12, seed=9)
