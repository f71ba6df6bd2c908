"""Plots of a comparison: win rate against KL, calibration, training time, win rate over training time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plumbline.data_contracts.figures import words_of
from plumbline.tasks.evaluation.comparison.recommend import FigureInterval
from plumbline.tasks.evaluation.comparison.table import TrialRow

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = ("#1f6fb2", "#d9822b", "#3a8f5c", "#8a5aa8", "#6b7280", "#b2453c")  # as in the evaluation's plots
_MARKS = "osD^vP"
_STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e5e7eb",
}


def win_rate_against_kl(rows: Sequence[TrialRow], judge: str, front: Sequence[str], most_kl: float, path: Path) -> None:
    """Win rate over KL, both with intervals; the Pareto front is filled, the end of the KL band dashed."""
    with _canvas(path, (7.4, 4.2)) as figure:
        axes = figure.subplots()
        for number, row in enumerate(rows):
            win, kl = row.win[judge], row.kl
            if win.value is None or kl.value is None:  # nowhere to put it
                continue
            axes.errorbar(
                kl.value,
                win.value,
                xerr=_reach(kl),
                yerr=_reach(win),
                fmt=_MARKS[number // len(_COLOURS) % len(_MARKS)],
                color=_COLOURS[number % len(_COLOURS)],
                markerfacecolor=None if row.name in front else "none",
                label=row.name,
            )
        axes.axhline(0.5, color="#6b7280", linewidth=1, linestyle=":")
        axes.axvline(most_kl, color="#6b7280", linewidth=1, linestyle="--", label="end of the KL band")
        axes.set(
            title="Win rate against KL (filled: Pareto front)",
            xlabel=words_of("divergence.kl_nats_per_token"),
            ylabel=words_of("win_rate.judge", judge),
        )
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))


def reliability(bins: Mapping[str, Sequence[Mapping[str, Any]]], rows: Sequence[TrialRow], path: Path) -> None:
    """Reliability curve of each variant (its first seed), with its ECE (mean over seeds) in the legend."""
    with _canvas(path, (5.2, 4.6)) as figure:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color="#6b7280", linestyle="--", linewidth=1, label="calibrated")
        for number, row in enumerate(rows):
            if row.ece is None:  # the method implies no probability of a preference
                continue
            found = bins[row.name]
            axes.plot(
                [each["confidence"] for each in found],
                [each["frequency"] for each in found],
                marker="o",
                markersize=3,
                color=_COLOURS[number % len(_COLOURS)],
                label=f"{row.name}, ECE {row.ece:.3f}",
            )
        axes.set(
            title="Reliability of P(chosen ≻ rejected)", xlabel="forecast probability", ylabel="observed frequency"
        )
        axes.legend()


def training_time(rows: Sequence[TrialRow], path: Path) -> None:
    """Wall-clock and CPU seconds of training, a pair of bars a variant."""
    with _canvas(path, (6.4, 1.2 + 0.45 * len(rows))) as figure:
        axes = figure.subplots()
        places = range(len(rows))
        for shift, colour, name, seconds in (
            (-0.2, _COLOURS[0], "wall-clock", [row.wall_seconds for row in rows]),
            (0.2, _COLOURS[1], "CPU", [row.cpu_seconds for row in rows]),
        ):
            axes.barh([place + shift for place in places], seconds, 0.38, color=colour, label=name)
        axes.set(title="Training", xlabel="seconds", yticks=list(places), yticklabels=[row.name for row in rows])
        axes.invert_yaxis()
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))


def win_rate_over_time(rows: Sequence[TrialRow], most_kl: float, path: Path) -> None:
    """Win rate during training, by the judge of training, over CPU seconds: who was where at an equal budget.

    A line per seed; a hollow mark is beyond the KL band. A stack, whose seconds are not known by step, has none.
    """
    with _canvas(path, (6.4, 4.2)) as figure:
        axes = figure.subplots()
        for number, row in enumerate(rows):
            colour, label = _COLOURS[number % len(_COLOURS)], row.name
            for readings in filter(None, row.readings):
                places = [each.cpu_seconds for each in readings], [each.win_rate for each in readings]
                axes.plot(*places, color=colour, linewidth=1.2, label=label)
                inside = [colour if each.kl_per_token <= most_kl else "white" for each in readings]
                axes.scatter(*places, c=inside, edgecolors=colour, s=16, zorder=3)
                label = "_"  # one entry of the legend a variant
        axes.axvline(
            min(row.cpu_seconds for row in rows), color="#6b7280", linewidth=1, linestyle="--", label="least budget"
        )
        axes.axhline(0.5, color="#6b7280", linewidth=1, linestyle=":")
        axes.set(
            title="Win rate during training (hollow: beyond the KL band)",
            xlabel="CPU seconds of training, about",
            ylabel="win rate over π_ref, validation prompts",
        )
        axes.legend()


def _reach(interval: FigureInterval) -> list[list[float]] | None:
    """The reach of an interval to either side of its value, (2, 1); None if there is no interval."""
    value, low, high = interval.value, interval.low, interval.high
    if value is None or low is None or high is None:
        return None
    return [[max(0.0, value - low)], [max(0.0, high - value)]]


@contextmanager
def _canvas(path: Path, size: tuple[float, float]) -> Iterator[Figure]:
    """A figure without pyplot's global state, in matplotlib's own style whatever the user's matplotlibrc says."""
    import matplotlib.style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.style.context(["default", _STYLE]):
        figure = Figure(figsize=size, dpi=120, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="png", metadata={"Software": None})
