"""The graph: every stage of the retraining loop, in order, and the `dvc.yaml` made from it."""

from __future__ import annotations

import io

from ruamel.yaml import YAML

from plumbline.tasks.data import curate_preferences, make_sample_world, validate_feedback
from plumbline.tasks.evaluation import decide_gate, evaluate_policy
from plumbline.tasks.pipeline.stage import Stage
from plumbline.tasks.training import build_base, build_reference, finetune_policy, train_reward

_ORDER = (
    make_sample_world.STAGE,
    build_base.STAGE,
    validate_feedback.STAGE,
    curate_preferences.STAGE,
    build_reference.STAGE,
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


def render_dvc_yaml() -> str:
    """The text of `dvc.yaml` for the graph in `STAGES`."""
    stages = {
        stage.name: {
            "cmd": f"plumbline stage {stage.name}",
            "deps": sorted(stage.deps.values()),
            "params": list(stage.params),
            "outs": [stage.out],
        }
        for stage in _ORDER
    }
    for entry in stages.values():
        if not entry["deps"]:
            del entry["deps"]
    buffer = io.StringIO()
    yaml = YAML()
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.dump({"stages": stages}, buffer)
    return _HEADER + buffer.getvalue()
