"""The graph: every stage of the retraining loop, in order, and the `dvc.yaml` made from it."""

from __future__ import annotations

import io
from typing import Any

from ruamel.yaml import YAML

from plumbline.tasks.data import curate_preferences, make_sample_world, validate_feedback
from plumbline.tasks.evaluation import decide_gate, evaluate_policy
from plumbline.tasks.params.resolved import GRAPH
from plumbline.tasks.params.section import PARAMS_FILE, RECIPES, RESOLVED_FILE
from plumbline.tasks.pipeline.stage import TEMPLATE, Stage
from plumbline.tasks.storage.versioning.lock import PARAMS_STAGE
from plumbline.tasks.training import build_base, build_reference, finetune_policy, measure_lengths, train_reward

_ORDER = (
    make_sample_world.STAGE,
    build_base.STAGE,
    validate_feedback.STAGE,
    curate_preferences.STAGE,
    build_reference.STAGE,
    measure_lengths.STAGE,
    train_reward.STAGE,
    finetune_policy.STAGE,
    evaluate_policy.STAGE,
    decide_gate.STAGE,
)
STAGES: dict[str, Stage] = {stage.name: stage for stage in _ORDER}

_HEADER = (
    "# The retraining graph. `plumbline retrain` drives it with Prefect, `dvc repro` with DVC: one implementation,\n"
    "# one dvc.lock. Written by `plumbline init` from flows/graph/stages.py; a test holds the two together.\n"
)


GRAPH_KEYS = tuple(sorted({key for stage in _ORDER for path in stage.deps.values() for key in TEMPLATE.findall(path)}))
"""Params that name inputs of stages."""


def render_dvc_yaml() -> str:
    """The text of `dvc.yaml` for the graph in `STAGES`."""
    params = {
        "cmd": f"plumbline stage {PARAMS_STAGE}",
        "deps": [RECIPES, PARAMS_FILE],
        "outs": [{RESOLVED_FILE: {"cache": False, "persist": True}}],
    }
    stages = {PARAMS_STAGE: params, **{stage.name: _entry(stage) for stage in _ORDER}}
    buffer = io.StringIO()
    yaml = YAML()
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.dump({"vars": [f"{RESOLVED_FILE}:{GRAPH}"], "stages": stages}, buffer)
    return _HEADER + buffer.getvalue()


def _entry(stage: Stage) -> dict[str, Any]:
    deps = sorted(TEMPLATE.sub(rf"${{{GRAPH}.\1}}", path) for path in stage.deps.values())
    entry: dict[str, Any] = {"cmd": f"plumbline stage {stage.name}"}
    if deps:
        entry["deps"] = deps
    return {**entry, "params": [{RESOLVED_FILE: list(stage.params)}], "outs": [stage.out]}
