"""The share of rows that may be set aside, in all and for a reason."""

from __future__ import annotations

import pytest

from plumbline.data_contracts.quarantine_reasons import REASONS
from plumbline.data_contracts.records import Quarantined
from plumbline.tasks.data.curation import contradictions, leakage, unpaired
from plumbline.tasks.data.feedback.shares import percent, shares, too_many
from plumbline.tasks.params.feedback import FeedbackParams

REFUSED = {"contradiction": 4, "empty_text": 3, "leaked_label": 2, "tie": 40, "held_out_prompt": 30}


@pytest.mark.parametrize(
    ("params", "stops"),
    [
        ({"quarantine_threshold": 0.09}, []),
        ({"quarantine_threshold": 0.0899}, ["found 9 of 100 = 9.00%"]),
        ({"quarantine_threshold": 0.05, "quarantine_thresholds": {"contradiction": 0.04}}, []),
        ({"quarantine_thresholds": {"contradiction": 0.03}}, ["found 4 of 100 = 4.0%"]),
        ({"quarantine_thresholds": {"tie": 0.3, "held_out_prompt": 0.3}}, ["found 40 of 100 = 40.0%"]),
        ({"quarantine_threshold": 0.0, "quarantine_thresholds": {"empty_text": 0.0}}, ["found 3 of", "found 6 of"]),
        ({"quarantine_threshold": 1.0}, []),
    ],
)
def test_reasons_count_together_or_for_themselves(params: dict[str, object], stops: list[str]) -> None:
    """4 + 3 + 2 of 100 rows are defects; ties and held-out prompts count only where a threshold names them."""
    found = too_many(REFUSED, 100, FeedbackParams.model_validate(params))
    assert len(found) == len(stops)
    assert all(part in text for part, text in zip(stops, found, strict=True))


def test_the_message_names_share_reason_examples_and_cure() -> None:
    row = Quarantined(
        reason="contradiction", file="a.jsonl", line=7, expected="one preference", found="the opposite", raw="{}"
    )
    (text,) = too_many(
        {"contradiction": 3}, 10, FeedbackParams(quarantine_thresholds={"contradiction": 0.2}), quarantined=[row]
    )
    assert "at most 20.0% of the rows in quarantine (feedback.quarantine_thresholds.contradiction;" in text
    assert "found 3 of 10 = 30.0% (contradiction 3 = 30.0%)" in text
    assert text.endswith("contradiction: e.g. a.jsonl line 7: expected one preference, found the opposite")


def test_a_missed_share_is_not_rounded_to_its_threshold() -> None:
    assert percent(0.10004, 0.1) == "10.004%"
    assert percent(0.2, 0.1) == "20.0%"


def test_shares_of_an_account() -> None:
    counts = {"read": 8, "accepted": 5, "merged": 1, "quarantined": 2, "reasons": {"tie": 1, "broken_json": 1}}
    assert shares(counts) == {"quarantined": 0.25, "reasons": {"broken_json": 0.125, "tie": 0.125}}
    assert shares({"read": 0, "quarantined": 0, "reasons": {}}) == {"quarantined": 0.0, "reasons": {}}


def test_every_reason_of_curation_is_known() -> None:
    assert {contradictions.REASON, leakage.REASON, unpaired.HELD_OUT} < set(REASONS)
    assert {"too_short", "over_long", "prompt_over_long"} < set(REASONS)
