"""Expectations on preference pairs that Great Expectations does not have.

Importing this module imports Great Expectations (2.5-5 s) and registers the classes under their
snake-case names, by which a suite's JSON refers to them. Only pandas is supported, as the
contracts run on data frames in memory.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, ClassVar

os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")  # read once, when great_expectations is imported

from great_expectations.execution_engine import PandasExecutionEngine
from great_expectations.expectations.expectation import ColumnMapExpectation, ColumnPairMapExpectation
from great_expectations.expectations.metrics.map_metric_provider import (
    ColumnMapMetricProvider,
    ColumnPairMapMetricProvider,
    column_condition_partial,
    column_pair_condition_partial,
)

from plumbline.data_contracts.plain_checks import is_iso8601, say_the_same

if TYPE_CHECKING:
    import pandas as pd


class ColumnValuesIso8601(ColumnMapMetricProvider):  # type: ignore[misc]
    """Condition: the value is an ISO 8601 date or date-time; nulls are ignored by the base class."""

    condition_metric_name = "column_values.iso8601"

    @column_condition_partial(engine=PandasExecutionEngine)  # type: ignore[untyped-decorator]
    def _pandas(cls, column: pd.Series[str], **kwargs: object) -> pd.Series[bool]:
        import pandas as pd

        return pd.Series([is_iso8601(value) for value in column], index=column.index, dtype=bool)


class ExpectColumnValuesToBeIso8601(ColumnMapExpectation):  # type: ignore[misc]
    """Expect each value to be an ISO 8601 date or date-time, or null."""

    map_metric: ClassVar[str] = "column_values.iso8601"
    success_keys: ClassVar[tuple[str, ...]] = ("mostly",)


class ColumnPairTextsDiffer(ColumnPairMapMetricProvider):  # type: ignore[misc]
    """Condition: two texts differ after white space is normalised."""

    condition_metric_name = "column_pair_values.texts_differ"
    condition_domain_keys = (
        "batch_id",
        "table",
        "column_A",
        "column_B",
        "row_condition",
        "condition_parser",
        "ignore_row_if",
    )
    condition_value_keys = ()

    @column_pair_condition_partial(engine=PandasExecutionEngine)  # type: ignore[untyped-decorator]
    def _pandas(cls, column_A: pd.Series[str], column_B: pd.Series[str], **kwargs: object) -> pd.Series[bool]:
        import pandas as pd

        differ = [not say_the_same(one, other) for one, other in zip(column_A, column_B, strict=True)]
        return pd.Series(differ, index=column_A.index, dtype=bool)


class ExpectColumnPairTextsToDiffer(ColumnPairMapExpectation):  # type: ignore[misc]
    """Expect two texts of a row to differ in more than white space."""

    ignore_row_if: str = "neither"
    map_metric: ClassVar[str] = "column_pair_values.texts_differ"
    # Both the field above and its name here: without them the metric gets None and the expectation errors.
    success_keys: ClassVar[tuple[str, ...]] = ("ignore_row_if", "mostly")
