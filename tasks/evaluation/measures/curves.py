"""The curve of a training as it is plotted: points by metric, and the stages of a stack that they fall into."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from plumbline.data_contracts.errors import ArtifactError

Curve = list[tuple[float, float]]
"""(step, value) points."""


@dataclass(frozen=True, slots=True)
class Span:
    """The logged steps of one stage of a stack, both ends included; `name` as in the column `stage`."""

    name: str
    first: float
    last: float


@dataclass(frozen=True, slots=True)
class Training:
    """Curves by metric and, of a stack, the spans of its stages in order; a single method has none."""

    curves: Mapping[str, Curve]
    spans: Sequence[Span] = ()

    @property
    def on_policy(self) -> bool:
        """True if any stage sampled from the policy: PPO and GRPO log how long its responses are."""
        return "response_tokens" in self.curves

    @property
    def boundaries(self) -> list[float]:
        """Steps between two stages."""
        return [(one.last + other.first) / 2 for one, other in zip(self.spans, self.spans[1:], strict=False)]

    def pieces(self, name: str) -> Iterator[Curve]:
        """The points of a metric, cut between stages: what two methods log under one name is not one line."""
        curve = self.curves[name]
        if not self.spans:
            yield curve
        for span in self.spans:
            piece = [point for point in curve if span.first <= point[0] <= span.last]
            if piece:
                yield piece


def read_training(path: Path) -> Training:
    """Read `training.jsonl`; a line without `step` takes the number of the line. Raises `ArtifactError`."""
    try:
        rows = [orjson.loads(line) for line in path.read_bytes().splitlines() if line.strip()]
    except (OSError, orjson.JSONDecodeError) as error:
        raise ArtifactError(
            f"{path}: expected the curve of a training stage, a JSON object per line, found {error}. Repeat the stage."
        ) from error
    curves: dict[str, Curve] = {}
    steps: dict[str, list[float]] = {}
    for number, row in enumerate(rows, start=1):
        step = float(row.get("step", number))
        if "stage" in row:
            steps.setdefault(row["stage"], []).append(step)
        for name, value in row.items():
            if name not in ("step", "epoch") and _is_number(value):
                curves.setdefault(name, []).append((step, float(value)))
    return Training(curves, tuple(Span(name, min(found), max(found)) for name, found in steps.items()))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
