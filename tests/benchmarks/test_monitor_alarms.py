"""The claim of the monitor, on fewer months than the benchmark takes."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.monitor_alarms import log_e_at_looks, measure
from plumbline.tasks.statistics.anytime import SequentialTest


def test_what_is_simulated_is_the_test_that_runs() -> None:
    wins = np.random.default_rng(3).binomial(20, 0.4, size=(1, 6))
    test = SequentialTest(reference=0.5, alpha=0.05, restarting=True)
    for look, won in enumerate(wins[0]):
        test.restart()
        test.extend([1.0] * won + [0.0] * (20 - won))
        assert log_e_at_looks(wins, 20, 0.5)[0, look] == pytest.approx(test.log_e, abs=1e-9)


def test_thirty_looks_stay_below_the_stated_rate_and_a_drop_is_found() -> None:
    rows = {(row["drop"], row["procedure"]): row for row in measure(2000)["rows"]}
    assert rows[0.0, "monitor, alone"]["alarms_within_the_month"] <= 0.05
    assert rows[0.0, "monitor, one of 8"]["alarms_within_the_month"] <= 0.05 / 8
    assert rows[0.0, "naive 95 % interval"]["alarms_within_the_month"] > 0.15
    assert rows[0.05, "monitor, alone"]["alarms_within_the_month"] > 0.95
    assert rows[0.05, "monitor, alone"]["median_days"] <= 15
