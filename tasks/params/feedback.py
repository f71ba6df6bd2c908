"""Params section `feedback`: which rows come in, and how much breakage is too much."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from plumbline.data_contracts.quarantine_reasons import REASONS
from plumbline.tasks.params.feedback_limits import LIMITS, Limits
from plumbline.tasks.params.section import Section


class FeedbackParams(Section):
    """Where feedback comes from and when its validation stops a run."""

    path: str | None = Field(
        default=None,
        description="File, `datasets` folder or hub name to ingest before the run; "
        "null: only what data/raw and the sample world hold.",
    )
    source: Literal["human_pairs", "judged_pairs", "unpaired_responses"] = Field(
        default="human_pairs",
        description="Kind of feedback in `path`: human_pairs, preference pairs judged by people; judged_pairs, by a "
        "judge (plumbline self-play ingests its own); unpaired_responses, single responses with a thumb.",
    )
    unpaired_path: str | None = Field(
        default=None,
        description="File, `datasets` folder or hub name of single responses with a thumb up or down (source "
        "unpaired_responses) to ingest before the run, beside `path`; only KTO learns from them.",
    )
    quarantine_threshold: float = Field(
        default=0.1,
        ge=0.0,
        le=1.0,
        description="Largest share of rows read that may be set aside before the run stops, of pairs and of single "
        "responses each: by the contract and by curation together (contradictions, leaked labels, length limits). "
        "Ties, neutral thumbs and single responses to held-out prompts are no defect and do not count; duplicates are "
        "merged, not set aside. 0: any bad row stops the run; 1: never stop.",
    )
    quarantine_thresholds: dict[str, float] = Field(
        default={},
        description="The same for single reasons, as {contradiction: 0.05}: each is held to its own share (0..1) and "
        "no longer counts against quarantine_threshold. Reasons are those of the report.",
    )
    on_single_label: Literal["stop", "warn"] = Field(
        default="stop",
        description="What to do when every label of a response_a/response_b/label file is the same, so that the "
        "position of a response gives its label away.",
    )
    single_label_rows: int = Field(
        default=8,
        ge=2,
        description="Fewest labelled rows in a file for on_single_label to apply. 8: where both labels are equally "
        "likely, a false alarm has probability 2 * 0.5^8 = 0.8 %.",
    )

    max_row_bytes: int = Field(
        default=LIMITS.max_row_bytes,
        ge=1_000,
        description="Longest row, in bytes of its JSON; a longer one is set aside with the reason too_long. Of files, "
        "and of what the endpoint takes.",
    )
    max_decoded_bytes: int = Field(
        default=4_000_000_000,
        ge=1_000_000,
        description="Largest gzip, zstd or Parquet file once its compression is undone, in bytes; a larger one is "
        "refused. A file of one megabyte can hold many gigabytes. Files without compression have no limit.",
    )

    @field_validator("quarantine_thresholds")
    @classmethod
    def _known_reasons(cls, thresholds: dict[str, float]) -> dict[str, float]:
        for reason, share in thresholds.items():
            if reason not in REASONS:
                raise ValueError(f"{reason!r} is no reason; choose among {', '.join(sorted(REASONS))}")
            if not 0.0 <= share <= 1.0:
                raise ValueError(f"{reason}: {share} is no share; choose one of 0 to 1")
        return thresholds

    def limits(self) -> Limits:
        """How large files and their rows may be."""
        return Limits(self.max_row_bytes, self.max_decoded_bytes)

    def to_ingest(self) -> list[tuple[str, str]]:
        """Kind and place of what a run ingests before it starts."""
        named = (self.source, self.path), ("unpaired_responses", self.unpaired_path)
        return [(source, path) for source, path in named if path is not None]
