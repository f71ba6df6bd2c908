"""Plots of an evaluation as PNG files whose bytes depend on the data alone. Those of sampling: `on_policy_plots`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from plumbline.tasks.evaluation.measures.curves import Training, read_training

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POLICY, REFERENCE, NEUTRAL = "#1f6fb2", "#d9822b", "#6b7280"  # distinct to readers with any colour vision
_TRAINED = (POLICY, "#3a8f5c", NEUTRAL)
_HELD_OUT = (REFERENCE, "#8a5aa8", "#111827")
_MOST_BARS = 40
_STYLE = {
    "figure.dpi": 120,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e7eb",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "legend.fontsize": 8,
}


def training_curves(curves: Mapping[str, Path], path: Path) -> None:
    """Loss and accuracy of each stage against its steps; evaluation metrics dashed with a mark a point.

    `curves`: stage name → `training.jsonl`, a JSON object per line with `step` and metrics. Metrics whose name
    ends with "loss" or "win_rate", or contains "accura", are drawn; lines break where a stack goes on to its next
    method. Raises `ArtifactError` when a file cannot be read.
    """
    stages = {stage: read_training(file) for stage, file in curves.items()}
    with canvas(path, (8.0, 0.6 + 2.3 * len(stages))) as figure:
        grid = figure.subplots(len(stages), 2, squeeze=False)
        for row, (stage, found) in zip(grid, stages.items(), strict=True):
            losses = [name for name in found.curves if name.endswith("loss")]
            shares = [name for name in found.curves if "accura" in name or name.endswith("win_rate")]
            draw_curves(row[0], f"{stage}: loss", found, losses)
            draw_curves(row[1], f"{stage}: accuracy", found, shares)
            row[0].set_xlabel("step")
            row[1].set_xlabel("step")


def reward_distribution(scores: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]], path: Path) -> None:
    """Histogram of each score (panel title → policy (n,), reference (n,)) on common bins, means as dashed lines."""
    with canvas(path, (4.6 * len(scores), 3.2)) as figure:
        for axes, (title, (policy, reference)) in zip(
            figure.subplots(1, len(scores), squeeze=False)[0], scores.items(), strict=True
        ):
            edges = _bin_edges(np.concatenate([policy, reference]))
            for label, values, colour in (("π_ref", reference, REFERENCE), ("π", policy, POLICY)):
                axes.hist(values, edges, color=colour, alpha=0.25, histtype="stepfilled")
                axes.hist(values, edges, color=colour, histtype="step", linewidth=1.3)
                axes.axvline(
                    float(values.mean()), color=colour, linestyle="--", label=f"{label}, mean {values.mean():.2f}"
                )
            axes.set(title=title, xlabel="reward", ylabel="completions")
            axes.margins(y=0.25)
            axes.legend(loc="upper left")


def reliability_diagram(bins: Sequence[Mapping[str, Any]], ece: float | None, path: Path) -> None:
    """Observed frequency against forecast probability, and below it how many forecasts each bin holds."""
    with canvas(path, (4.2, 4.8)) as figure:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
        confidence = [row["confidence"] for row in bins]
        frequency = [row["frequency"] for row in bins]
        top.plot([0, 1], [0, 1], color=NEUTRAL, linestyle="--", linewidth=1, label="calibrated")
        top.vlines(confidence, confidence, frequency, color=REFERENCE, linewidth=1.2, label="gap")
        top.plot(confidence, frequency, color=POLICY, marker="o", markersize=4, label="π")
        title = "Reliability of P(chosen ≻ rejected)" + (f", ECE {ece:.3f}" if ece is not None else ", no pairs")
        top.set(title=title, ylabel="observed frequency", xlim=(0, 1), ylim=(0, 1))
        top.legend(loc="upper left")
        left = [row["low"] for row in bins]
        width = [row["high"] - row["low"] for row in bins]
        bottom.bar(left, [row["n"] for row in bins], width, align="edge", color=POLICY, alpha=0.6, linewidth=0)
        bottom.set(xlabel="forecast probability (each pair in both orders)", ylabel="forecasts")


def _bin_edges(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Equal bins; a bar for each value where a reward takes few, since equal bins would tear gaps between them."""
    known = np.unique(values)
    if known.size > _MOST_BARS:
        return np.histogram_bin_edges(values, bins=_MOST_BARS)
    if known.size == 1:
        return np.array([known[0] - 0.5, known[0] + 0.5])
    middle = (known[1:] + known[:-1]) / 2
    return np.concatenate([[2 * known[0] - middle[0]], middle, [2 * known[-1] - middle[-1]]])


@contextmanager
def canvas(path: Path, size: tuple[float, float]) -> Iterator[Figure]:
    """A figure without pyplot's global state, in matplotlib's own style whatever the user's matplotlibrc says."""
    import matplotlib.style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.style.context(["default", _STYLE]):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="png", metadata={"Software": None})


def draw_curves(axes: Axes, title: str, training: Training, names: Sequence[str], *, legend: bool = True) -> None:
    """Metrics of a training, held-out ones dashed with a mark a point; a dotted line where a stage of a stack ends."""
    axes.set_title(title)
    if not names:
        axes.text(0.5, 0.5, "not recorded", ha="center", va="center", color=NEUTRAL, transform=axes.transAxes)
        axes.set(xticks=[], yticks=[])
        return
    held_out = sorted(name for name in names if name.startswith(("eval", "validation")))
    trained = sorted(set(names) - set(held_out))
    for group, colours, line in ((trained, _TRAINED, "-"), (held_out, _HELD_OUT, "--")):
        for index, name in enumerate(group):
            label: str | None = name
            for piece in training.pieces(name):
                steps, values = zip(*piece, strict=True)
                marker = "o" if line == "--" or len(steps) == 1 else ""
                colour = colours[index % len(colours)]
                axes.plot(steps, values, line, color=colour, marker=marker, markersize=3, linewidth=1.3, label=label)
                label = None
    for step in training.boundaries:
        axes.axvline(step, color=NEUTRAL, linestyle=":", linewidth=1)
    if legend:
        axes.legend()
