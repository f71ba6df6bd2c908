"""False alarms and delays of the monitor's test, looked at every day, beside a 95 % interval looked at as often.

    python -m benchmarks.monitor_alarms [--months 4000] [--json]

A month is 30 daily looks at 100 votes of a judge. Nothing has changed where half of them are won; a drop lowers the
rate on the first day. The monitor's test is `tasks.statistics.anytime.SequentialTest` as
`tasks.operations.monitoring` runs it: a new start a day, alone (`alpha`) or as one of a family of eight (alpha/8, the
worst case of `adjusted_log_e`). It is computed here for all months at once; a test compares both.
"""

from __future__ import annotations

import argparse
import json
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plumbline.tasks.statistics.anytime import smallest_detectable_difference
from plumbline.tasks.statistics.betting import FRACTIONS, pooled

LOOKS, VOTES, ALPHA, FAMILY = 30, 100, 0.05, 8
DROPS = (0.03, 0.05, 0.10)


def log_e_at_looks(wins: NDArray[np.int64], votes: int, reference: float) -> NDArray[np.float64]:
    """Log e-value of a restarting test after each look: wins (months, looks) -> (months, looks)."""
    lost = votes - wins  # a bet that the rate lies below the reference is one on losses above 1 - reference
    mean = 1 - reference
    won = np.log1p(FRACTIONS * (1 / mean - 1))
    days = lost[..., None] * won + (votes - lost[..., None]) * np.log1p(-FRACTIONS)  # (months, looks, stakes)
    total = np.full(wins.shape, -np.inf)
    for start in range(wins.shape[1]):
        share = -math.log((start + 1) * (start + 2))
        grown = pooled(np.cumsum(days[:, start:], axis=1))
        total[:, start:] = np.logaddexp(total[:, start:], share + grown)
    waiting = -np.log(np.arange(wins.shape[1]) + 2.0)
    return np.asarray(np.logaddexp(total, waiting), dtype=np.float64)


def naive_alarm(wins: NDArray[np.int64], votes: int, reference: float) -> NDArray[np.bool_]:
    """True if the rate so far lies below the reference by 1.96 standard errors, at each look."""
    n = votes * np.arange(1, wins.shape[1] + 1)
    rate = np.cumsum(wins, axis=1) / n
    return np.asarray(np.abs(rate - reference) > 1.96 * np.sqrt(rate * (1 - rate) / n), dtype=np.bool_)


def first_alarms(alarms: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The look (from 1) of the first alarm of each month; infinity where there is none."""
    return np.where(alarms.any(axis=1), alarms.argmax(axis=1) + 1.0, np.inf)


def measure(months: int, seed: int = 17) -> dict[str, Any]:
    """Rates of alarms and delays for no drop and each of `DROPS`."""
    rng = np.random.default_rng(seed)
    rows = []
    for drop in (0.0, *DROPS):
        wins = rng.binomial(VOTES, 0.5 - drop, size=(months, LOOKS))
        log_e = log_e_at_looks(wins, VOTES, 0.5)
        procedures = {
            "monitor, alone": log_e >= math.log(1 / ALPHA),
            f"monitor, one of {FAMILY}": log_e >= math.log(FAMILY / ALPHA),
            "naive 95 % interval": naive_alarm(wins, VOTES, 0.5),
        }
        rows += [{"drop": drop, "procedure": name, **_delays(alarms)} for name, alarms in procedures.items()]
    smallest = {str(n): smallest_detectable_difference(n, ALPHA, two_sided=False) for n in (VOTES, 1000, VOTES * LOOKS)}
    return {"months": months, "looks": LOOKS, "votes_per_look": VOTES, "rows": rows, "smallest_seen_alone": smallest}


def _delays(alarms: NDArray[np.bool_]) -> dict[str, Any]:
    days = np.sort(first_alarms(alarms))
    share = float(np.isfinite(days).mean())
    median, late = (float(days[math.ceil(at * len(days)) - 1]) for at in (0.5, 0.9))
    return {
        "alarms_within_the_month": share,
        "median_days": median if math.isfinite(median) else None,
        "median_votes": median * VOTES if math.isfinite(median) else None,
        "days_of_nine_in_ten": late if math.isfinite(late) else None,
    }


def main() -> None:
    """Print the table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--months", type=int, default=4000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(options.months)
    if options.json:
        print(json.dumps(found, indent=2))
        return
    print(f"{options.months} months of {LOOKS} looks at {VOTES} votes; reference 50 %")
    print(f"{'drop':>6}  {'procedure':<22}{'alarms':>8}{'median days':>13}{'votes':>8}{'90 % by day':>13}")
    for row in found["rows"]:
        days, votes, late = (row[name] for name in ("median_days", "median_votes", "days_of_nine_in_ten"))
        shown = ["-" if value is None else f"{value:.0f}" for value in (days, votes, late)]
        rate = f"{row['alarms_within_the_month']:.1%}"
        print(f"{row['drop']:>6.2f}  {row['procedure']:<22}{rate:>8}{shown[0]:>13}{shown[1]:>8}{shown[2]:>13}")


if __name__ == "__main__":
    main()
