"""Params section `feedback`."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from plumbline.tasks.params.feedback import FeedbackParams


def test_defaults() -> None:
    assert FeedbackParams().model_dump() == {
        "path": None,
        "map": {},
        "source": "human_pairs",
        "unpaired_path": None,
        "list_pairs": "best_vs_rest",
        "rating_scale": (1.0, 5.0),
        "on_implied_prompts": "stop",
        "quarantine_threshold": 0.1,
        "quarantine_thresholds": {},
        "on_single_label": "stop",
        "single_label_rows": 8,
        "personal_data": "keep",
        "personal_data_kinds": ("email", "phone", "card", "iban", "ip", "secret"),
        "personal_data_regions": ("US",),
        "max_row_bytes": 10_000_000,
        "max_decoded_bytes": 4_000_000_000,
    }


@pytest.mark.parametrize(
    "wrong",
    [
        {"quarantine_threshold": 1.1},
        {"quarantine_threshold": -0.1},
        {"personal_data": "hide"},
        {"personal_data_kinds": ()},
        {"personal_data_kinds": ("name",)},
        {"personal_data_regions": ("de",)},
        {"quarantine_thresholds": {"contradictions": 0.1}},
        {"quarantine_thresholds": {"contradiction": 1.5}},
        {"on_single_label": "ignore"},
        {"on_implied_prompts": "ignore"},
        {"list_pairs": "some"},
        {"rating_scale": [5, 1]},
        {"map": {"promt": "x"}},
        {"single_label_rows": 1},
        {"source": "rankings"},
        {"treshold": 0.1},
    ],
)
def test_wrong_values_and_unknown_keys(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        FeedbackParams.model_validate(wrong)


def test_every_field_is_described() -> None:
    assert all(field.description for field in FeedbackParams.model_fields.values())


def test_params_import_no_heavy_library() -> None:
    script = (
        "import sys, plumbline.tasks.params.feedback; "
        "sys.exit(bool({'pyarrow', 'datasets', 'pandas', 'great_expectations', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
