"""Stage `gate`: hold the metrics to the thresholds in params and state each reason."""

from __future__ import annotations

import orjson

from plumbline.data_contracts.artifact import write_json
from plumbline.tasks.evaluation.measures.gate import decide
from plumbline.tasks.params.evaluation import GateParams
from plumbline.tasks.pipeline.stage import Facts, Stage, StageContext


def decide_gate(context: StageContext, *, gate: GateParams) -> Facts:
    """Write the decision. A stage of its own: another threshold does not repeat the evaluation."""
    metrics = orjson.loads((context.dep("evaluation") / "metrics.json").read_bytes())
    decision = decide(metrics, gate).as_dict()
    write_json(context.folder / "gate.json", decision)
    return decision


STAGE = Stage(
    name="gate",
    title="Gate",
    body=decide_gate,
    deps={"evaluation": "reports/evaluation"},
    params=("gate",),
    out="reports/gate",
    contract="gate_decision",
)
