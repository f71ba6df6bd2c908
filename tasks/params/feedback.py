"""Params section `feedback`: which rows come in, and how much breakage is too much."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, NamedTuple

from pydantic import Field, field_validator

from plumbline.data_contracts.quarantine_reasons import REASONS
from plumbline.tasks.params.feedback_limits import LIMITS, Limits
from plumbline.tasks.params.feedback_rules import MAP_NAMES, ListPairs, Rules
from plumbline.tasks.params.personal_data import KINDS, Handling, Kind
from plumbline.tasks.params.section import Section


class ToIngest(NamedTuple):
    """A place that params name: the kind of its feedback, where it is, and which of its columns is which."""

    source: str
    path: str
    columns: Mapping[str, str]


class FeedbackParams(Section):
    """Where feedback comes from and when its validation stops a run."""

    path: str | None = Field(
        default=None,
        description="File, folder, pattern, `datasets` folder or hub name to ingest before the run; "
        "null: only what data/raw and the sample world hold.",
    )
    map: dict[str, str] = Field(
        default={},
        description="Which column of `path` is which, for a table in no known form, as {prompt: instruction, chosen: "
        "output_1, rejected: output_2}; kept beside the batch. docs/guides/feedback-forms.md lists the names.",
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
    list_pairs: ListPairs = Field(
        default="best_vs_rest",
        description="Pairs of a list of ranked, scored or rated responses: all (each with each), adjacent (each with "
        "the next), best_vs_rest, best_vs_random (the best with one that the list's digest draws).",
    )
    rating_scale: tuple[float, float] = Field(
        default=(1.0, 5.0),
        description="Lowest and highest rating, of files that do not say it themselves. A single response counts as "
        "liked in the upper quarter of the scale, as disliked in the lower one, and is set aside between them.",
    )
    on_implied_prompts: Literal["stop", "warn"] = Field(
        default="stop",
        description="What to do with a file of chosen and rejected texts without a prompt column whose common starts "
        "are too short or too few to be prompts: most are below four words, or ten rows share one.",
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

    personal_data: Handling = Field(
        default="keep",
        description="What to do with personal data in texts, before anything but the raw store holds it: keep, look "
        "for nothing; mask, put placeholders such as <EMAIL_1> in its place; quarantine, set the row aside.",
    )
    personal_data_kinds: tuple[Kind, ...] = Field(
        default=KINDS,
        min_length=1,
        description="Kinds to look for: email, phone, card (payment cards), iban, ip (public addresses), secret (API "
        "keys and tokens).",
    )
    personal_data_regions: tuple[str, ...] = Field(
        default=("US",),
        description="Regions (two letters, as US or DE) whose phone numbers count without a country code too, if "
        "written in groups. With a country code (+49 …) numbers of all regions count.",
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

    @field_validator("personal_data_regions")
    @classmethod
    def _two_letters(cls, regions: tuple[str, ...]) -> tuple[str, ...]:
        for region in regions:
            if not re.fullmatch(r"[A-Z]{2}", region):
                raise ValueError(f"{region!r} is no region; write its two letters, as US")
        return regions

    @field_validator("map", mode="before")
    @classmethod
    def _as_texts(cls, columns: object) -> object:
        if not isinstance(columns, dict):
            return columns
        numbers = (bool, int, float)  # YAML reads `label.a: 0` as a number
        return {name: str(value) if isinstance(value, numbers) else value for name, value in columns.items()}

    @field_validator("map")
    @classmethod
    def _known_names(cls, columns: dict[str, str]) -> dict[str, str]:
        for name in columns:
            if name not in MAP_NAMES:
                raise ValueError(f"{name!r} is no name of a map; choose among {', '.join(MAP_NAMES)}")
        return columns

    @field_validator("rating_scale")
    @classmethod
    def _rising(cls, scale: tuple[float, float]) -> tuple[float, float]:
        if not scale[0] < scale[1]:
            raise ValueError(f"{scale[0]:g} is not below {scale[1]:g}; name the lowest rating first")
        return scale

    def rules(self) -> Rules:
        """The rules by which lists and ratings are read."""
        return Rules(self.list_pairs, self.rating_scale)

    def limits(self) -> Limits:
        """How large files and their rows may be."""
        return Limits(self.max_row_bytes, self.max_decoded_bytes)

    def to_ingest(self) -> list[ToIngest]:
        """What a run ingests before it starts."""
        named: list[tuple[str, str | None, Mapping[str, str]]] = [
            (self.source, self.path, self.map),
            ("unpaired_responses", self.unpaired_path, {}),
        ]
        return [ToIngest(source, path, columns) for source, path, columns in named if path is not None]
