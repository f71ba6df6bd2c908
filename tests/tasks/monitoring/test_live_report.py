from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from data_contracts.interactions import Answer, Interaction, InteractionFeedback
from data_contracts.records import Message
from tasks.monitoring.live_report import ROWS, Judged, Logged, Row, as_html, compare, mirrored

START = datetime(2026, 5, 1, tzinfo=UTC)


def answer(side: str, *, latency: float = 100.0, refusal: bool = False, error: str | None = None) -> Answer:
    return Answer(
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


def request(number: int, *answers: Answer, clicked: bool = False) -> Logged:
    name = f"r{number}"
    prompt = (Message(role="user", content="question <b>"),)
    at = START + timedelta(seconds=number)
    one = Interaction(id=name, received_at=at, prompt=prompt, canary=answers[0].side == "challenger", answers=answers)
    return one, (InteractionFeedback(request_id=name, kind="click", at=at),) if clicked else ()


def row_of(rows: list[Row], start: str) -> Row:
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
    rows = compare(logged, Judged([1.0] * 200, [0.9] * 200, [2.2] * 200), 0.05)
    assert row_of(rows, "judge win rate").conclusion.startswith("the challenger is better")
    refusals = row_of(rows, "refusals")
    assert refusals.interval.mean == -1
    assert refusals.conclusion.startswith("the challenger is better")  # fewer
    even = row_of(compare(logged, Judged([0.0, 1.0] * 100, [0.5] * 200, [0.0] * 200), 0.05), "judge win rate")
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


def test_percentiles_of_latency_by_hand() -> None:
    logged = [request(n, answer("champion", latency=float(n + 1))) for n in range(1000)]
    rows = compare(logged, "none", 0.05)
    assert row_of(rows, "latency p50, champion").interval.mean == 500
    p95 = row_of(rows, "latency p95, champion").interval
    assert p95.mean == 950
    assert p95.low < 950 < p95.high


def test_the_page_is_whole_and_escapes() -> None:
    rows = [row.as_json() for row in compare([], "none", 0.05)]
    page = as_html({"champion": "models:/<m>/1", "challenger": None, "notes": ["a & b"], "rows": rows})
    assert page.startswith("<!doctype html>") and page.rstrip().endswith("</html>")
    assert "&lt;m&gt;" in page and "a &amp; b" in page and "<script" not in page
    assert page.count("<tr>") == ROWS + 1
