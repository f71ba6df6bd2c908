"""Observations of the monitors: each item once, in the order of looks. The sequential tests are computed from it.

An item (a request, a pair, a look at drift) counts once for one champion and stream, however often and late somebody
looks, whatever the clock says: a unique constraint decides, and order is the order of writing. Another
champion is another process and starts anew. Items of one voter (a user's requests) are one value of a look, their mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from types import MappingProxyType
from typing import Any

from sqlalchemy import JSON, Column, Engine, Float, Integer, MetaData, String, Table, UniqueConstraint, insert, select

from plumbline.tasks.storage.database import reading, writing

METADATA = MetaData()
OBSERVATIONS = Table(
    "monitor_observations",
    METADATA,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("process", String(300), nullable=False),  # the champion's URI
    Column("stream", String(60), nullable=False),
    Column("item", String(300), nullable=False),
    Column("look", String(40), nullable=False),
    Column("value", Float, nullable=False),
    Column("voter", String(200)),  # null: the item is its own
    UniqueConstraint("process", "stream", "item"),
)
FINDINGS = Table(
    "monitor_findings",
    METADATA,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("process", String(300), nullable=False),
    Column("monitor", String(60), nullable=False),
    Column("look", String(40), nullable=False),
    Column("evidence", JSON, nullable=False),
    UniqueConstraint("process", "monitor"),
)


@dataclass(frozen=True, slots=True)
class Observed:
    """One stream of one champion: values by look, in order, one a voter."""

    looks: tuple[tuple[float, ...], ...] = ()

    @property
    def values(self) -> list[float]:
        """All values, in order."""
        return [value for look in self.looks for value in look]


def add(
    engine: Engine,
    process: str,
    look: str,
    streams: Mapping[str, Mapping[str, float]],
    voters: Mapping[str, str] = MappingProxyType({}),
) -> int:
    """Write the values of a look, stream -> item -> value, in one transaction; known items are left out.

    `voters` says of items whose they are, where several are of one.
    """
    added = 0
    with writing(engine) as connection:
        for stream, items in streams.items():
            of = (OBSERVATIONS.c.process == process) & (OBSERVATIONS.c.stream == stream)
            known = set(connection.execute(select(OBSERVATIONS.c.item).where(of)).scalars())
            rows = [
                {"process": process, "stream": stream, "item": item, "look": look, "value": float(value)}
                | {"voter": voters.get(item)}
                for item, value in items.items()
                if item not in known
            ]
            if rows:
                connection.execute(insert(OBSERVATIONS), rows)
            added += len(rows)
    return added


def items(engine: Engine, process: str, stream: str) -> list[str]:
    """The items of a stream, in the order in which they were looked at."""
    with reading(engine) as connection:
        of = (OBSERVATIONS.c.process == process) & (OBSERVATIONS.c.stream == stream)
        return list(connection.execute(select(OBSERVATIONS.c.item).where(of).order_by(OBSERVATIONS.c.seq)).scalars())


def observed(engine: Engine, process: str, names: Iterable[str]) -> dict[str, Observed]:
    """The streams of a champion by name; one without values is empty."""
    with reading(engine) as connection:
        return {name: Observed(_looks(_rows(connection, process, name))) for name in names}


def keep_findings(
    engine: Engine, process: str, look: str, found: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Note findings; the first of a monitor stands for this champion. Returns all, with the look that found them."""
    with writing(engine) as connection:
        known = _findings(connection, process)
        for monitor, evidence in found.items():
            if monitor not in known:
                row = {"process": process, "monitor": monitor, "look": look, "evidence": dict(evidence)}
                connection.execute(insert(FINDINGS).values(row))
        return _findings(connection, process)


def _findings(connection: Any, process: str) -> dict[str, dict[str, Any]]:
    rows = connection.execute(select(FINDINGS).where(FINDINGS.c.process == process)).all()
    return {row.monitor: {"look": row.look, "evidence": row.evidence} for row in rows}


def _rows(connection: Any, process: str, stream: str) -> Sequence[Any]:
    of = (OBSERVATIONS.c.process == process) & (OBSERVATIONS.c.stream == stream)
    columns = (OBSERVATIONS.c.look, OBSERVATIONS.c.value, OBSERVATIONS.c.voter, OBSERVATIONS.c.item)
    query = select(*columns).where(of).order_by(OBSERVATIONS.c.seq)
    rows: Sequence[Any] = connection.execute(query).all()
    return rows


def _looks(rows: Sequence[Any]) -> tuple[tuple[float, ...], ...]:
    return tuple(_means(group) for _, group in groupby(rows, key=lambda row: row.look))


def _means(rows: Iterable[Any]) -> tuple[float, ...]:
    """The mean of each voter's values, in the order in which voters came; an item without one is its own."""
    found: dict[tuple[bool, str], list[float]] = {}
    for row in rows:
        found.setdefault((row.voter is None, row.item if row.voter is None else row.voter), []).append(row.value)
    return tuple(sum(values) / len(values) for values in found.values())
