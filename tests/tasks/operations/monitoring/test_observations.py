from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import Engine

from plumbline.tasks.operations.monitoring import observations
from plumbline.tasks.params.operations import OperationsParams
from plumbline.tasks.storage.database import open_database


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return open_database(tmp_path, OperationsParams(), observations.METADATA)


def test_an_item_counts_once_whenever_and_however_often_it_is_seen(engine: Engine) -> None:
    add = observations.add
    assert add(engine, "m/1", "day 1", {"wins": {"a": 1.0, "b": 0.0}}) == 2
    assert add(engine, "m/1", "day 1", {"wins": {"a": 0.0, "b": 0.0}}) == 0  # the same look again
    assert add(engine, "m/1", "day 2", {"wins": {"b": 1.0, "c": 0.5}}) == 1  # b was seen; c is late
    assert observations.observed(engine, "m/1", ["wins", "none"]) == {
        "wins": observations.Observed(((1.0, 0.0), (0.5,))),
        "none": observations.Observed(),
    }


def test_the_requests_of_a_user_are_one_value_of_a_look(engine: Engine) -> None:
    voters = {"a": "user 1", "b": "user 1", "d": "user 1"}
    observations.add(engine, "m/1", "day 1", {"refusal": {"a": 1.0, "c": 1.0, "b": 0.0}}, voters)
    observations.add(engine, "m/1", "day 2", {"refusal": {"d": 1.0, "b": 1.0}}, voters)
    assert observations.observed(engine, "m/1", ["refusal"])["refusal"].looks == ((0.5, 1.0), (1.0,))
    assert observations.items(engine, "m/1", "refusal") == ["a", "c", "b", "d"]


def test_another_champion_starts_anew(engine: Engine) -> None:
    observations.add(engine, "m/1", "day 1", {"wins": {"a": 1.0}})
    assert observations.observed(engine, "m/2", ["wins"])["wins"].looks == ()
    assert observations.add(engine, "m/2", "day 1", {"wins": {"a": 0.0}}) == 1


def test_a_clock_that_jumps_back_keeps_the_order_of_looking(engine: Engine) -> None:
    for day, item in (("2026-05-02", "a"), ("2026-05-01", "b"), ("2026-05-02", "c")):
        observations.add(engine, "m/1", day, {"wins": {item: 1.0}})
    assert observations.items(engine, "m/1", "wins") == ["a", "b", "c"]
    assert len(observations.observed(engine, "m/1", ["wins"])["wins"].looks) == 3


def test_the_first_finding_of_a_monitor_stands(engine: Engine) -> None:
    observations.keep_findings(engine, "m/1", "day 1", {"wins": {"value": 0.3}})
    kept = observations.keep_findings(engine, "m/1", "day 2", {"wins": {"value": 0.9}, "refusals": {"value": 1.0}})
    assert kept == {
        "wins": {"look": "day 1", "evidence": {"value": 0.3}},
        "refusals": {"look": "day 2", "evidence": {"value": 1.0}},
    }
    assert observations.keep_findings(engine, "m/2", "day 1", {}) == {}
