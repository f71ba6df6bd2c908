"""The curve of a training, `training.jsonl`.

It holds no clock and nothing that a resumed run counts anew, so that two runs write the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from plumbline.data_contracts.artifact import write_bytes

CURVE = "training.jsonl"
_CLOCKED = ("_runtime", "_per_second")
_COUNTED_ANEW = ("num_tokens", "eval_num_tokens", "epoch", "step", "total_flos")
_NAMES = {
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
    "rewards/chosen": "reward_chosen",
    "rewards/rejected": "reward_rejected",
    "logps/chosen": "logps_chosen",
    "logps/rejected": "logps_rejected",
    "logits/chosen": "logits_chosen",
    "logits/rejected": "logits_rejected",
    "mean_token_accuracy": "token_accuracy",
}


def curve_rows(log_history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row a logged step, training and validation figures (`validation_…`) together, under Plumbline's names."""
    rows: dict[int, dict[str, Any]] = {}
    for entry in log_history:
        if "train_runtime" in entry:  # the summary of a whole run
            continue
        row = rows.setdefault(int(entry["step"]), {"step": int(entry["step"])})
        for name, value in entry.items():
            if name not in _COUNTED_ANEW and not name.endswith(_CLOCKED):
                row[f"validation_{name[5:]}" if name.startswith("eval_") else _NAMES.get(name, name)] = value
    return [rows[step] for step in sorted(rows)]


def evaluations_of(rows: Sequence[Mapping[str, Any]], measured: str) -> list[dict[str, Any]]:
    """Validation figures without their prefix, and the step, of each row in which `measured` was measured."""
    return [
        {
            name.removeprefix("validation_"): row[name]
            for name in row
            if name == "step" or name.startswith("validation_")
        }
        for row in rows
        if f"validation_{measured}" in row
    ]


def read_curve(folder: Path) -> list[dict[str, Any]]:
    """The rows of `training.jsonl` in a folder."""
    return [orjson.loads(line) for line in (folder / CURVE).read_bytes().splitlines()]


def write_curve(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `training.jsonl`, a JSON object a logged step."""
    lines = b"".join(orjson.dumps(row, option=orjson.OPT_SORT_KEYS) + b"\n" for row in rows)
    write_bytes(folder / CURVE, lines)
