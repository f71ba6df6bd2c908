"""Champion and challenger on live traffic: every figure with an anytime-valid interval, and what it lets one conclude.

Mirrored requests give pairs: one prompt, both answers. What users do (click, thumb, deflection) belongs to the answer
that they saw, so it is compared between requests that the canary gave to the challenger and the others. A user
counts once in every figure, by the mean over their requests; a request that names no user counts by itself. All
intervals of a report hold together with probability 1 - alpha (each at alpha divided by their number), however often
it is made.

Latencies are compared between answers that users waited for. Without a canary they are those of mirrored pairs, whose
second answer came from a process at low priority: the rows say "in shadow".
"""

from __future__ import annotations

import html
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from plumbline.data_contracts.interactions import Interaction, InteractionFeedback, ServedCompletion
from plumbline.tasks.statistics.anytime import (
    Interval,
    bounded_mean_sequence,
    rate_difference_sequence,
    rate_sequence,
    smallest_detectable_difference,
)
from plumbline.tasks.statistics.quantiles import (
    quantile_difference_sequence,
    quantile_sequence,
    smallest_detectable_shift,
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
ROWS = 2 + len(_SIGNALS) + len(_USER_ACTS) + 3 * len(_QUANTILES)
"""Intervals of a report: alpha is divided by it."""


@dataclass(frozen=True, slots=True)
class JudgedTraffic:
    """Mirrored pairs as the judge sees them: challenger's win (0, ½, 1), its Bradley-Terry chance to, and whose."""

    wins: Sequence[float]
    chances: Sequence[float]
    margins: Sequence[float]
    voters: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class _Votes:
    """Values with those whose they are: a voter counts once, by the mean."""

    values: Sequence[float]
    voters: Sequence[str]

    def means(self) -> list[float]:
        """One value a voter."""
        found: dict[str, list[float]] = {}
        for voter, value in zip(self.voters, self.values, strict=True):
            found.setdefault(voter, []).append(value)
        return [sum(values) / len(values) for values in found.values()]

    def weights(self) -> list[float]:
        """For each value its part in its voter's mean."""
        many = Counter(self.voters)
        return [1 / many[voter] for voter in self.voters]

    def count(self) -> int:
        """Voters."""
        return len(set(self.voters))

    def named(self, kind: str) -> str:
        """The counts."""
        return kind if self.count() == len(self.values) else f"users with {len(self.values)} {kind}"


@dataclass(frozen=True, slots=True)
class LiveRow:
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
        """The conclusions that can, and that cannot, be drawn."""
        interval = self.interval
        if interval.n == 0:
            return f"nothing to compare: no {self.kind}"
        if self.neutral is None or self.better is None:
            return f"an estimate from {interval.n} {self.kind}"
        if interval.excludes(self.neutral):
            good = (interval.low > self.neutral) == (self.better == "higher")
            return f"the challenger is {'better' if good else 'worse'}, by these {interval.n} {self.kind}"
        unit = f" {self.unit}" if self.unit else ""
        seen = "" if self.smallest is None else f"; a difference of {self.smallest:.3g}{unit} would have been seen"
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


def mirrored(logged: Sequence[Logged]) -> list[tuple[Interaction, ServedCompletion, ServedCompletion]]:
    """Requests that both versions answered without an error: (request, champion's answer, challenger's)."""
    pairs = []
    for request, _ in logged:
        sides = {answer.side: answer for answer in request.answers if answer.error is None}
        if len(sides) == 2:
            pairs.append((request, sides["champion"], sides["challenger"]))
    return pairs


def compare(logged: Sequence[Logged], judged: JudgedTraffic | str, alpha: float) -> list[LiveRow]:
    """Every row of the report; `judged` is a reason if there is no judge."""
    each = alpha / ROWS
    pairs = mirrored(logged)
    return [
        *_judged_rows(judged if isinstance(judged, JudgedTraffic) else JudgedTraffic((), (), ()), each),
        *(_signal(pairs, name, words, each) for name, words in _SIGNALS),
        *(_act(logged, kind, words, better, each) for kind, words, better in _USER_ACTS),
        *(row for at in _QUANTILES for row in _latency(logged, at, each)),
    ]


def _judged_rows(judged: JudgedTraffic, alpha: float) -> list[LiveRow]:
    voters = judged.voters or [str(place) for place in range(len(judged.wins))]
    rows = []
    for words, values in (
        ("judge win rate of the challenger", judged.wins),
        ("reward margin as chance to win", judged.chances),
    ):
        votes = _Votes(values, voters)
        interval = bounded_mean_sequence(votes.means(), alpha=alpha)
        smallest = smallest_detectable_difference(votes.count(), alpha)
        rows.append(LiveRow(words, votes.named("mirrored pairs"), interval, 0.5, "higher", smallest))
    return rows


def _signal(
    pairs: Sequence[tuple[Interaction, ServedCompletion, ServedCompletion]], name: str, words: str, alpha: float
) -> LiveRow:
    differences = [float(getattr(second, name)) - float(getattr(first, name)) for _, first, second in pairs]
    votes = _Votes(differences, [request.voter for request, _, _ in pairs])
    interval = bounded_mean_sequence(votes.means(), alpha=alpha, low=-1.0, high=1.0)
    smallest = 2 * smallest_detectable_difference(votes.count(), alpha, spread=0.25)  # differences lie in ±1
    kind = votes.named("mirrored pairs")
    return LiveRow(f"{words}, challenger less champion", kind, interval, 0.0, "lower", smallest)


def _act(logged: Sequence[Logged], kind: str, words: str, better: Better, alpha: float) -> LiveRow:
    shown: dict[str, tuple[list[float], list[str]]] = {"champion": ([], []), "challenger": ([], [])}
    for request, feedback in logged:
        values, voters = shown[request.answers[0].side]
        values.append(float(any(item.kind == kind for item in feedback)))
        voters.append(request.voter)
    old, new = _Votes(*shown["champion"]), _Votes(*shown["challenger"])
    before, after = (sum(old.means()), old.count()), (sum(new.means()), new.count())
    told = _both(old, new).named("answers shown")
    if not new.values:
        interval = rate_sequence(*before, alpha=alpha)
        return LiveRow(f"{words}, champion alone", told, interval, None, better, None)
    interval = rate_difference_sequence(*after, *before, alpha=alpha)
    rate = min(0.99, max(0.01, before[0] / before[1])) if before[1] else 0.5
    effective = after[1] * before[1] // (after[1] + before[1])  # the variance of a difference of two means
    direction: Literal["above", "below"] = "above" if rate < 0.5 else "below"
    smallest = smallest_detectable_difference(effective, alpha, mean=rate, direction=direction)
    return LiveRow(f"{words}, challenger less champion", told, interval, 0.0, better, smallest)


def _latency(logged: Sequence[Logged], at: float, alpha: float) -> list[LiveRow]:
    """A percentile of both sides, and of the challenger's less the champion's."""
    shown = {side: _times([request for request, _ in logged], side) for side in ("champion", "challenger")}
    name, old, new = f"latency p{100 * at:.0f}", shown["champion"], shown["challenger"]
    pairs, role, kind = mirrored(logged), "challenger", "answers shown"
    if not new.values:
        role, kind = "challenger in shadow", "mirrored pairs"
        voters = [request.voter for request, _, _ in pairs]
        old = _Votes([answer.latency_ms for _, answer, _ in pairs], voters)
        new = _Votes([answer.latency_ms for _, _, answer in pairs], voters)
    paired = role != "challenger"
    told = new.named(kind) if paired else _both(old, new).named(kind)
    weights = {"weights_a": new.weights(), "weights_b": old.weights()}
    difference = quantile_difference_sequence(new.values, old.values, at, alpha=alpha, paired=paired, **weights)
    counts = (new.count(), old.count())
    smallest = smallest_detectable_shift(old.values, *counts, at, alpha=alpha, weights=old.weights(), paired=paired)
    seen = smallest if math.isfinite(smallest) else None
    return [
        _percentile(f"{name}, champion", shown["champion"], "answers shown", at, alpha),
        _percentile(f"{name}, {role}", new, kind, at, alpha),
        LiveRow(f"{name}, {role} less champion", told, difference, 0.0, "lower", seen, "ms"),
    ]


def _both(one: _Votes, other: _Votes) -> _Votes:
    return _Votes([*one.values, *other.values], [*one.voters, *other.voters])


def _percentile(name: str, times: _Votes, kind: str, at: float, alpha: float) -> LiveRow:
    interval = quantile_sequence(times.values, at, alpha=alpha, weights=times.weights())
    return LiveRow(name, times.named(kind), interval, None, "lower", None, "ms")


def _times(requests: Sequence[Interaction], side: str) -> _Votes:
    """Latencies of the answers of a side that users waited for."""
    found = [item for item in requests if item.answers[0].side == side and not item.answers[0].error]
    return _Votes([item.answers[0].latency_ms for item in found], [item.voter for item in found])


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
    """The versions that are compared."""
    return f"{report['challenger'] or 'no challenger'} against {report['champion'] or 'no champion'}"


def table(report: Mapping[str, Any]) -> list[list[str]]:
    """The rows of the report as text."""
    return [
        [
            row["name"],
            _number(row["value"], row["unit"]),
            f"{_number(row['low'])} to {_number(row['high'])}" if row["n"] else "",
            str(row["n"]),
            _number(row["smallest_difference"], row["unit"]) if row["smallest_difference"] is not None else "",
            row["conclusion"],
        ]
        for row in report["rows"]
    ]


def _number(value: float | None, unit: str = "") -> str:
    return "-" if value is None else f"{value:.4g}{' ' if unit else ''}{unit}"
