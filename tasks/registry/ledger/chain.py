"""The promotion ledger as a chain: an append-only table whose lines are hashed, chained and signed.

A line's hash is the SHA-256 of all its columns and of the line before (`prev_hash`); its signature is over that hash.
The database refuses UPDATE and DELETE by triggers; whoever gets around them is found by `chain_problems`: a line
changed, removed, added or moved breaks the chain, and lines cut from the end are missed by the signed head, which is
kept elsewhere (`tasks.registry.ledger.ledger`). Not caught: ledger and head both put back to an older, once true state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import orjson
from sqlalchemy import DDL, Column, Connection, Engine, Integer, MetaData, String, Table, Text, event, insert, select

from plumbline.data_contracts.errors import SignatureError
from plumbline.tasks.params.operations import OperationsParams
from plumbline.tasks.registry.signing.key_files import SigningKey, VerifyingKey
from plumbline.tasks.storage.database import open_database, read_database, reading

Action = Literal["promote", "rollback", "assign", "override", "retry", "delete", "anchor", "keys", "erase"]
GENESIS = "0" * 64  # what stands for the line before the first
_MAX_TEXT = 4000  # characters of an actor or a reason

METADATA = MetaData()
LINES = Table(
    "promotion_ledger",
    METADATA,
    Column("model", String(200), primary_key=True),
    Column("seq", Integer, primary_key=True, autoincrement=False),  # two writers of one line collide here
    Column("alias", String(64), nullable=False),
    Column("version", String(32)),
    Column("previous", String(32)),
    Column("action", String(16), nullable=False),
    Column("actor", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("evidence", Text, nullable=False),
    Column("at", String(40), nullable=False),
    Column("prev_hash", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
    Column("signature", Text, nullable=False),
)
_HASHED = (
    "model",
    "seq",
    "alias",
    "version",
    "previous",
    "action",
    "actor",
    "reason",
    "evidence",
    "at",
    "prev_hash",
)

_REFUSAL = "the promotion ledger is append-only"
_TRIGGERS = {
    "sqlite": [
        f"CREATE TRIGGER promotion_ledger_no_{verb} BEFORE {verb} ON promotion_ledger "
        f"BEGIN SELECT RAISE(ABORT, '{_REFUSAL}'); END"
        for verb in ("update", "delete")
    ],
    "postgresql": [
        "CREATE OR REPLACE FUNCTION promotion_ledger_refuse() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{_REFUSAL}'; END $$",
        "CREATE TRIGGER promotion_ledger_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON promotion_ledger "
        "FOR EACH STATEMENT EXECUTE FUNCTION promotion_ledger_refuse()",
    ],
}
for _dialect, _statements in _TRIGGERS.items():
    for _statement in _statements:
        _trigger = DDL(_statement).execute_if(dialect=_dialect)  # type: ignore[no-untyped-call]
        event.listen(LINES, "after_create", _trigger)


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One line: `alias` of `model` went from `previous` to `version` (None: no version).

    A deletion, an anchor, a change of keys and an erasure have no alias.
    """

    seq: int
    model: str
    alias: str
    version: str | None
    previous: str | None
    action: Action
    actor: str
    reason: str
    evidence: Mapping[str, Any]
    at: datetime
    prev_hash: str
    hash: str
    signature: str

    @property
    def title(self) -> str:
        """The line in a few words, for messages."""
        what = (
            f"{self.alias} {self.previous or 'none'} -> {self.version or 'none'}"
            if self.alias
            else self.version or {"keys": "keys", "erase": "feedback"}.get(self.action, "head")
        )
        return f"line {self.seq} ({self.action} {what} by {self.actor} at {self.at:%Y-%m-%d %H:%M:%S} UTC)"


@dataclass(frozen=True, slots=True)
class Line:
    """The content of a new line; the chain adds number, time, hashes and signature."""

    alias: str
    version: str | None
    previous: str | None
    evidence: Mapping[str, Any]


def open_ledger(root: Path, params: OperationsParams) -> Engine:
    """The operations database with the ledger's table and triggers in it."""
    return open_database(root, params, METADATA)


def read_ledger(root: Path, params: OperationsParams) -> Engine:
    """As `open_ledger`, to read alone: nothing is made or written."""
    return read_database(root, params, METADATA)


def history(engine: Engine, model: str) -> list[LedgerEntry]:
    """Every line of a model, oldest first, as it stands. Raises `SignatureError` on a line that cannot be read."""
    return [_entry(row) for row in rows_of(engine, model)]


def rows_of(engine: Engine, model: str) -> list[dict[str, Any]]:
    """The lines of a model as the database holds them."""
    with reading(engine) as connection:
        return _rows(connection, model)


def append(
    connection: Connection,
    model: str,
    lines: Iterable[Line],
    *,
    action: Action,
    actor: str,
    reason: str,
    key: SigningKey,
) -> list[LedgerEntry]:
    """Add lines of one operation: they share their time. Raises the database's error where another took the number."""
    last = connection.execute(
        select(LINES.c.seq, LINES.c.hash).where(LINES.c.model == model).order_by(LINES.c.seq.desc()).limit(1)
    ).first()
    seq, head = (0, GENESIS) if last is None else (int(last.seq), str(last.hash))
    at, added = datetime.now(UTC).isoformat(timespec="microseconds"), []
    for line in lines:
        seq += 1
        row: dict[str, Any] = {
            "model": model,
            "seq": seq,
            "alias": line.alias,
            "version": line.version,
            "previous": line.previous,
            "action": action,
            "actor": checked_text(actor, "an actor"),
            "reason": checked_text(reason, "a reason"),
            "evidence": orjson.dumps(line.evidence, option=orjson.OPT_SORT_KEYS).decode(),
            "at": at,
            "prev_hash": head,
        }
        head = hash_of(row)
        row |= {"hash": head, "signature": key.sign(head.encode())}
        connection.execute(insert(LINES).values(row))
        added.append(_entry(row))
    return added


def checked_text(text: str, what: str) -> str:
    """The text without blanks around it. Raises `SignatureError` when it is empty, too long or not text."""
    text = text.strip()
    if not text or len(text) > _MAX_TEXT or not text.replace("\n", " ").replace("\t", " ").isprintable():
        raise SignatureError(
            f"the ledger needs {what}: expected 1 to {_MAX_TEXT} printable characters, found {len(text)} "
            f"({text[:40]!a})."
        )
    return text


def hash_of(row: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of a line's columns, those of `_HASHED`, as JSON with sorted keys."""
    return hashlib.sha256(orjson.dumps({name: row[name] for name in _HASHED}, option=orjson.OPT_SORT_KEYS)).hexdigest()


def chain_problems(rows: Sequence[Mapping[str, Any]], key: VerifyingKey) -> list[str]:
    """The break of the chain, at its first bad line; nothing after that line can be judged."""
    head = GENESIS
    for seq, row in enumerate(rows, start=1):
        problem = _problem(row, seq, head, key)
        if problem is not None:
            return [f"ledger line {row['seq']} ({row['alias'] or row['action']} {row['version']}): {problem}"]
        head = str(row["hash"])
    return []


def _problem(row: Mapping[str, Any], seq: int, head: str, key: VerifyingKey) -> str | None:
    if row["seq"] != seq:
        return f"expected line {seq} here; lines were removed."
    if row["prev_hash"] != head:
        return "it does not follow the line before: lines were changed, removed or reordered."
    if row["hash"] != hash_of(row):
        return "it was changed: its hash is not that of its content."
    if not key.accepts(str(row["hash"]).encode(), str(row["signature"])):
        return f"its signature is not by {key.title}."
    return None


def _rows(connection: Connection, model: str) -> list[dict[str, Any]]:
    found = connection.execute(select(LINES).where(LINES.c.model == model).order_by(LINES.c.seq))
    return [dict(row) for row in found.mappings()]


def _entry(row: Mapping[str, Any]) -> LedgerEntry:
    try:
        values = {**row, "evidence": orjson.loads(row["evidence"]), "at": datetime.fromisoformat(row["at"])}
    except (ValueError, TypeError) as error:
        raise SignatureError(
            f"ledger line {row['seq']} of {row['model']} cannot be read ({error}): it was changed. "
            f"`plumbline history` verifies the chain; `plumbline restore-workspace BACKUP DIR` brings back a "
            f"backup of the workspace."
        ) from error
    return LedgerEntry(**values)
