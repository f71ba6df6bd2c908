"""The tables at the end of a run, for metrics in which any figure is null: one prompt has no interval."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from io import StringIO
from pathlib import Path
from typing import Any

import orjson
import pytest
from rich.console import Console, Group

from plumbline.data_contracts.artifact import Artifact, warnings_of
from plumbline.data_contracts.figures import FIGURES, look_up, words_of
from plumbline.flows.cli.output import Output
from plumbline.flows.cli.report import payload_of, tables_of
from plumbline.tasks.evaluation.measures.gate import GateResult
from plumbline.tasks.operations.promote_model import Promotion
from plumbline.tasks.operations.settle_champion import Settled
from plumbline.tasks.pipeline.stage import StageRecord
from plumbline.tasks.registry.versions.card import render_card


def estimate(value: float = 0.6) -> dict[str, Any]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 200}


def side() -> dict[str, Any]:
    return {"refusal_accuracy": estimate(), "over_refusal": estimate(0.1)}


METRICS: dict[str, Any] = {
    "counts": {"prompts": 200, "pairs": 220, "pairs_over_context": 2, "prompts_over_context": 1},
    "win_rate": {
        "judge": {**estimate(), "ties": 1, "swap_consistency": 1.0, "length_controlled": estimate()},
        "gold": {**estimate(), "ties": 1, "swap_consistency": 1.0, "length_controlled": estimate()},
    },
    "preference": {"accuracy": {**estimate(), "clusters": 200}},
    "calibration": {"ece": 0.1, "beta": 0.2},
    "divergence": {"kl_nats_per_token": estimate(0.1)},
    "judge": {"policy_reward": estimate()},
    "gold": {"policy_reward": estimate(), "reference_reward": estimate(), "judge_agreement": estimate()},
    "safety": {"policy": side(), "reference": side()},
    "text": {
        "policy": {"tokens": estimate(11.0), "finished": estimate(0.99)},
        "reference": {"tokens": estimate(12.0), "finished": estimate(0.98)},
    },
    "endings": {"win_rate_both_finished": estimate(), "cut_preferred": estimate(0.4)},
    "reward_audit": {"passed": True, "accuracy": {**estimate(0.7), "clusters": 200}},
}


CARD: dict[str, Any] = {
    "model": {"name": "assistant", "key": "k"},
    "git": {"commit": "c", "dirty": False},
    "program": {"version": "0.1.0", "git_commit": "p"},
    "environment": {"python": "3.11", "sha256": "e" * 64},
    "counts": {},
    "raw_batches": [],
    "objects": {},
    "settings": {},
    "as_run": {},
    "gate": {"passed": True, "reasons": []},
}
"""What a card needs of a manifest beside the evaluation."""


def registered(metrics: Mapping[str, Any], warnings: Sequence[str] = (), first: Promotion | None = None) -> Settled:
    """A run whose stages have the facts that the tables read."""
    facts: dict[str, dict[str, Any]] = {
        "curate": {
            "read": 3,
            "accepted": 2,
            "merged": 1,
            "quarantined": 0,
            "reasons": {},
            "merged_reasons": {},
            "splits": {},
        },
        "reference": {},
        "reward": {"too_long": {"train": 0}},
        "finetune": {"too_long": {"train": 0}, "warnings": list(warnings)},
        "evaluate": {"metrics": metrics},
        "gate": {"passed": True, "reasons": [{"name": "min_prompts", "passed": True, "text": "enough"}]},
    }
    records = [
        StageRecord(name, 0.1, False, Artifact(Path(name), "d", name, 1, {}, found, {}))
        for name, found in facts.items()
    ]
    return Settled("models:/assistant/1", [], True, records, first)


def shown(metrics: Mapping[str, Any], warnings: Sequence[str] = (), first: Promotion | None = None) -> str:
    console = Console(width=200, record=True, file=StringIO())
    console.print(Group(*tables_of(registered(metrics, warnings, first), 1.0, Path("/w"))))
    return console.export_text()


def paths(values: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every node of nested mappings, leaves and mappings alike."""
    for name, value in values.items():
        yield (*above, name)
        if isinstance(value, Mapping):
            yield from paths(value, (*above, name))


def without(path: tuple[str, ...]) -> dict[str, Any]:
    """The metrics with one node null."""
    changed = deepcopy(METRICS)
    node: Any = changed
    for name in path[:-1]:
        node = node[name]
    node[path[-1]] = None
    return changed


def nulled(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: nulled(value) if isinstance(value, Mapping) else None for name, value in values.items()}


CASES: dict[str, Callable[[], dict[str, Any]]] = {
    **{".".join(path): (lambda path=path: without(path)) for path in paths(METRICS)},  # type: ignore[misc]
    "every figure": lambda: nulled(METRICS),
    "every section": lambda: dict.fromkeys(METRICS),
}


@pytest.mark.parametrize("case", CASES)
def test_tables_and_card_are_made_whatever_figure_is_null(case: str) -> None:
    metrics = CASES[case]()
    assert "Feedback: read 3" in shown(metrics)
    assert render_card({**CARD, "evaluation": metrics})
    assert orjson.dumps(payload_of(registered(metrics), 1.0))


def test_every_figure_that_was_measured_is_shown_and_an_estimate_without_interval_keeps_its_value() -> None:
    whole = shown(METRICS)
    measured = [name for name in FIGURES if look_up(METRICS, name) is not None]
    assert len(measured) > 12
    assert all(words_of(name, "reward model") in whole for name in measured)
    alone = deepcopy(METRICS)
    alone["win_rate"]["judge"] |= {"value": 1.0, "low": None, "high": None, "n": 1}
    line = next(line for line in shown(alone).splitlines() if "over π_ref (reward model)" in line)
    assert line.split() == ["win", "rate", "over", "π_ref", "(reward", "model)", "1.000", "1"]


def test_warnings_of_stages_reach_terminal_json_and_card() -> None:
    said = "There is no independent judge: [ppo] is optimised against the reward model."
    assert said in shown(METRICS, [said])
    assert "Warnings" not in shown(METRICS)
    run = registered(METRICS, [said])
    assert payload_of(run, 1.0)["warnings"] == [{"stage": "finetune", "text": said}]
    assert payload_of(registered(METRICS), 1.0)["warnings"] == []
    artifacts = {record.name: record.artifact for record in run.stages}
    manifest = {**CARD, "evaluation": METRICS, "warnings": warnings_of(artifacts)}
    assert f"## Warnings\n\n- {said} (stage `finetune`)" in render_card(manifest)
    assert "## Warnings" not in render_card({**CARD, "evaluation": METRICS})


def test_a_version_that_is_no_champion_says_which_gate_said_no() -> None:
    gate = GateResult("calibration", False, 0.363, 0.25, "calibration error (ECE) 0.363 > 0.25: failed")
    first = Promotion("models:/assistant/1", "champion", None, False, [gate])
    text = shown(METRICS, first=first)
    assert "No champion yet" in text
    assert "calibration error (ECE) 0.363 > 0.25: failed" in text
    payload = payload_of(registered(METRICS, first=first), 1.0)
    assert payload["first_champion"]["promoted"] is False
    assert payload["first_champion"]["gates"][0]["name"] == "calibration"


def test_a_mistake_in_a_view_costs_the_view_alone(capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> str:
        return f"{None:.3f}"

    Output(json=False).result({"model_uri": "models:/assistant/1"}, broken)
    out, err = capsys.readouterr()
    assert orjson.loads(out) == {"model_uri": "models:/assistant/1"}
    assert "the tables could not be made (TypeError" in err


def test_with_json_no_view_is_built(capsys: pytest.CaptureFixture[str]) -> None:
    def never() -> str:
        raise AssertionError

    Output(json=True).result({"passed": True}, never)
    assert orjson.loads(capsys.readouterr().out) == {"passed": True}


def test_records_that_the_template_refuses_or_that_spell_its_tokens_are_shown() -> None:
    """Counts of training and test splits add up; a run without any says nothing, as one of before does."""
    assert "control tokens" not in shown(METRICS) and "Refused" not in shown(METRICS)
    run = registered(METRICS)
    facts = {record.name: record.artifact.facts for record in run.stages}
    rows = [{"split": "train", "id": "p-1", "reason": "no system turns"}]
    facts["reward"]["refused_by_template"] = {"train": 1, "test": 0, "reasons": {"no system turns": 1}, "rows": rows}
    facts["finetune"]["control_tokens"] = {"rows": 2, "tokens": {"</s>": 2, "<|user|>": 1}}
    facts["evaluate"]["control_tokens"] = {"rows": 1, "tokens": {"</s>": 1}}
    console = Console(width=160, record=True, file=StringIO())
    console.print(Group(*tables_of(run, 1.0, Path("/w"))))
    text = console.export_text()
    assert "Refused by the chat template, set aside: 1 train in reward (such as p-1: no system turns)" in text
    assert "Records that spell control tokens, read as text: 3 (</s> 3, <|user|> 1)" in text
    payload = payload_of(run, 1.0)
    assert payload["control_tokens"] == {"rows": 3, "tokens": {"</s>": 3, "<|user|>": 1}}
    assert payload["refused_by_template"]["reward"]["rows"] == rows
