from __future__ import annotations

import pytest
from pydantic import ValidationError

from plumbline.tasks.data.curation.limits import apply_limits
from plumbline.tasks.data.curation.verdicts import Item
from plumbline.tasks.params.curation import LengthLimitParams, SplitParams


@pytest.mark.parametrize(
    ("fields", "reason", "field"),
    [
        ({"chosen": "abc"}, None, None),
        ({"chosen": "abcde"}, None, None),
        ({"chosen": "ab"}, "too_short", "chosen"),
        ({"rejected": "abcdef"}, "over_long", "rejected"),
        ({"rejected": "  ab  "}, "too_short", "rejected"),
        ({"prompt": "123456789"}, "prompt_over_long", "prompt"),
    ],
)
def test_limits_in_characters(make_pair, fields, reason, field):
    """Responses of 3 to 5 characters and prompts of up to 8 pass; outer white space does not count."""
    pair = make_pair(1, **({"prompt": "12345678", "chosen": "abcd", "rejected": "abcd"} | fields))
    outcome = apply_limits([Item.of(pair, 0)], LengthLimitParams(min_response=3, max_response=5, max_prompt=8))
    found = [(verdict.reason, verdict.field) for verdict in outcome.quarantined]
    assert found == ([] if reason is None else [(reason, field)])
    assert len(outcome.kept) == (reason is None)


def test_limits_in_words(make_pair):
    pair = make_pair(1, prompt="a b", chosen="one two three", rejected="one two three four")
    params = LengthLimitParams(unit="words", min_response=1, max_response=3, max_prompt=2)
    (verdict,) = apply_limits([Item.of(pair, 0)], params).quarantined
    assert (verdict.reason, verdict.field, verdict.found) == ("over_long", "rejected", "4 words")


def test_params_say_what_to_choose():
    with pytest.raises(ValidationError, match="choose min_response <= max_response"):
        LengthLimitParams(min_response=9, max_response=8)
    with pytest.raises(ValidationError, match="add up to 1"):
        SplitParams(train=0.7, validation=0.2, test=0.2)
