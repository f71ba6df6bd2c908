"""The curated set: its splits with the cluster of each pair, what was folded or set aside, and the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from plumbline.data_contracts.records import CuratedPair, Merged, Quarantined
from plumbline.tasks.data.curation.ledger import Ledger
from plumbline.tasks.data.curation.shingles import I64


@dataclass(frozen=True, slots=True)
class Curated:
    """The curated set in memory; the report is JSON-able."""

    train: list[CuratedPair]
    validation: list[CuratedPair]
    test: list[CuratedPair]
    merged: list[Merged]
    quarantined: list[Quarantined]
    report: dict[str, Any]

    def counts(self) -> dict[str, int]:
        """The number of pairs of each split."""
        return {"train": len(self.train), "validation": len(self.validation), "test": len(self.test)}


@dataclass(frozen=True, slots=True)
class Clusters:
    """The clusters of the pairs that are left: `labels` of their rows, in order, and the name of each label."""

    rows: I64  # (n,) sorted
    labels: I64  # (n,)
    names: list[str]


@dataclass(frozen=True, slots=True)
class CuratedRows:
    """The curated set as places in each split's rows of `clusters`; texts stay where they came from."""

    ledger: Ledger
    clusters: Clusters
    splits: Mapping[str, I64]
    report: dict[str, Any]

    @property
    def merged(self) -> list[Merged]:
        """The pairs that were folded into others."""
        return self.ledger.merged

    @property
    def quarantined(self) -> list[Quarantined]:
        """The pairs that were set aside."""
        return self.ledger.quarantined

    def counts(self) -> dict[str, int]:
        """The number of pairs of each split."""
        return {split: len(places) for split, places in self.splits.items()}

    def lines(self, split: str) -> Iterator[bytes]:
        """The pairs of a split as canonical JSON lines."""
        return (self.ledger.line(row, cluster) for row, cluster in self._named(split))

    def whole(self) -> Curated:
        """The curated set in memory."""
        splits = {
            split: [self.ledger.curated(row, cluster) for row, cluster in self._named(split)] for split in self.splits
        }
        return Curated(**splits, merged=self.merged, quarantined=self.quarantined, report=self.report)

    def _named(self, split: str) -> Iterator[tuple[int, str]]:
        places = self.splits[split]
        rows, labels = self.clusters.rows[places].tolist(), self.clusters.labels[places].tolist()
        return ((row, self.clusters.names[label]) for row, label in zip(rows, labels, strict=True))
