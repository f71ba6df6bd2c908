from __future__ import annotations

from typing import Any

from plumbline.tasks.registry.lineage.bill_of_materials import render_bom
from plumbline.tasks.registry.lineage.build import DescribedVersion, build_graph
from plumbline.tasks.registry.lineage.in_use import in_use
from plumbline.tasks.registry.lineage.openlineage_events import run_events


def with_a_world(manifest: dict[str, Any], enabled: bool) -> dict[str, Any]:
    """The manifest with a sample world that base and evaluation read."""
    md5 = {"md5": "0" * 32 + ".dir"}
    artifact = {"digest": "c" * 64, "contract": "sample_world", "contract_version": 1, "parents": {}}
    world = {"cmd": "x", "params": {}, "deps": {}, "outs": {"data/world": md5}, "artifact": artifact}
    stages = {"sample_world": world, **manifest["stages"]}
    for name in ("base", "evaluate"):
        stages[name] = {**stages[name], "deps": {**stages[name]["deps"], "data/world": md5}}
    objects = {**manifest["objects"], "world": {"path": "data/world", "digest": "c" * 64, **md5}}
    run = {**manifest["as_run"], "sample_world": {"enabled": enabled}}
    return {**manifest, "stages": stages, "objects": objects, "as_run": run}


def test_a_stage_that_was_switched_off_is_nowhere(manifest: dict[str, Any], about: DescribedVersion) -> None:
    shown = in_use(with_a_world(manifest, enabled=False))
    assert "path:data/world" not in build_graph(shown, about).nodes
    assert b"data/world" not in render_bom(shown, about)
    assert {event.job.name for event in run_events(shown, about)} == {
        f"assistant.{name}" for name in (*manifest["stages"], "register")
    }


def test_a_stage_that_ran_stays(manifest: dict[str, Any], about: DescribedVersion) -> None:
    whole = with_a_world(manifest, enabled=True)
    assert in_use(whole) == whole
    assert "path:data/world" in build_graph(whole, about).nodes


def test_the_base_model_bears_its_own_name(manifest: dict[str, Any], about: DescribedVersion) -> None:
    manifest["as_run"]["base"] |= {"source": "org/chat-0.5b", "revision": "abc"}
    node = build_graph(manifest, about).nodes["path:models/base"]
    assert node.label == "base model org/chat-0.5b"
    assert (node.facts["source"], node.facts["revision"]) == ("org/chat-0.5b", "abc")
    assert b'"plumbline:source"' in render_bom(manifest, about)
