"""Champion and challenger on live traffic: every figure with an anytime-valid interval, and what it lets one conclude.

Mirrored requests give pairs: one prompt, both answers. What users do (click, thumb, deflection) belongs to the answer
that they saw, so it is compared between requests that the canary gave to the challenger and the others. All
intervals of a report hold together with probability 1 - alpha (each at alpha divided by their number), however often
it is made.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from data_contracts.interactions import Answer, Interaction, InteractionFeedback
from tasks.statistics.anytime import (
    Interval,
    bounded_mean_sequence,
    paired_difference_sequence,
    quantile_sequence,
    rate_difference_sequence,
    rate_sequence,
    smallest_detectable_difference,
)

Logged = tuple[Interaction, tuple[InteractionFeedback, ...]]
Better = Literal["higher", "lower"]

_QUANTILES = (0.5, 0.95)
_USER_ACTS: tuple[tuple[str, str, Better], ...] = (
    ("click", "click-through rate", "higher"),
    ("deflected", "deflection rate", "higher"),
    ("thumb_up", "thumbs up", "higher"),
    ("thumb_down", "thumbs down", "lower"),
    ("escalated", "escalations", "lower"),
)
_SIGNALS: tuple[tuple[str, str], ...] = (("refusal", "refusals"), ("violation", "safety violations"))
ROWS = 2 + len(_SIGNALS) + len(_USER_ACTS) + 2 * len(_QUANTILES)
"""Intervals of a report: alpha is divided by it."""


@dataclass(frozen=True, slots=True)
class Judged:
    """Mirrored pairs as the judge sees them: challenger's win (0, ½, 1) and its Bradley-Terry chance to."""

    wins: Sequence[float]
    chances: Sequence[float]
    margins: Sequence[float]


@dataclass(frozen=True, slots=True)
class Row:
    """One figure: its estimate with interval, the value that says "no difference", and the words."""

    name: str
    kind: str
    interval: Interval
    neutral: float | None
    better: Better | None
    smallest: float | None
    unit: str = ""

    @property
    def conclusion(self) -> str:
        """What can, and what cannot, be concluded."""
        interval = self.interval
        if interval.n == 0:
            return f"nothing to compare: no {self.kind}"
        if self.neutral is None or self.better is None:
            return f"an estimate from {interval.n} {self.kind}"
        if interval.excludes(self.neutral):
            good = (interval.low > self.neutral) == (self.better == "higher")
            return f"the challenger is {'better' if good else 'worse'}, by these {interval.n} {self.kind}"
        seen = "" if self.smallest is None else f"; a difference of {self.smallest:.3g} would have been seen"
        return f"no difference shown by {interval.n} {self.kind}{seen}, a smaller one may be there"

    def as_json(self) -> dict[str, Any]:
        """The row as JSON; infinite and undefined ends become null."""
        ends = {"value": self.interval.mean, "low": self.interval.low, "high": self.interval.high}
        return {
            "name": self.name,
            **{name: value if math.isfinite(value) else None for name, value in ends.items()},
            "n": self.interval.n,
            "of": self.kind,
            "neutral": self.neutral,
            "better": self.better,
            "smallest_difference": self.smallest,
            "unit": self.unit,
            "conclusion": self.conclusion,
        }


def mirrored(logged: Sequence[Logged]) -> list[tuple[Interaction, Answer, Answer]]:
    """Requests that both versions answered without an error: (request, champion's answer, challenger's)."""
    pairs = []
    for request, _ in logged:
        sides = {answer.side: answer for answer in request.answers if answer.error is None}
        if len(sides) == 2:
            pairs.append((request, sides["champion"], sides["challenger"]))
    return pairs


def compare(logged: Sequence[Logged], judged: Judged | str, alpha: float) -> list[Row]:
    """Every row of the report; `judged` is a reason where there is no judge."""
    each = alpha / ROWS
    pairs = mirrored(logged)
    return [
        *_judged_rows(judged if isinstance(judged, Judged) else Judged((), (), ()), each),
        *(_signal(pairs, name, words, each) for name, words in _SIGNALS),
        *(_act(logged, kind, words, better, each) for kind, words, better in _USER_ACTS),
        *(_latency(logged, side, at, each) for at in _QUANTILES for side in ("champion", "challenger")),
    ]


def _judged_rows(judged: Judged, alpha: float) -> list[Row]:
    n = len(judged.wins)
    wins = bounded_mean_sequence(judged.wins, alpha=alpha)
    chances = bounded_mean_sequence(judged.chances, alpha=alpha)
    smallest = smallest_detectable_difference(n, alpha)
    return [
        Row("judge win rate of the challenger", "mirrored pairs", wins, 0.5, "higher", smallest),
        Row("reward margin as chance to win", "mirrored pairs", chances, 0.5, "higher", smallest),
    ]


def _signal(pairs: Sequence[tuple[Interaction, Answer, Answer]], name: str, words: str, alpha: float) -> Row:
    champion = [float(getattr(first, name)) for _, first, _ in pairs]
    challenger = [float(getattr(second, name)) for _, _, second in pairs]
    interval = paired_difference_sequence(challenger, champion, alpha=alpha)
    smallest = 2 * smallest_detectable_difference(len(pairs), alpha, spread=0.25)  # differences lie in ±1
    return Row(f"{words}, challenger less champion", "mirrored pairs", interval, 0.0, "lower", smallest)


def _act(logged: Sequence[Logged], kind: str, words: str, better: Better, alpha: float) -> Row:
    shown: dict[str, list[bool]] = {"champion": [], "challenger": []}
    for request, feedback in logged:
        shown[request.answers[0].side].append(any(item.kind == kind for item in feedback))
    old, new = shown["champion"], shown["challenger"]
    if not new:
        interval = rate_sequence(sum(old), len(old), alpha=alpha)
        return Row(f"{words}, champion alone", "answers shown", interval, None, better, None)
    interval = rate_difference_sequence(sum(new), len(new), sum(old), len(old), alpha=alpha)
    rate = min(0.99, max(0.01, sum(old) / len(old))) if old else 0.5
    effective = len(new) * len(old) // (len(new) + len(old))  # the variance of a difference of two means
    direction: Literal["above", "below"] = "above" if rate < 0.5 else "below"
    smallest = smallest_detectable_difference(effective, alpha, mean=rate, direction=direction)
    return Row(f"{words}, challenger less champion", "answers shown", interval, 0.0, better, smallest)


def _latency(logged: Sequence[Logged], side: str, at: float, alpha: float) -> Row:
    times = [
        answer.latency_ms
        for request, _ in logged
        for answer in request.answers
        if answer.side == side and not answer.error
    ]
    interval = quantile_sequence(times, at, alpha=alpha)
    return Row(f"latency p{100 * at:.0f}, {side}", "answers", interval, None, "lower", None, "ms")


def as_html(report: Mapping[str, Any]) -> str:
    """The report as one self-contained page."""
    head = ("figure", "value", "interval", "n", "smallest difference seen", "conclusion")
    cells: Callable[[Sequence[str], str], str] = lambda row, tag: (  # noqa: E731
        "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"
    )
    body = "\n".join(cells(line, "td") for line in table(report))
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in report["notes"])
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Live comparison</title><style>'
        "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:75rem;padding:0 1rem}"
        "table{border-collapse:collapse;width:100%}td,th{border-bottom:1px solid #ccc;padding:.4rem;text-align:left}"
        f"</style></head><body><h1>{html.escape(title(report))}</h1>{notes}"
        f"<table><thead>{cells(head, 'th')}</thead><tbody>{body}</tbody></table></body></html>\n"
    )


def title(report: Mapping[str, Any]) -> str:
    """Who is compared."""
    return f"{report['challenger'] or 'no challenger'} against {report['champion'] or 'no champion'}"


def table(report: Mapping[str, Any]) -> list[list[str]]:
    """The rows of the report as text."""
    return [
        [
            row["name"],
            _number(row["value"], row["unit"]),
            f"{_number(row['low'])} to {_number(row['high'])}" if row["n"] else "",
            str(row["n"]),
            _number(row["smallest_difference"]) if row["smallest_difference"] is not None else "",
            row["conclusion"],
        ]
        for row in report["rows"]
    ]


def _number(value: float | None, unit: str = "") -> str:
    return "-" if value is None else f"{value:.4g}{' ' if unit else ''}{unit}"
