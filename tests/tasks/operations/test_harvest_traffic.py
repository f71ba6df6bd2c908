"""The verb goes on where one interaction fails, one at a time, and names the judge's rubric."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock

from plumbline.data_contracts.errors import WorkspaceBusy
from plumbline.tasks.operations import harvest_traffic as verb
from plumbline.tasks.operations.serving import log
from plumbline.tasks.params.whole import Params
from plumbline.tasks.storage.database import open_database
from tests.tasks.operations.serving.test_harvest import pair, prefers

RUBRIC = SimpleNamespace(name="helpful", version=1, digest="0" * 64)


class Judge:
    """Prefers what it sees first, and breaks on one question."""

    name, digest, rubric = "llm", "d", RUBRIC

    def judge(self, prompts: Sequence[Any], groups: Sequence[Sequence[str]]) -> Any:
        if any("poison" in group for group in groups):
            raise ValueError("cannot read this")
        return SimpleNamespace(judgements=[prefers(0)] * len(groups))


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    rows: list[Any] = []
    monkeypatch.setattr(verb, "_reliable_judge", lambda root, params: Judge())
    monkeypatch.setattr(verb, "_ingest", lambda root, params, source, given, server: rows.extend(given) or "batch")
    return rows


def test_rows_name_the_rubric(tmp_path: Path, kept: list[Any]) -> None:
    log.record(open_database(tmp_path, Params().operations, log.METADATA), pair("a"))
    verb.harvest_traffic(tmp_path, Params())
    assert kept[0]["metadata"]["judge"]["rubric"] == {"name": "helpful", "version": 1, "digest": "0" * 64}


def test_one_interaction_that_always_fails_is_set_aside_and_holds_up_no_other(tmp_path: Path, kept: list[Any]) -> None:
    engine = open_database(tmp_path, Params().operations, log.METADATA)
    log.record_all(engine, [pair("a"), pair("b", 1, two="poison"), pair("c", 2)])
    for _ in range(Params().serving.harvest.tries - 1):
        with pytest.raises(ValueError, match="cannot read this"):
            verb.harvest_traffic(tmp_path, Params())
    done = verb.harvest_traffic(tmp_path, Params())
    assert done["judged_pairs"]["counts"] == {"interactions": 3, "pairs": 2, "set_aside": 1}
    assert [row["metadata"]["request_id"] for row in kept] == ["a", "c"]
    assert verb.harvest_traffic(tmp_path, Params())["judged_pairs"]["batch"] is None


def test_two_harvests_do_not_work_at_once(tmp_path: Path, kept: list[Any]) -> None:
    verb.harvest_traffic(tmp_path, Params())
    with FileLock(tmp_path / ".plumbline" / "harvest.lock"), pytest.raises(WorkspaceBusy, match="another harvest"):
        verb.harvest_traffic(tmp_path, Params())
