"""Page, bill of materials and events of one made-up version, whose texts are hostile."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import orjson
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from plumbline.data_contracts.errors import OperationsError, UsageError
from plumbline.tasks.registry.lineage.bill_of_materials import render_bom
from plumbline.tasks.registry.lineage.build import DescribedVersion, build_graph
from plumbline.tasks.registry.lineage.layout import HEIGHT, WIDTH, lay_out
from plumbline.tasks.registry.lineage.openlineage_events import emit, run_events, serialise
from plumbline.tasks.registry.lineage.page import render_page


def page(manifest: dict[str, Any], about: DescribedVersion) -> str:
    evil = str(about.trigger["subject"])
    objects = [{"name": evil, "kind": "data", "hash": "h", "where": "cache", "found": "x", "ok": False}]
    checked = {"objects": objects, "problems": [f"{evil}: changed"], "notes": [evil]}
    return render_page(build_graph(manifest, about), manifest, False, checked, about.ledger)


def test_stacked_methods_a_held_out_judge_trigger_and_approval_are_nodes(
    manifest: dict[str, Any], about: DescribedVersion
) -> None:
    graph = build_graph(manifest, about)
    assert [node.label for node in graph.nodes.values() if node.kind == "policy_stage"] == ["PPO", "DPO"]
    edges = {(edge.source, edge.target, edge.relation) for edge in graph.edges}
    assert ("path:models/policy", "method:2-ppo", "made-from") in edges
    assert ("method:2-ppo", "method:1-dpo", "made-from") in edges
    assert ("method:1-dpo", "path:models/reference", "made-from") in edges
    assert ("path:models/reward", "held_out", "contains") in edges
    assert ("version", "trigger", "triggered-by") in edges
    assert ("version", "ledger:1", "approved-by") in edges
    assert ("path:models/policy", "rubric:" + "ab" * 32, "judged-by") in edges


def test_a_manifest_of_an_older_program_still_gives_a_graph(manifest: dict[str, Any], about: DescribedVersion) -> None:
    for key in ("suites", "accounts", "judge_prompts"):
        del manifest[key]
    assert "path:data/raw" in build_graph(manifest, about).nodes


def test_no_box_lies_over_another_and_every_edge_points_right(
    manifest: dict[str, Any], about: DescribedVersion
) -> None:
    drawing = lay_out(build_graph(manifest, about))
    boxes = list(drawing.boxes.values())
    for number, one in enumerate(boxes):
        for other in boxes[number + 1 :]:
            assert abs(one.x - other.x) >= WIDTH or abs(one.y - other.y) >= HEIGHT, (one.node.id, other.node.id)
        assert 0 <= one.x <= drawing.width - WIDTH and 0 <= one.y <= drawing.height - HEIGHT
    for _, points in drawing.paths:
        assert all(x < after for (x, _), (after, _) in pairwise(points))
    (gathered,) = [box for box in boxes if len(box.members) > 1]
    assert (gathered.node.label, len(gathered.members)) == ("41 annotators", 41)


def test_hostile_texts_stay_texts(manifest: dict[str, Any], about: DescribedVersion) -> None:
    html = page(manifest, about)
    assert len(re.findall(r"<script", html)) == 1
    assert "<img" not in html
    assert html.count("&lt;script&gt;") >= 5, "in a problem, an object, a label, a diff, a text"


def test_the_page_may_load_nothing(manifest: dict[str, Any], about: DescribedVersion) -> None:
    html = page(manifest, about)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    assert policy is not None
    assert policy[1].startswith("default-src &#x27;none&#x27;")
    assert "unsafe-inline" not in policy[1]
    assert not re.findall(r'(?:src|href)="(?!#)', html)


def test_the_bill_of_materials_is_valid_and_names_model_data_and_libraries(
    manifest: dict[str, Any], about: DescribedVersion
) -> None:
    text = render_bom(manifest, about).decode()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bom = orjson.loads(text)
    model = bom["metadata"]["component"]
    assert (model["type"], model["version"]) == ("machine-learning-model", "3")
    assert model["modelCard"]["modelParameters"]["approach"] == {"type": "reinforcement-learning"}
    (metric,) = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert metric["confidenceInterval"] == {"lowerBound": "0.6", "upperBound": "0.8"}
    purls = {component.get("purl") for component in bom["components"]}
    assert "pkg:pypi/torch@2.13.0%2Bcpu" in purls
    data = {component["name"]: component["data"][0] for component in bom["components"] if component["type"] == "data"}
    assert {"name": "records:train", "value": "43"} in data["data/curated"]["contents"]["properties"]
    assert render_bom(manifest, about).decode() == text, "the same version, the same bytes"


def test_every_stage_has_a_start_and_an_end_and_the_model_its_facet(
    manifest: dict[str, Any], about: DescribedVersion
) -> None:
    events = [orjson.loads(serialise(event)) for event in run_events(manifest, about)]
    assert len(events) == 2 * (len(manifest["stages"]) + 1)
    assert [event["eventType"] for event in events[:2]] == ["START", "COMPLETE"]
    last = events[-1]
    facet = last["outputs"][0]["facets"]["plumblineModel"]
    assert (facet["modelUri"], facet["methods"], facet["gatePassed"]) == ("models:/assistant/3", ["dpo", "ppo"], True)
    finetune = next(event for event in events if event["job"]["name"] == "assistant.finetune")
    assert {item["name"] for item in finetune["inputs"]} == {"models/reference", "models/reward", "data/curated"}
    assert len({event["run"]["runId"] for event in events}) == len(events) / 2


def test_events_go_to_a_file_and_a_lost_server_is_named(
    manifest: dict[str, Any], about: DescribedVersion, tmp_path: Any
) -> None:
    events = run_events(manifest, about)
    assert emit(events, str(tmp_path / "events.jsonl")) == len(events)
    assert len((tmp_path / "events.jsonl").read_bytes().splitlines()) == len(events)
    with pytest.raises(UsageError, match="cannot append"):
        emit(events, str(tmp_path))
    with pytest.raises(OperationsError, match="expected an OpenLineage server"):
        emit(events[:1], "http://127.0.0.1:9")
