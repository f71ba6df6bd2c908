"""Plots of a training that sampled from its policy (PPO, GRPO): rewards term by term, and what tells that it is sound.

`rewards.png` puts what is maximised above what the judge says of held-out prompts, over the same steps: a reward that
rises while the judge's win rate falls is being hacked. `on_policy.png` shows KL and its control, entropy, how responses
end, the critic, clipping, lengths. What a curve does not hold is not drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plumbline.tasks.evaluation.measures.curves import Span, Training, read_training
from plumbline.tasks.evaluation.measures.plots import NEUTRAL, POLICY, REFERENCE, canvas, draw_curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_KL = "KL from π_ref"
_BETA = "β, weight of the KL penalty (shaded: on the ramp)"
_EXPLAINED = "Variance that the critic explains"
_LEAST_EXPLAINED = -1.0  # a new critic may start at -40 and would flatten all that follows

_SAME = 1e-4  # of a reward: less than a pixel
_BAND = 0.2
"""Half-width of the target band as a share of the target: the error at which β moves at full speed (Ziegler et al.
2019, section 2.2; `ERROR_CLIP` of the controller)."""


@dataclass(frozen=True, slots=True)
class Panel:
    """Metrics that are drawn together, and their unit. Those named of PPO and GRPO alike share a panel."""

    title: str
    unit: str
    metrics: tuple[str, ...]


PANELS = (
    Panel(_KL, "nats per token", ("kl_per_token", "validation_kl_per_token")),
    Panel(_BETA, "β", ("beta",)),
    Panel("Entropy of the policy", "nats per token", ("entropy", "sampled_entropy")),
    Panel("Responses with an end token", "share", ("eos_rate", "finished", "validation_finished")),
    Panel(_EXPLAINED, "share", ("explained_variance",)),
    Panel("Clipped tokens", "share", ("clip_fraction", "clip_share", "value_clip_fraction")),
    Panel("Length of responses", "tokens", ("response_tokens", "validation_response_tokens")),
    Panel("Repeated or empty responses", "share", ("repetition", "empty_rate", "validation_repetition")),
    Panel("Groups whose candidates all gain the same", "share", ("zero_variance_share",)),
)

_TOTAL = Panel("Total reward", "reward", ("reward",))
_SCORED = Panel("Total reward (score: clipped, and for a missing end token penalised)", "reward", ("reward", "score"))
_GAINS = Panel("Spread of the judge's gains within a group", "gain", ("gain_spread",))
_HELD_OUT = (
    Panel("Judge on held-out prompts: score", "score", ("validation_judge_score",)),
    Panel("Judge on held-out prompts: win rate over π_ref", "share", ("validation_win_rate",)),
)


@dataclass(frozen=True, slots=True)
class KlBand:
    """The aim of KL control over the steps of a span: the target and the KL above which β ramps, nats per token."""

    span: Span
    target: float
    ramp: float | None


def draw(curve: Path, settings: Mapping[str, Any], folder: Path) -> None:
    """Write `rewards.png` and `on_policy.png` of a training into `folder`; nothing for one that did not sample.

    `settings` are those in the policy's manifest: of the method, or of a stack's methods by stage name. Raises
    `ArtifactError` when the curve cannot be read.
    """
    training = read_training(curve)
    if not training.on_policy:
        return
    _draw_rewards(training, folder / "rewards.png")
    _draw_health(training, list(_bands(training, settings)), folder / "on_policy.png")


def reward_panels(training: Training) -> list[Panel]:
    """The total, a panel a reward term in its own unit, the gains of a ranking judge, and the held-out judge."""
    terms = [
        Panel(f"Term {name.removeprefix('reward/')}", "raw score", (name,))
        for name in sorted(training.curves)
        if name.startswith("reward/") and not name.endswith("/normalised")
    ]
    total = _SCORED if _differ(training, *_SCORED.metrics) else _TOTAL
    return _recorded(training, (total, *terms, _GAINS, *_HELD_OUT))


def _differ(training: Training, one: str, other: str) -> bool:
    """True if two metrics of the same steps are two lines to the eye."""
    pairs = zip(training.curves.get(one, []), training.curves.get(other, []), strict=False)
    return any(abs(a - b) > _SAME * max(1.0, abs(a)) for (_, a), (_, b) in pairs)


def _draw_rewards(training: Training, path: Path) -> None:
    panels = reward_panels(training)
    with canvas(path, (7.2, 0.5 + 1.55 * len(panels))) as figure:
        grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for axes, panel in zip(grid, panels, strict=True):
            _draw_panel(axes, panel, training)
            if panel.metrics == ("validation_win_rate",):
                axes.axhline(0.5, color=NEUTRAL, linewidth=1, linestyle=":")
        _name_stages(grid[0], training)
        grid[-1].set_xlabel("step")


def _draw_health(training: Training, bands: list[KlBand], path: Path) -> None:
    panels = _recorded(training, PANELS)
    rows = (len(panels) + 1) // 2
    with canvas(path, (10.0, 0.5 + 2.0 * rows)) as figure:
        grid = figure.subplots(rows, 2, sharex=True, squeeze=False)
        for axes, panel in zip(grid.flat, panels, strict=False):
            _draw_panel(axes, panel, training)
            if panel.title == _KL:
                _draw_bands(axes, bands)
            elif panel.title == _BETA:
                _draw_ramps(axes, training)
            elif panel.title == _EXPLAINED:
                _cut(axes, training)
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        _name_stages(grid[0, 0], training)
        for column in (0, 1):
            last = grid[(len(panels) - 1 - column) // 2, column]
            last.set_xlabel("step")
            last.tick_params(labelbottom=True)


def _recorded(training: Training, panels: tuple[Panel, ...]) -> list[Panel]:
    """The panels of which something was recorded, with what was."""
    found = [
        Panel(panel.title, panel.unit, tuple(name for name in panel.metrics if name in training.curves))
        for panel in panels
    ]
    return [panel for panel in found if panel.metrics]


def _draw_panel(axes: Axes, panel: Panel, training: Training) -> None:
    draw_curves(axes, panel.title, training, panel.metrics, legend=len(panel.metrics) > 1)
    axes.set_ylabel(panel.unit)


def _bands(training: Training, settings: Mapping[str, Any]) -> Iterator[KlBand]:
    """The target of each stage whose KL control follows one."""
    steps = [step for curve in training.curves.values() for step, _ in curve]
    spans = training.spans or (Span("", min(steps), max(steps)),)
    for span in spans:
        control = settings.get(span.name, {} if training.spans else settings).get("kl")
        if control is not None and control["mode"] == "adaptive":
            ramp = control["ramp_at"]
            yield KlBand(span, control["target"], None if ramp is None else ramp * control["target"])


def _draw_bands(axes: Axes, bands: list[KlBand]) -> None:
    for band in bands:
        ends, target = (band.span.first, band.span.last), band.target
        words = f"target {target:g} ± {_BAND:.0%}"
        axes.fill_between(ends, (1 - _BAND) * target, (1 + _BAND) * target, color=POLICY, alpha=0.15, lw=0, label=words)
        if band.ramp is not None:
            axes.hlines(
                band.ramp, *ends, color=REFERENCE, linestyle=":", linewidth=1, label=f"ramp above {band.ramp:g}"
            )
    if bands:
        axes.legend()


def _draw_ramps(axes: Axes, training: Training) -> None:
    if all(value > 0 for _, value in training.curves["beta"]):
        axes.set_yscale("log")  # the controller multiplies β
    ramp = training.curves.get("beta_ramp", [])
    before = [ramp[0][0], *(step for step, _ in ramp[:-1])] if ramp else []
    for start, (step, on) in zip(before, ramp, strict=True):
        if on > 0:
            axes.axvspan(start, step, color=REFERENCE, alpha=0.25, linewidth=0)


def _cut(axes: Axes, training: Training) -> None:
    values = [value for _, value in training.curves["explained_variance"]]
    if min(values) < _LEAST_EXPLAINED < max(values):
        axes.set_ylim(bottom=_LEAST_EXPLAINED, top=1.05)
        axes.set_ylabel(f"share, cut at {_LEAST_EXPLAINED:g}")


def _name_stages(axes: Axes, training: Training) -> None:
    for span in training.spans:
        axes.text(
            (span.first + span.last) / 2,
            0.06,
            span.name,
            ha="center",
            va="bottom",
            color=NEUTRAL,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0},
            zorder=1,  # behind the curves
            transform=axes.get_xaxis_transform(),
        )
