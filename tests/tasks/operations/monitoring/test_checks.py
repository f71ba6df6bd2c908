"""What the monitors conclude from streams whose answer is known."""

from __future__ import annotations

import math

import pytest

from plumbline.tasks.operations.monitoring.checks import MONITORS, MonitorEvidence, MonitorReading, read
from plumbline.tasks.operations.monitoring.observations import Observed
from plumbline.tasks.params.monitor import MonitorParams
from plumbline.tasks.statistics.anytime import smallest_detectable_difference

PARAMS = MonitorParams()


def readings(evidence: MonitorEvidence, params: MonitorParams = PARAMS) -> dict[str, MonitorReading]:
    return {reading.name: reading for reading in read(evidence, params)}


def test_nothing_known_is_not_measured_and_never_a_finding() -> None:
    found = readings(MonitorEvidence({}, {"win_rate": "the champion served no answer"}))
    assert set(found) == set(MONITORS)
    assert {reading.verdict for reading in found.values()} == {"not measured"}
    assert found["win_rate_vs_reference"].why == "the champion served no answer"


def test_a_clear_fall_is_found_with_its_figures() -> None:
    seen = Observed(((0.0,) * 50, (0.0,) * 50))
    reading = readings(MonitorEvidence({"win_rate": seen}))["win_rate_vs_reference"]
    assert reading.verdict == "finding"
    assert (reading.value, reading.n, reading.threshold) == (0, 100, 0.5)
    assert reading.high is not None and reading.high < 0.5
    assert "expected at least 0.5" in reading.why


def test_few_values_say_so_and_many_good_ones_are_fine() -> None:
    few = readings(MonitorEvidence({"win_rate": Observed(((1.0, 0.0) * 5,))}))["win_rate_vs_reference"]
    many = readings(MonitorEvidence({"win_rate": Observed(((1.0, 0.0) * 50,))}))["win_rate_vs_reference"]
    assert (few.verdict, many.verdict) == ("not enough data", "fine")
    assert many.smallest_difference is not None and 0.1 < many.smallest_difference < 0.5


def test_rates_that_rise_are_found_above_their_threshold() -> None:
    streams = {"violation": Observed(((1.0, 0.0, 0.0, 0.0) * 20,)), "brier": Observed(((0.6,) * 60,))}
    found = readings(MonitorEvidence(streams))
    assert found["safety_violations"].verdict == "finding"
    assert found["calibration"].verdict == "finding"
    assert readings(MonitorEvidence({"violation": Observed(((0.0,) * 80,))}))["safety_violations"].verdict == "fine"


def test_the_record_less_the_margin_is_the_edge() -> None:
    streams = {"win_rate": Observed(((1.0, 0.0) * 200,))}
    held = readings(MonitorEvidence(streams, recorded_win_rate_low=0.52))["win_rate_vs_record"]
    broken = readings(MonitorEvidence(streams, recorded_win_rate_low=0.75))["win_rate_vs_record"]
    assert held.threshold == pytest.approx(0.49)
    assert (held.verdict, broken.verdict) == ("fine", "finding")


def test_many_monitors_share_one_alpha() -> None:
    """10 losses of 10 at a threshold of 1/2 pay 34.8: enough alone, not beside two streams that are fine (0.7 each).

    The mean of all three is (34.8 + 0.7 + 0.7) / 3 = 12.1.
    """
    bad, good = Observed(((0.0,) * 10,)), Observed(((1.0,) * 40,))
    alone = readings(MonitorEvidence({"win_rate": bad}))["win_rate_vs_reference"]
    among = readings(MonitorEvidence({"win_rate": bad, "preference_accuracy": good, "judge_agreement": good}))
    assert alone.verdict == "finding"
    assert alone.log_e is not None and alone.log_e == pytest.approx(math.log(34.79), abs=1e-3)
    assert among["win_rate_vs_reference"].verdict == "not enough data"
    assert "; evidence 34.8 of 20 needed" in alone.why  # 1 / 0.05
    assert "; evidence 12.1 of 20 needed" in among["win_rate_vs_reference"].why


def test_the_change_that_would_have_been_seen_is_at_a_thirteenth_of_alpha() -> None:
    """Eight streams, four features of drift and freshness share alpha; the change is away from the threshold."""
    assert len(MONITORS) == 13
    streams = {"win_rate": Observed(((1.0, 0.0) * 50,)), "refusal": Observed(((1.0, 0.0, 0.0, 0.0) * 25,))}
    found = readings(MonitorEvidence(streams))
    below = smallest_detectable_difference(100, 0.05 / 13, mean=0.5, direction="below", two_sided=False)
    above = smallest_detectable_difference(100, 0.05 / 13, mean=0.3, direction="above", two_sided=False)
    assert found["win_rate_vs_reference"].smallest_difference == below
    assert found["refusals"].smallest_difference == above
    assert f"a change by {above:.3g} would have been seen" in found["refusals"].why


@pytest.mark.parametrize(("record", "margin", "edge", "value"), [(1.0, 0.0, 1.0, 1.0), (0.02, 0.03, 0.0, 0.0)])
def test_a_record_at_an_end_is_held_to_that_end(record: float, margin: float, edge: float, value: float) -> None:
    """All wins against a record of 1, all losses against one of 0: neither is below it."""
    evidence = MonitorEvidence({"win_rate": Observed(((value,) * 40,))}, recorded_win_rate_low=record)
    reading = readings(evidence, MonitorParams(win_rate_margin=margin))["win_rate_vs_record"]
    assert (reading.verdict, reading.threshold, reading.value) == ("fine", edge, value)
    assert reading.smallest_difference is not None and 0 < reading.smallest_difference <= 1


def test_drift_needs_more_than_one_odd_day() -> None:
    once = readings(MonitorEvidence({"drift.length": Observed(((0.01,),))}))["drift_length"]
    often = readings(MonitorEvidence({"drift.length": Observed(((0.0005,),) * 3)}))["drift_length"]
    assert (once.verdict, often.verdict) == ("not enough data", "finding")


def test_freshness_is_counted_in_days() -> None:
    old = readings(MonitorEvidence({}, data_age_days=31, newest_batch_days=2))["freshness"]
    assert (old.verdict, old.value, old.n, old.threshold) == ("finding", 31, 1, 30)
    assert "31.0 days old" in old.why and "newest batch is 2.0 days" in old.why
    assert readings(MonitorEvidence({}, data_age_days=29))["freshness"].verdict == "fine"
