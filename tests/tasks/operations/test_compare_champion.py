"""The kept comparison: what it says opens a gate, so it is believed only as it was signed."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from plumbline.tasks.operations import compare_champion as verb
from plumbline.tasks.params.whole import Params
from plumbline.tasks.registry.store.client import Store
from plumbline.tasks.registry.versions.registered import resolve


def test_a_kept_win_rate_that_was_edited_is_measured_again(
    registered_world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[float] = []

    def compare(*given: object) -> dict[str, Any]:
        measured.append(0.4)
        return {"win_rate": {"low": 0.4, "n": 8}}

    monkeypatch.setattr(verb, "_compare", compare)
    root, params = registered_world.root, Params()
    store = Store(root, params.registry)
    pair = [resolve(store, f"models:/assistant/{number}") for number in (3, 1)]
    sampling = verb.Sampling(params.evaluation, params.seed, 1)
    found = verb.compare_champion(root, store, *pair, sampling)
    assert verb.compare_champion(root, store, *pair, sampling) == found
    assert len(measured) == 1
    path = root / found["artifact"] / "manifest.json"
    manifest = orjson.loads(path.read_bytes())
    manifest["facts"]["win_rate"]["low"] = 0.9
    path.chmod(0o644)
    path.write_bytes(orjson.dumps(manifest))
    assert verb.compare_champion(root, store, *pair, sampling)["win_rate"]["low"] == 0.4
    assert len(measured) == 2
