"""Promotion on two really trained versions: refused, promoted, rolled back, tampered with, through the command line."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plumbline.data_contracts.errors import CheckFailed, UsageError
from plumbline.tasks.operations.promote_model import champion_of
from plumbline.tasks.params.layers import load_params
from plumbline.tasks.registry.store.client import Store
from plumbline.tasks.registry.versions.registered import StoredFiles, resolve

LENIENT = (
    "promotion.min_win_rate_vs_champion_low=0.0",
    "promotion.min_win_rate_low=0.0",
    "promotion.min_preference_accuracy=0.0",
    "promotion.min_finished_share=0.0",
    "promotion.max_finished_drop=1.0",
    "promotion.max_ece=1.0",
    "promotion.min_refusal_accuracy=0.0",
    "promotion.max_over_refusal=1.0",
    "promotion.max_kl_nats_per_token=null",
    "promotion.max_latency_p95_ms=600000",
    "promotion.latency_prompts=3",
    "promotion.max_prompts=32",
)


@pytest.fixture(scope="module")
def two(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A copy of the trained workspace with a second version, by another beta; lenient promotion gates."""
    workspace = trained.copy(tmp_path_factory.mktemp("two") / "copy")
    second = workspace.shell("plumbline", "retrain", "--set", "finetune.dpo.beta=0.4", "--json")
    assert second.code == 0, second.err
    assert second.payload["model_uri"] == "models:/assistant/2"
    workspace.set_params(*LENIENT)
    return workspace


def champion(workspace: Any) -> str:
    found = champion_of(workspace.root, load_params(workspace.root)[0])
    assert found is not None
    return found.number


def test_promote_history_and_rollback(two: Any, record_property: Callable[[str, object], None]) -> None:
    two.set_params("promotion.min_win_rate_vs_champion_low=1.0")
    refused = two.run("promote", "--reason", "weekly", "--json")
    assert refused.code == 1
    assert "win rate over the champion, lower end" in refused.err
    gates = {gate["name"]: gate for gate in refused.payload["gates"]}
    against = gates["win_rate_vs_champion"]
    assert not against["passed"]
    assert "over models:/assistant/1" in against["text"]
    assert against["low"] < against["high"]
    assert against["n"] == 32
    assert gates["latency"]["n"] == 3
    assert champion(two) == "1"

    (artifact,) = [path for path in (two.root / ".plumbline/promotion").iterdir() if path.is_dir()]
    written = artifact.stat().st_mtime_ns
    two.set_params(*LENIENT)
    promoted = two.run("promote", "models:/assistant/2", "--reason", "weekly", "--json")
    assert promoted.code == 0, promoted.err
    assert artifact.stat().st_mtime_ns == written  # the comparison was not made twice
    assert [(line["alias"], line["version"]) for line in promoted.payload["lines"]] == [
        ("previous", "1"),
        ("champion", "2"),
    ]
    assert champion(two) == "2"
    again = two.run("promote", "models:/assistant/2", "--reason", "weekly")
    assert (again.code, "is champion already" in again.err) == (2, True)
    held = two.run("delete", "assistant/1", "--reason", "old")
    assert (held.code, "found previous" in held.err) == (1, True)

    started = time.monotonic()
    back = two.shell("plumbline", "rollback", "--reason", "answers got worse", "--json")
    record_property("rollback_seconds", round(time.monotonic() - started, 1))
    assert back.code == 0, back.err
    assert champion(two) == "1"
    history = two.run("history", "--alias", "champion", "--json")
    assert history.code == 0, history.err
    assert history.payload["verified"]
    lines = [(line["action"], line["previous"], line["version"]) for line in history.payload["lines"]]
    assert lines == [("assign", None, "1"), ("promote", "1", "2"), ("rollback", "2", "1")]
    assert history.payload["lines"][1]["evidence"]["gates"][2]["name"] == "win_rate_vs_champion"
    assert "worse" in two.run("history").out  # a narrow terminal wraps the reason


def test_the_flow_promotes_and_fails_where_a_gate_says_no(two: Any) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from plumbline.flows.promote import promote

    with temporary_settings({PREFECT_API_URL: two.server}):
        done = promote(str(two.root), "models:/assistant/2", "challenger", reason="canary", actor="night shift")
        two.set_params("promotion.min_win_rate_low=1.0")
        with pytest.raises(CheckFailed, match="win_rate_vs_reference"):
            promote(str(two.root), "models:/assistant/1", "challenger", reason="canary")
        two.set_params(*LENIENT)
    assert done["promoted"]
    assert done["lines"][0]["actor"] == "night shift"


def test_the_reason_in_the_history_is_the_persons() -> None:
    """Whoever overrides gives a reason: it is the line's, unless --reason gives another."""
    from typer.testing import CliRunner

    from plumbline.flows.cli.main import app
    from plumbline.tasks.operations import promote_model as verb

    given: list[str] = []

    def promote(*_: Any, reason: str, **__: Any) -> Any:
        given.append(reason)
        raise UsageError("enough")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(verb, "promote", promote)
        patched.setattr("plumbline.flows.cli.promotion.loaded", lambda _: (Path(), None))
        for options in (["--override", "ann", "--override-reason", "outage"], ["--reason", "weekly"], []):
            CliRunner().invoke(app, ["promote", *options])
    assert given == ["outage", "weekly", "asked for on the command line"]


def test_nothing_unsigned_is_promoted_or_rolled_back_to(two: Any) -> None:
    """One byte of version 2's weights; no override helps."""
    store = Store(two.root, load_params(two.root)[0].registry)
    path = StoredFiles(store, resolve(store, "models:/assistant/2")).folder / "model/tokenizer_config.json"
    before = path.read_bytes()
    path.write_bytes(before + b" ")
    try:
        for command in (
            ("promote", "models:/assistant/2", "--override", "ada", "--override-reason", "I know better"),
            ("rollback", "--to", "models:/assistant/2", "--reason", "r"),
            ("restore", "models:/assistant/2", "--to", two.root.parent / "restored"),
        ):
            done = two.run(*command)
            assert done.code == 1
            assert "tokenizer_config.json" in done.err
        assert not (two.root.parent / "restored").exists()
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize(
    "model", ["../../etc/passwd", "models:/../assistant/1", "models:/assistant/1/../2", "assistant\n", "models:/a b/1"]
)
def test_path_tricks_in_names_are_refused(two: Any, model: str) -> None:
    for command in (
        ("promote", model),
        ("rollback", "--to", model, "--reason", "r"),
        ("delete", model, "--reason", "r"),
    ):
        done = two.run(*command)
        assert done.code == 2
        assert "expected models:/NAME" in done.err or "MODEL/VERSION" in done.err
    assert Path(two.root / ".plumbline").is_dir()
