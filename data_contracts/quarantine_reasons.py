"""Every reason for which a row is set aside: those of the contracts, and those of curation."""

from __future__ import annotations

from collections.abc import Mapping

from plumbline.data_contracts import preference_pair, unpaired_response

CURATION: Mapping[str, str] = {
    "leaked_label": "a text gives the label away, and it cannot be cut out",
    "too_short": "a response is shorter than curation.limits.min_response",
    "over_long": "a response is longer than curation.limits.max_response",
    "prompt_over_long": "a prompt is longer than curation.limits.max_prompt",
    "contradiction": "people preferred the opposite, and curation.contradictions decided against the row",
    "held_out_prompt": "a single response to a prompt of the validation or test split: sound, but not for training",
}
"""The reasons of curation and their meaning."""

WITHDRAWN = "withdrawn"
"""Reason: a person took the row out of all later runs. It counts neither as a defect nor as read."""

PERSONAL_DATA = "personal_data"
"""Reason: a text holds personal data, and params set such rows aside."""

REASONS: Mapping[str, str] = {
    **preference_pair.REASONS,
    **unpaired_response.REASONS,
    **CURATION,
    PERSONAL_DATA: "a text holds personal data, and feedback.personal_data is quarantine",
    WITHDRAWN: "a person took the row out of all later runs, on record",
}
"""All reasons and their meaning."""

NO_DEFECT = preference_pair.NO_PREFERENCE | unpaired_response.NO_PREFERENCE | {"held_out_prompt", WITHDRAWN}
"""Reasons that say nothing against the data, and do not count against `feedback.quarantine_threshold`."""
