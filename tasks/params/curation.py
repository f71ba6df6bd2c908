"""Params of curation: limits, matching, contradictions and the split."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from plumbline.tasks.params.section import Section

SPLITS = ("train", "validation", "test")


class LengthLimitParams(Section):
    """Length limits on raw text. Limits in tokens belong to training, which knows the tokenizer."""

    unit: Literal["characters", "words"] = Field(
        "characters", description="What the limits count: Unicode characters, or words separated by white space."
    )
    min_response: int = Field(1, ge=0, description="Shortest response kept, in `unit`, after outer white space is cut.")
    max_response: int = Field(4000, ge=1, description="Longest response kept, in `unit`.")
    max_prompt: int = Field(16000, ge=1, description="Longest prompt kept, in `unit`, all turns together.")

    @model_validator(mode="after")
    def _ordered(self) -> LengthLimitParams:
        if self.min_response > self.max_response:
            raise ValueError(
                f"min_response {self.min_response} is above max_response {self.max_response}: no response could pass; "
                f"choose min_response <= max_response"
            )
        return self


class MatchingParams(Section):
    """What counts as the same text, and as nearly the same."""

    fold_case: bool = Field(
        True, description="Ignore letter case when texts are compared (texts are kept as they are)."
    )
    fold_space: bool = Field(True, description="Ignore runs and ends of white space when texts are compared.")
    near: bool = Field(True, description="Look for near duplicates; off leaves exact duplicates only.")
    shingle_words: int = Field(
        2, ge=1, le=8, description="Words a shingle. 2 keeps one-word edits of 12-word texts above the threshold."
    )
    threshold: float = Field(
        0.7, gt=0.3, lt=1.0, description="Least IDF-weighted Jaccard of shingles for near duplicates (0..1, exact)."
    )
    bands: int = Field(
        25, ge=1, le=256, description="LSH bands; 25 of 5 rows meet Jaccard 0.7 with chance 0.99 and 0.3 with 0.06."
    )
    rows: int = Field(5, ge=1, le=32, description="MinHash values a band; bands x rows is the signature's length.")
    bucket_texts: int = Field(
        64,
        ge=2,
        description="An LSH bucket of up to this many texts yields all its pairs; a larger one is hashed again.",
    )
    template_texts: int = Field(
        8,
        ge=3,
        description="Texts that must share most shingles before what they share is taken as a template's frame.",
    )
    containment: float = Field(
        0.9,
        gt=0.5,
        le=1.0,
        description="Inside a template: share of one text's content (the words that are not the frame, weighted by "
        "rarity) that the other must hold to be its near duplicate rather than another fill.",
    )

    @model_validator(mode="after")
    def _signature(self) -> MatchingParams:
        if self.bands * self.rows > 1024:
            raise ValueError(
                f"bands x rows is {self.bands * self.rows}: choose a product of at most 1024 (100 to 256 is usual)"
            )
        return self


class ContradictionParams(Section):
    """What to do where people preferred opposite responses of the same pair."""

    resolve: Literal["majority", "drop", "keep_latest"] = Field(
        "majority",
        description="majority: the side with more votes stays (a tie quarantines both); a vote is one named annotator, "
        "or one token or file for all its rows without one. drop: both sides are quarantined. keep_latest: the "
        "side with the latest timestamp stays (rows without one count as oldest, then the later row wins).",
    )


class SplitParams(Section):
    """Shares of the pairs, by whole clusters of near-duplicate prompts."""

    by: Literal["hash", "size"] = Field(
        "hash",
        description="What decides the split of a cluster. hash: the digest of its prompts, so that what is held out "
        "stays held out when feedback arrives; shares are met by chance. size: the shares are met as closely as "
        "clusters allow, and fresh feedback may move a cluster.",
    )
    seed: int = Field(
        0,
        ge=0,
        description="Seed of the draw by hash. It is apart from the seed of the run, which may change while the "
        "held-out set stays.",
    )
    train: float = Field(0.80, ge=0, le=1, description="Share of pairs for training.")
    validation: float = Field(0.05, ge=0, le=1, description="Share of pairs for early stopping.")
    test: float = Field(0.15, ge=0, le=1, description="Share of pairs for evaluation only.")
    on_empty: Literal["error", "warn"] = Field(
        "error", description="When a share above 0 receives no pair (too few clusters): stop, or note it in the report."
    )

    @model_validator(mode="after")
    def _whole(self) -> SplitParams:
        total = self.train + self.validation + self.test
        if abs(total - 1.0) > 1e-6:
            raise ValueError(f"train + validation + test is {total:.6g}: choose shares that add up to 1")
        return self

    def fractions(self) -> dict[str, float]:
        """Share of each split, in the order of `SPLITS`."""
        return {"train": self.train, "validation": self.validation, "test": self.test}


class CurationParams(Section):
    """The curation section of params.yaml."""

    clean_leaks: bool = Field(True, description="Cut or quarantine texts that give the label away.")
    limits: LengthLimitParams = Field(LengthLimitParams(), description="Length limits.")
    matching: MatchingParams = Field(MatchingParams(), description="Exact and near duplicates.")
    contradictions: ContradictionParams = Field(ContradictionParams(), description="Opposite preferences.")
    max_pairs_per_prompt: int | None = Field(
        None,
        ge=1,
        description="Most pairs kept of one prompt and its near duplicates: those with the most votes, then the "
        "latest. The others are merged into the first of them. null: all.",
    )
    split: SplitParams = Field(SplitParams(), description="Shares of train, validation and test.")
    listed: int = Field(50, ge=0, description="Most contradictions and templates that the report lists one by one.")
