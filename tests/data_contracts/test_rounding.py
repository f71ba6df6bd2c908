from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plumbline.data_contracts.rounding import rounded


@pytest.mark.parametrize(
    ("value", "threshold", "spec", "text"),
    [
        (0.1999, 0.2, ".3f", "0.1999"),  # .3f would read 0.200
        (0.19, 0.2, ".3f", "0.190"),
        (0.2, 0.2, ".3f", "0.200"),
        (0.24999996, 0.25, ".4g", "0.24999996"),
        (0.05004, 0.05, ".1%", "5.004%"),
        (-0.3004, 0.3, "+.3f", "-0.300"),  # on the threshold's other side either way
        (200, 200.0, ".4g", "200"),
    ],
)
def test_a_value_beside_its_threshold(value: float, threshold: float, spec: str, text: str) -> None:
    assert rounded(value, threshold, spec) == text


def test_what_is_not_finite_is_written_as_it_is() -> None:
    assert rounded(math.nan, 0.5, ".3f") == "nan"
    assert rounded(0.51, math.inf, ".3f") == "0.510"


@given(
    st.floats(-1e6, 1e6, allow_subnormal=False),
    st.floats(-1e-9, 1e-9, allow_subnormal=False),
    st.sampled_from([".3f", ".4g", "+.3f", ".2g"]),
)
def test_no_text_is_on_the_other_side_of_the_threshold(threshold: float, off: float, spec: str) -> None:
    value = threshold + off
    shown = float(rounded(value, threshold, spec))
    assert (shown > threshold, shown < threshold) == (value > threshold, value < threshold)
