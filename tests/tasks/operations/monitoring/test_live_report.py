from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import pytest

from plumbline.data_contracts.interactions import Interaction, InteractionFeedback, ServedCompletion
from plumbline.data_contracts.records import Message
from plumbline.tasks.operations.monitoring.live_report import (
    ROWS,
    JudgedTraffic,
    LiveRow,
    Logged,
    as_html,
    compare,
    mirrored,
    table,
)
from plumbline.tasks.statistics.anytime import Interval, smallest_detectable_difference

START = datetime(2026, 5, 1, tzinfo=UTC)


def answer(side: str, *, latency: float = 100.0, refusal: bool = False, error: str | None = None) -> ServedCompletion:
    return ServedCompletion(
        side=side,
        model_uri=f"models:/m/{1 if side == 'champion' else 2}",
        text="yes",
        tokens=1,
        latency_ms=latency,
        finish_reason="error" if error else "stop",
        refusal=refusal,
        violation=False,
        error=error,
    )


def request(number: int, *answers: ServedCompletion, clicked: bool = False, user: str | None = None) -> Logged:
    name = f"r{number}"
    prompt = (Message(role="user", content="question <b>"),)
    at = START + timedelta(seconds=number)
    canary = answers[0].side == "challenger"
    one = Interaction(id=name, received_at=at, prompt=prompt, canary=canary, answers=answers, user=user)
    return one, (InteractionFeedback(request_id=name, kind="click", at=at),) if clicked else ()


def row_of(rows: list[LiveRow], start: str) -> LiveRow:
    return next(row for row in rows if row.name.startswith(start))


def test_an_empty_log_compares_nothing_and_says_so() -> None:
    rows = compare([], "no traffic", 0.05)
    assert len(rows) == ROWS
    assert all("nothing to compare" in row.conclusion for row in rows)
    assert all(row.as_json()["value"] is None for row in rows)


def test_answers_that_failed_are_no_pair() -> None:
    logged = [
        request(1, answer("champion"), answer("challenger")),
        request(2, answer("champion"), answer("challenger", error="timeout")),
        request(3, answer("challenger")),
    ]
    assert [item.id for item, _, _ in mirrored(logged)] == ["r1"]


def test_a_clear_winner_is_named_and_a_tie_is_not_called_equal() -> None:
    logged = [request(n, answer("champion", refusal=True), answer("challenger")) for n in range(200)]
    rows = compare(logged, JudgedTraffic([1.0] * 200, [0.9] * 200, [2.2] * 200), 0.05)
    assert row_of(rows, "judge win rate").conclusion.startswith("the challenger is better")
    refusals = row_of(rows, "refusals")
    assert refusals.interval.mean == -1
    assert refusals.conclusion.startswith("the challenger is better")  # fewer
    even = row_of(compare(logged, JudgedTraffic([0.0, 1.0] * 100, [0.5] * 200, [0.0] * 200), 0.05), "judge win rate")
    assert "no difference shown" in even.conclusion
    assert even.smallest is not None and f"{even.smallest:.3g}" in even.conclusion


def test_clicks_belong_to_the_answer_that_was_shown() -> None:
    """100 of 400 canary answers were clicked, 40 of 400 of the champion's: 0.25 - 0.10 = 0.15."""
    logged = [request(n, answer("challenger"), clicked=n < 100) for n in range(400)]
    logged += [request(400 + n, answer("champion"), answer("challenger"), clicked=n < 40) for n in range(400)]
    row = row_of(compare(logged, "none", 0.05), "click-through")
    assert row.interval.mean == pytest.approx(0.15)
    assert row.interval.low > 0
    assert row.conclusion.startswith("the challenger is better")
    alone = row_of(compare(logged[400:], "none", 0.05), "click-through")
    assert alone.name.endswith("champion alone")
    assert alone.interval.mean == pytest.approx(0.1)
    assert alone.conclusion == "an estimate from 400 answers shown"
    # a difference of means of 400 and 400 varies as the mean of 200 does, at a 15th of alpha
    assert row.smallest == smallest_detectable_difference(200, 0.05 / 15, mean=0.1, direction="above")


def test_percentiles_of_latency_by_hand() -> None:
    logged = [request(n, answer("champion", latency=float(n + 1))) for n in range(1000)]
    rows = compare(logged, "none", 0.05)
    assert row_of(rows, "latency p50, champion").interval.mean == 500.5  # the middle of 500 and 501
    p95 = row_of(rows, "latency p95, champion").interval
    assert p95.mean == 950.5
    assert p95.low < 950 < p95.high


def test_a_user_counts_once_by_the_mean_over_their_requests() -> None:
    """User 0 asked 100 times, 50 of them refused by the champion; user 1 and user 2 once each, not refused.

    The mean of challenger less champion is (-½ + 0 + 0) / 3.
    """
    heavy = [
        request(n, answer("champion", refusal=n < 50, latency=900), answer("challenger", latency=900), clicked=True,
                user="0" * 32)
        for n in range(100)
    ]  # fmt: skip
    light = [request(100 + n, answer("champion"), answer("challenger"), user=str(n) * 32) for n in (1, 2)]
    voters = [item.voter for item, _ in (*heavy, *light)]
    judged = JudgedTraffic([1.0] * 100 + [0.0, 0.0], [0.9] * 102, [1.0] * 102, voters)
    rows = compare([*heavy, *light], judged, 0.05)
    refusals, wins = row_of(rows, "refusals"), row_of(rows, "judge win rate")
    assert (refusals.interval.mean, refusals.interval.n) == (pytest.approx(-1 / 6), 3)
    assert wins.interval.mean == pytest.approx(1 / 3)
    assert "no difference shown by 3 users with 102 mirrored pairs" in refusals.conclusion
    assert row_of(rows, "click-through").interval.mean == pytest.approx(1 / 3)
    assert row_of(rows, "latency p50, champion").interval.mean == 100


def test_a_slower_challenger_is_named_with_the_difference_that_would_have_been_seen() -> None:
    """Champion 1..400 ms, challenger 300 ms more, each shown to users of its own: p50 200 and 500."""
    logged = [request(n, answer("champion", latency=1.0 + n), answer("challenger", latency=5000)) for n in range(400)]
    shown = [request(400 + n, answer("challenger", latency=301.0 + n)) for n in range(400)]
    row = row_of(compare([*logged, *shown], "none", 0.05), "latency p50, challenger less champion")
    assert row.interval.mean == 300  # shadow answers, 5000 ms, are none that a user waited for
    assert 0 < row.interval.low < 300 < row.interval.high
    assert row.conclusion.startswith("the challenger is worse")
    assert row.smallest is not None and 40 < row.smallest < 300
    assert row.as_json()["unit"] == "ms"


def test_without_a_canary_latencies_in_shadow_are_said_to_be_so() -> None:
    logged = [request(n, answer("champion", latency=1.0 + n), answer("challenger", latency=1.0 + n)) for n in range(9)]
    row = row_of(compare(logged, "none", 0.05), "latency p95, challenger in shadow less")
    assert (row.interval.mean, row.interval.n, row.smallest) == (0, 9, None)
    assert row.conclusion == "no difference shown by 9 mirrored pairs, a smaller one may be there"


def test_a_row_as_text_has_its_unit_where_it_has_one() -> None:
    shown = LiveRow("p50", "answers", Interval(300.0, 250.0, 350.26, 400), 0.0, "lower", 40.0, "ms")
    rate = LiveRow("clicks", "answers", Interval(0.25, 0.2, 0.3, 8), 0.25, "higher", None)
    empty = LiveRow("clicks", "answers", Interval(math.nan, -math.inf, math.inf, 0), 0.0, "higher", None, "ms")
    assert table({"rows": [shown.as_json(), rate.as_json(), empty.as_json()]}) == [
        ["p50", "300 ms", "250 to 350.3", "400", "40 ms", "the challenger is worse, by these 400 answers"],
        ["clicks", "0.25", "0.2 to 0.3", "8", "", "no difference shown by 8 answers, a smaller one may be there"],
        ["clicks", "-", "", "0", "", "nothing to compare: no answers"],
    ]


def test_the_page_is_whole_and_escapes() -> None:
    rows = [row.as_json() for row in compare([], "none", 0.05)]
    page = as_html({"champion": "models:/<m>/1", "challenger": None, "notes": ["a & b"], "rows": rows})
    assert page.startswith("<!doctype html>") and page.rstrip().endswith("</html>")
    assert "&lt;m&gt;" in page and "a &amp; b" in page and "<script" not in page
    assert page.count("<tr>") == ROWS + 1
