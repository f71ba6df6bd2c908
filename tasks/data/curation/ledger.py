"""The pairs that are left, by row of their columns; a pair's record and its votes are there once somebody asks."""

from __future__ import annotations

import numpy as np

from plumbline.data_contracts.records import CuratedPair, Merged, Quarantined
from plumbline.tasks.data.curation.pair_columns import PairColumns
from plumbline.tasks.data.curation.pair_source import PairSource, curated_pair, line_of
from plumbline.tasks.data.curation.pair_texts import PairContent, content_of
from plumbline.tasks.data.curation.shingles import I64
from plumbline.tasks.data.curation.verdicts import CurationOutcome, Item
from plumbline.tasks.params.curation import MatchingParams


class Ledger:
    """The state of curation: `kept` rows in order, and the verdicts on all others."""

    def __init__(self, source: PairSource, columns: PairColumns, params: MatchingParams) -> None:
        self._source, self._params = source, params
        self.columns = columns
        self.kept: I64 = np.arange(len(columns.place), dtype=np.int64)
        self.merged: list[Merged] = []
        self.quarantined: list[Quarantined] = list(columns.quarantined)
        self._items: dict[int, Item] = {}
        self._contents: dict[int, PairContent] = {}

    def items(self, rows: I64) -> list[Item]:
        """Some pairs with what they stand for."""
        return [self._item(row) for row in rows.tolist()]

    def contents(self, rows: I64) -> list[PairContent]:
        """The canonical texts of some pairs."""
        return [self._content(row) for row in rows.tolist()]

    def apply(self, rows: I64, outcome: CurationOutcome) -> bool:
        """Enter the verdicts of a step on some rows; True when it decided against any of them."""
        self.merged += outcome.merged
        self.quarantined += outcome.quarantined
        left = {item.place for item in outcome.kept}
        gone = [
            row
            for row, place in zip(rows.tolist(), self.columns.place[rows].tolist(), strict=True)
            if place not in left
        ]
        self.kept = np.setdiff1d(self.kept, np.array(gone, dtype=np.int64), assume_unique=True)
        for row in gone:
            self._contents.pop(row, None)
        return bool(outcome)

    def line(self, row: int, cluster: str) -> bytes:
        """One pair as a line of the curated set."""
        if row in self.columns.changed:
            return line_of(self.curated(row, cluster))
        return self._source.curated_line(int(self.columns.place[row]), cluster)

    def curated(self, row: int, cluster: str) -> CuratedPair:
        """One pair of the curated set."""
        place = int(self.columns.place[row])
        pair, cuts = self.columns.changed.get(row) or (self._source.record(place), ())
        return curated_pair(pair, cluster, cuts)

    def cleaned(self, rows: I64) -> list[tuple[str, ...]]:
        """The cuts of those of some pairs that lost a leak."""
        changed = self.columns.changed
        there = np.isin(np.array(sorted(changed), dtype=np.int64), rows)
        return [changed[row][1] for row, kept in zip(sorted(changed), there.tolist(), strict=True) if kept]

    def _item(self, row: int) -> Item:
        if row not in self._items:
            place = int(self.columns.place[row])
            pair, cuts = self.columns.changed.get(row) or (self._source.record(place), ())
            self._items[row] = Item.of(pair, place)
            self._items[row].cleaned = cuts
        return self._items[row]

    def _content(self, row: int) -> PairContent:
        if row not in self._contents:
            self._contents[row] = content_of(self._item(row).pair, self._params)
        return self._contents[row]
