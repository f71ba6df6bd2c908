"""Annotators one by one: how much each labelled, agrees with the others, and leans to position, length or haste.

An annotator is suspicious if a share of theirs is too far from where it belongs to be chance. All such tests of all
annotators share one level: each is held to LEVEL divided by their number (Bonferroni), and so is its interval.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from plumbline.tasks.data.clinic.estimate import F64, I64, Estimate, missing, share
from plumbline.tasks.data.clinic.skill import DawidSkene, NoisyBradleyTerry
from plumbline.tasks.data.clinic.units import TIE, Units

LEVEL = 0.05
"""Chance that any annotator at all is flagged if nobody errs more than the others."""
LEAST = 20
"""Labels below which an annotator is not tested."""
GAP = 0.10
"""Least distance of a share that is worth a flag, however sure it is."""
SESSION = 30 * 60
"""Seconds between two labels from which on they count as two sessions."""
HASTE = 4
"""An annotator is fast whose usual time for a label is below that of the rest divided by this."""

_REASONS = {
    "agreement": "agrees with the others less than the rest do",
    "position": "prefers a position, whatever stands there",
    "length": "prefers by length otherwise than the rest",
    "speed": f"labels more than {HASTE} times as fast as the rest",
}


@dataclass(frozen=True, slots=True)
class _Test:
    """A share of an annotator: k of n, against one of `rest` (k, n), or against a fixed share."""

    annotator: int
    kind: str
    k: int
    n: int
    rest: tuple[int, int] | float

    @property
    def expected(self) -> float:
        return self.rest if isinstance(self.rest, float) else self.rest[0] / max(self.rest[1], 1)


def describe_annotators(
    units: Units, skilled: DawidSkene | None, noisy: NoisyBradleyTerry | None
) -> list[dict[str, Any]]:
    """A row for each annotator, the suspicious first, then by number of labels.

    `suspicious` lists reason, share, its interval at the shared level, and what was expected.
    """
    columns = _columns(units)
    tests = list(_tests(units, columns))
    flags = _flags(tests)
    rows = [_row(units, columns, number, skilled, noisy, flags) for number in range(len(units.annotators))]
    return sorted(rows, key=lambda row: (not row["suspicious"], -row["labels"], row["annotator"]))


def _columns(units: Units) -> Mapping[str, tuple[I64, I64]]:
    """For each kind of share, a hit (0 or 1) of each vote, and which votes count: both (n,)."""
    others = units.counts()[units.unit]  # (n, 3)
    np.subtract.at(others, (np.arange(len(units.unit)), units.side), 1)
    top = others.max(axis=1)
    decided = (top > 0) & ((others == top[:, None]).sum(axis=1) == 1)
    agrees = others.argmax(axis=1) == units.side
    preferred = units.side != TIE
    length = units.length[units.unit]
    longer = length[np.arange(len(units.unit)), np.minimum(units.side, 1)] == length.max(axis=1)
    return {
        "agreement": (agrees.astype(np.int64), decided.astype(np.int64)),
        "position": ((units.shown == units.side).astype(np.int64), _position_known(units, preferred)),
        "length": (longer.astype(np.int64), (preferred & (length[:, 0] != length[:, 1])).astype(np.int64)),
    }


def _position_known(units: Units, preferred: np.ndarray[Any, Any]) -> I64:
    """Votes whose position says something: no ties, and not all of the file for one position."""
    known = preferred & (units.shown >= 0)
    hits = (units.shown == units.side)[known]
    return np.asarray(known if hits.any() and not hits.all() else np.zeros_like(known), dtype=np.int64)


def _tests(units: Units, columns: Mapping[str, tuple[I64, I64]]) -> Iterator[_Test]:
    people = len(units.annotators)
    signed = units.annotator >= 0
    for kind, (hit, counted) in columns.items():
        n = np.bincount(units.annotator[signed], counted[signed], people).astype(int)
        k = np.bincount(units.annotator[signed], (hit * counted)[signed], people).astype(int)
        for number in np.flatnonzero(n >= LEAST).tolist():
            rest = (int(k.sum() - k[number]), int(n.sum() - n[number]))
            if kind == "position" or rest[1] >= LEAST:
                yield _Test(number, kind, int(k[number]), int(n[number]), 0.5 if kind == "position" else rest)
    gaps = [_gaps(units, number) for number in range(people)]
    medians = [float(np.median(each)) for each in gaps if len(each) >= LEAST]
    for number, each in enumerate(gaps):
        if len(each) >= LEAST and len(medians) > 2:
            fast = int((each < float(np.median(medians)) / HASTE).sum())
            yield _Test(number, "speed", fast, len(each), 0.5)


def _gaps(units: Units, number: int) -> F64:
    """Seconds between one label and the next of an annotator, within a session."""
    times = np.sort(units.time[units.annotator == number])
    gaps = np.diff(times[np.isfinite(times)])
    return np.asarray(gaps[gaps < SESSION], dtype=np.float64)


def _flags(tests: list[_Test]) -> dict[int, list[dict[str, Any]]]:
    level = LEVEL / max(len(tests), 1)
    flags: dict[int, list[dict[str, Any]]] = {}
    for test in tests:
        found = share(test.k, test.n, 1 - level)
        if abs(found["value"] - test.expected) < GAP or _p_value(test) > level:
            continue
        flags.setdefault(test.annotator, []).append(
            {"check": test.kind, "reason": _REASONS[test.kind], "expected": test.expected, **found}
        )
    return flags


def _p_value(test: _Test) -> float:
    """Agreement below and haste above what is expected, position and length on either side of it."""
    from scipy import stats

    if isinstance(test.rest, float):
        sides = "greater" if test.kind == "speed" else "two-sided"
        return float(stats.binomtest(test.k, test.n, test.rest, sides).pvalue)
    k, n = test.rest
    table = [[test.k, test.n - test.k], [k, n - k]]
    return float(stats.fisher_exact(table, alternative="less" if test.kind == "agreement" else "two-sided")[1])


def _row(
    units: Units,
    columns: Mapping[str, tuple[I64, I64]],
    number: int,
    skilled: DawidSkene | None,
    noisy: NoisyBradleyTerry | None,
    flags: Mapping[int, list[dict[str, Any]]],
) -> dict[str, Any]:
    own = units.annotator == number
    shares = {kind: _share(hit[own], counted[own]) for kind, (hit, counted) in columns.items()}
    gaps = _gaps(units, number)
    return {
        "annotator": units.annotators[number],
        "labels": int(own.sum()),
        "ties": int((units.side[own] == TIE).sum()),
        "agreement": shares["agreement"],
        "skill": _skill(skilled, number, int((columns["agreement"][1] * own).sum())),
        "noisy_bradley_terry": None
        if noisy is None
        else {"skill": float(noisy.skill[number]), "first": float(noisy.first[number])},
        "first_shown": shares["position"],
        "longer": shares["length"],
        "seconds": float(np.median(gaps)) if len(gaps) else None,
        "suspicious": flags.get(number, []),
    }


def _share(hit: I64, counted: I64) -> Estimate:
    return share(int((hit * counted).sum()), int(counted.sum()))


def _skill(skilled: DawidSkene | None, number: int, n: int) -> Estimate:
    """The skill, with the interval of a share at as many labels as others judged too, the model's labels being true."""
    if skilled is None or np.isnan(skilled.skill[number]):
        return missing("not enough overlap: no pair of theirs was judged by another annotator", n)
    skill = float(np.clip(skilled.skill[number], 0, 1))
    return share(skill * n, n) if n else missing("not enough overlap: the others are of no one mind", n)
