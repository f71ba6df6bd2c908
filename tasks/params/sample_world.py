"""Params section `sample_world`: how large the embedded world is and how dirty its feedback."""

from __future__ import annotations

from pydantic import Field, model_validator

from plumbline.tasks.params.section import Section


class DefectRates(Section):
    """How many defective rows are planted, each as a share of the clean pairs (dimensionless)."""

    exact_duplicate: float = Field(0.010, ge=0, le=0.2, description="Rows that repeat another row under a new id.")
    near_duplicate: float = Field(0.015, ge=0, le=0.2, description="Rows that repeat another row with a small edit.")
    contradiction: float = Field(0.006, ge=0, le=0.2, description="Rows that repeat another row, labels swapped.")
    leaked_label: float = Field(0.008, ge=0, le=0.2, description="Rows whose text says which response was preferred.")
    empty_response: float = Field(0.002, ge=0, le=0.2, description="Rows with an empty or blank response.")
    overlong_response: float = Field(0.002, ge=0, le=0.2, description="Rows with a response of several hundred words.")
    broken_json: float = Field(0.002, ge=0, le=0.2, description="Lines that do not parse as JSON.")
    wrong_type: float = Field(0.002, ge=0, le=0.2, description="Rows with a field of the wrong type.")
    unknown_field: float = Field(0.002, ge=0, le=0.2, description="Rows with a field that no format knows.")


class SampleWorldParams(Section):
    """The embedded support-assistant world with a known truth."""

    enabled: bool = Field(False, description="Generate the world. Never beside your own feedback, which it would join.")
    pairs: int = Field(
        18_000,
        ge=20,
        le=100_000,
        description="Clean preference pairs, each on a prompt of its own. 18,000 leave about 14,200 for training and "
        "2,600 for the test after an 80/5/15 split.",
    )
    demonstrations: int = Field(
        24_000,
        ge=20,
        le=500_000,
        description="Conversations of mixed quality for the base model and SFT.",
    )
    careful_share: float = Field(
        0.10, ge=0, le=1, description="Share of responses written by careful writers, in demonstrations and feedback."
    )
    careless_share: float = Field(
        0.60, ge=0, le=1, description="Share of responses written by careless writers; the rest are average."
    )
    noise: float = Field(
        0.5,
        gt=0,
        le=10,
        description="Factor on every annotator's Bradley-Terry temperature (gold units); larger is noisier.",
    )
    defects: DefectRates = Field(default_factory=DefectRates, description="Planted defects.")

    @model_validator(mode="after")
    def _shares_leave_room(self) -> SampleWorldParams:
        if self.careful_share + self.careless_share > 1:
            raise ValueError(
                f"careful_share + careless_share is {self.careful_share + self.careless_share:.2f}, "
                "expected at most 1: lower one of them; the rest of the responses come from average writers"
            )
        return self
