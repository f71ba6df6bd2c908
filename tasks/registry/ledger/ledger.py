"""Aliases by compare-and-swap over the promotion ledger. The ledger is the truth; MLflow's aliases follow it.

One move, under a lock that every writer of the ledger takes:

1. verify the chain, and finish what a crash left unfinished (`settle`);
2. compare: the ledger's holder, MLflow's holder and the expected one must be the same;
3. append the lines, signed, in one transaction of the operations database: the commit point;
4. set the aliases in MLflow, then the signed head (a tag of the registered model: the last line's number and hash).

The head distinguishes two ways in which MLflow can differ from the ledger. Lines beyond the head were not finished:
they are carried out. An alias that differs although the head covers it was moved outside: it is named, and nobody
moves it on unless they say so, on record.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import orjson
from filelock import FileLock, Timeout
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError

from plumbline.data_contracts.errors import OperationsError, RegistryError, RegistryRefused, SignatureError
from plumbline.tasks.registry.ledger.chain import (
    Action,
    LedgerEntry,
    Line,
    append,
    chain_problems,
    history,
    open_ledger,
    read_ledger,
    rows_of,
)
from plumbline.tasks.registry.ledger.head import HEAD_TAG, head_problems, head_seq, read_head, write_head
from plumbline.tasks.registry.signing.keys import signing_key, verifying_key
from plumbline.tasks.registry.signing.trust import TRUSTED, load_trust
from plumbline.tasks.registry.store.client import Store, refusals
from plumbline.tasks.registry.store.lookup import registered
from plumbline.tasks.storage.database import writing
from plumbline.tasks.storage.versioning.tombstones import RAW, Tombstone, load_tombstones

__all__ = [
    "ALIASES",
    "HEAD_TAG",
    "Action",
    "LedgerEntry",
    "Move",
    "alias_state",
    "anchor_head",
    "delete_version",
    "history",
    "is_live",
    "move_alias",
    "move_aliases",
    "moved_outside",
    "open_ledger",
    "read_ledger",
    "record_erasure",
    "record_keys",
    "settle",
    "verify_chain",
]

ALIASES = ("candidate", "challenger", "shadow", "champion", "previous")
_GONE = "RESOURCE_DOES_NOT_EXIST"  # MLflow's error code
_LOCK_WAIT_S = 60
_LOCK_KEY = 0x706C756D  # of Postgres's advisory lock


@dataclass(frozen=True, slots=True)
class Move:
    """An alias, the version that gets it (None: nobody) and the one that is expected to hold it (None: nobody)."""

    alias: str
    version: str | None
    expected: str | None


def alias_state(entries: Sequence[LedgerEntry]) -> dict[str, LedgerEntry]:
    """The last line of each alias; its `version` holds the alias."""
    return {entry.alias: entry for entry in entries if entry.alias}


def verify_chain(engine: Engine, store: Store, model: str | None = None) -> list[str]:
    """Problems of a model's ledger, its first bad line by number; nothing when it is whole.

    Found are: a line changed, removed, added or reordered, lines cut from the end (by the signed head), and a head
    that is forged or gone.
    """
    name = model or store.params.model_name
    rows = rows_of(engine, name)
    _, tags = _registered(store, name)
    head = tags.get(HEAD_TAG)
    if not rows and head is None:
        return []
    key = verifying_key(store.root, store.params)
    found = chain_problems(rows, key) or head_problems(rows, read_head(head, name, key), name)
    return found or _missing_statements(store, rows)


def _missing_statements(store: Store, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Changes of keys that lines record and the workspace's record of keys does not have: a revocation cut off."""
    trust = load_trust(store.root)
    there = {statement.digest for statement in trust.statements} if trust is not None else set()
    told = [(row["seq"], orjson.loads(row["evidence"]).get("statement")) for row in rows if row["action"] == "keys"]
    return _missing_tombstones(store, rows) + [
        f"ledger line {seq}: {TRUSTED} lacks the change of keys that it records: it was cut or put back to an older "
        f"state. Put it back from a backup."
        for seq, statement in told
        if statement not in there
    ]


def _missing_tombstones(store: Store, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Erasures that lines record and the raw store has no tombstone of."""
    told = [(row["seq"], orjson.loads(row["evidence"]).get("tombstone")) for row in rows if row["action"] == "erase"]
    there = {tombstone.digest for tombstone in load_tombstones(store.root)} if told else set()
    return [
        f"ledger line {seq}: {RAW} lacks the record of the erasure that it names. `dvc pull` or `plumbline doctor "
        f"--fix` brings it back."
        for seq, tombstone in told
        if tombstone not in there
    ]


def moved_outside(engine: Engine, store: Store, model: str | None = None) -> dict[str, dict[str, str | None]]:
    """Aliases that somebody moved in MLflow itself: alias -> {"ledger": version, "mlflow": version}."""
    name = model or store.params.model_name
    entries = history(engine, name)
    aliases, tags = _registered(store, name)
    return _outside(entries, aliases, head_seq(tags))


def settle(engine: Engine, store: Store, model: str | None = None) -> list[str]:
    """Carry out what a crash left between ledger and MLflow; say what was done. Raises `SignatureError`."""
    name = model or store.params.model_name
    with ledger_lock(engine):
        return _settle(engine, store, name)


def move_alias(
    engine: Engine,
    store: Store,
    *,
    alias: str,
    version: str | None,
    expected: str | None,
    action: Action,
    actor: str,
    reason: str,
    evidence: Mapping[str, Any],
    outside: Literal["refuse", "record"] = "refuse",
) -> LedgerEntry:
    """Give one alias to another version, if `expected` still holds it; see `move_aliases`."""
    moves = [Move(alias, version, expected)]
    return move_aliases(
        engine, store, moves, action=action, actor=actor, reason=reason, evidence=evidence, outside=outside
    )[0]


def move_aliases(
    engine: Engine,
    store: Store,
    moves: Sequence[Move],
    *,
    action: Action,
    actor: str,
    reason: str,
    evidence: Mapping[str, Any],
    outside: Literal["refuse", "record"] = "refuse",
) -> list[LedgerEntry]:
    """Move aliases of `store.params.model_name` together, or none of them: of two at once exactly one wins.

    `outside` says what to do with an alias that was moved in MLflow itself: refuse, or take it over with what was found
    kept in the evidence. Raises `RegistryError`, saying who won, when another version than `expected` holds an
    alias, or when a version is not in MLflow any more, and `SignatureError` when the ledger is not whole.
    """
    name = store.params.model_name
    for move in moves:
        _require_alias(move.alias)
    with ledger_lock(engine):
        repaired = _settle(engine, store, name)
        entries = history(engine, name)
        strange = _compare(store, name, entries, moves, outside)
        _require_live(store, name, entries, moves)
        lines = [
            Line(move.alias, move.version, move.expected, _evidence(evidence, repaired, strange.get(move.alias)))
            for move in moves
        ]
        added = _append(engine, store, lines, action, actor, reason)
        _settle(engine, store, name)
    return added


def delete_version(engine: Engine, store: Store, number: str, *, actor: str, reason: str) -> LedgerEntry:
    """Delete a version in MLflow, on record. Raises `RegistryError` when an alias, here or there, holds it."""
    name = store.params.model_name
    with ledger_lock(engine):
        repaired = _settle(engine, store, name)
        held = {alias for alias, entry in alias_state(history(engine, name)).items() if entry.version == number}
        aliases, _ = _registered(store, name)
        held |= {alias for alias, version in aliases.items() if version == number}
        if held:
            raise RegistryRefused(
                f"models:/{name}/{number}: expected a version that no alias holds, found {', '.join(sorted(held))}. "
                f"Move the alias first (`plumbline promote`, `plumbline rollback`); nothing was deleted."
            )
        line = Line("", number, None, _evidence({}, repaired, None))
        (entry,) = _append(engine, store, [line], "delete", actor, reason)
        _settle(engine, store, name)
    return entry


def anchor_head(engine: Engine, store: Store, *, actor: str, reason: str) -> LedgerEntry:
    """Write a lost or outdated head anew, on record, over lines that are whole in themselves.

    For an MLflow store put back from a backup, or a deleted tag. What was found goes into the evidence.
    Raises `SignatureError` when a line itself is bad, `RegistryError` when the head is as it should be.
    """
    name = store.params.model_name
    with ledger_lock(engine):
        found = verify_chain(engine, store, name)
        bad = chain_problems(rows_of(engine, name), verifying_key(store.root, store.params))
        if bad:
            raise SignatureError(
                f"ledger of {name}: {' '.join(bad)} A new head helps where the lines are whole. Nothing was changed. "
                f"`plumbline restore-workspace BACKUP DIR` brings back a backup of the workspace."
            )
        if not found:
            raise RegistryRefused(f"ledger of {name}: lines and signed head agree; there is nothing to anchor.")
        _, tags = _registered(store, name)
        line = Line("", None, None, {"problems": found, "head": tags.get(HEAD_TAG)})
        (entry,) = _append(engine, store, [line], "anchor", actor, reason)
        _write_head(store, name, entry)
    return entry


def record_keys(
    engine: Engine, store: Store, evidence: Mapping[str, Any], *, actor: str, reason: str
) -> LedgerEntry | None:
    """Add a line for a change of keys, so that it cannot be undone unseen; None if there is no model."""
    return _record(engine, store, "keys", evidence, actor, reason)


def record_erasure(engine: Engine, store: Store, tombstone: Tombstone) -> LedgerEntry | None:
    """Add a line for an erasure, unless there is one, so that its tombstone cannot be removed unseen."""
    entries = history(engine, store.params.model_name)
    found = (each for each in entries if each.evidence.get("tombstone") == tombstone.digest)
    evidence = {"tombstone": tombstone.digest}
    return next(found, None) or _record(engine, store, "erase", evidence, tombstone.by, tombstone.reason)


def _record(
    engine: Engine, store: Store, action: Action, evidence: Mapping[str, Any], actor: str, reason: str
) -> LedgerEntry | None:
    name = store.params.model_name
    with ledger_lock(engine):
        if registered(store, name) is None:
            return None
        _settle(engine, store, name)
        (entry,) = _append(engine, store, [Line("", None, None, evidence)], action, actor, reason)
        _settle(engine, store, name)
    return entry


def _append(
    engine: Engine, store: Store, lines: Sequence[Line], action: Action, actor: str, reason: str
) -> list[LedgerEntry]:
    key, name = signing_key(store.root, store.params), store.params.model_name
    try:
        with writing(engine) as connection:
            return append(connection, name, lines, action=action, actor=actor, reason=reason, key=key)
    except OperationsError as error:
        if isinstance(error.__cause__, IntegrityError):
            raise RegistryError(
                f"{name}: another writer added to the ledger at the same moment, and won. See `plumbline history`."
            ) from error
        raise


def _settle(engine: Engine, store: Store, name: str) -> list[str]:
    """`settle`, with the lock held."""
    problems = verify_chain(engine, store, name)
    if problems:
        raise SignatureError(
            f"ledger of {name}: {' '.join(problems)} Nothing was changed. `plumbline restore-workspace BACKUP "
            f"DIR` brings back a backup of the workspace; find out who could write to the operations database."
        )
    entries = history(engine, name)
    aliases, tags = _registered(store, name)
    pending = [entry for entry in entries if entry.seq > head_seq(tags)]
    if not pending:
        return []
    strange = _outside(entries, aliases, head_seq(tags))
    done = [note for entry in pending if entry.alias not in strange for note in _carry_out(store, entry, aliases)]
    _write_head(store, name, pending[-1])
    return done


def _carry_out(store: Store, entry: LedgerEntry, aliases: dict[str, str]) -> list[str]:
    """Make MLflow say what a line says, or state that it cannot: what MLflow lost must not block the next line."""
    from mlflow.exceptions import MlflowException

    with refusals(f"ledger {entry.title}"):
        try:
            return _set(store, entry, aliases)
        except MlflowException as error:
            if error.error_code != _GONE:
                raise
    if entry.action == "delete":
        return [f"carried out {entry.title}"]
    return [f"could not carry out {entry.title}: MLflow has no version {entry.version}; somebody deleted it"]


def _set(store: Store, entry: LedgerEntry, aliases: dict[str, str]) -> list[str]:
    client, name = store.client, entry.model
    if entry.action == "delete":
        client.delete_model_version(name, str(entry.version))
    elif not entry.alias or aliases.get(entry.alias) == entry.version:
        return []
    elif entry.version is None:
        client.delete_registered_model_alias(name, entry.alias)
        aliases.pop(entry.alias, None)
    else:
        client.set_registered_model_alias(name, entry.alias, entry.version)
        aliases[entry.alias] = entry.version
    return [f"carried out {entry.title}"]


def is_live(store: Store, number: str) -> bool:
    """True if MLflow has this version of `store.params.model_name`."""
    with refusals(f"looking up version {number} of {store.params.model_name}"):
        return store.reader.version(store.params.model_name, number) is not None


def _require_live(store: Store, name: str, entries: Sequence[LedgerEntry], moves: Sequence[Move]) -> None:
    """No line is written that could never be carried out."""
    deleted = {entry.version: entry for entry in entries if entry.action == "delete"}
    for move in moves:
        if move.version is None or (move.version not in deleted and is_live(store, move.version)):
            continue
        why = f"deleted by {deleted[move.version].title}" if move.version in deleted else "MLflow has no such version"
        raise RegistryRefused(
            f"{name}@{move.alias}: expected a version that exists, found {move.version}: {why}. Nothing was changed. "
            f"Choose another one (`plumbline lineage`), for instance `plumbline rollback --to MODEL`."
        )


def _compare(
    store: Store,
    name: str,
    entries: Sequence[LedgerEntry],
    moves: Sequence[Move],
    outside: Literal["refuse", "record"],
) -> dict[str, dict[str, str | None]]:
    """Compare ledger, MLflow and expectation; return what was moved outside where that is to be recorded."""
    state = alias_state(entries)
    aliases, tags = _registered(store, name)
    strange = _outside(entries, aliases, head_seq(tags))
    for move in moves:
        last = state.get(move.alias)
        holder = None if last is None else last.version
        if holder != move.expected:
            raise RegistryRefused(
                f"{name}@{move.alias}: expected version {move.expected or 'none'}, found {holder or 'none'}: "
                f"{last.title if last else 'no line'} won, because: {last.reason if last else '-'} "
                f"Nothing was changed. See `plumbline history`, then decide anew."
            )
        if move.alias in strange and outside == "refuse" and not _lost(store, strange[move.alias]):
            raise RegistryRefused(_outside_words(name, move.alias, strange[move.alias]))
    return strange


def _lost(store: Store, found: Mapping[str, str | None]) -> bool:
    """True if an alias went because its version was deleted in MLflow: nobody moved it, and it may be given anew."""
    return found["mlflow"] is None and found["ledger"] is not None and not is_live(store, found["ledger"])


def _outside_words(name: str, alias: str, found: Mapping[str, str | None]) -> str:
    return (
        f"{name}@{alias}: moved outside the ledger: the ledger says version {found['ledger'] or 'none'}, MLflow says "
        f"{found['mlflow'] or 'none'}. Nothing was changed. Find out who did it; `plumbline rollback --to MODEL` takes "
        f"the alias over, on record."
    )


def _outside(
    entries: Sequence[LedgerEntry], aliases: Mapping[str, str], settled: int
) -> dict[str, dict[str, str | None]]:
    """Aliases of ours whose holder in MLflow no line explains: not the last one carried out, nor one pending.

    A pending line that took over an alias moved outside explains that holder too.
    """
    allowed: dict[str, set[str | None]] = {alias: {None} for alias in ALIASES}
    truth: dict[str, str | None] = dict.fromkeys(ALIASES)
    for entry in entries:
        if entry.alias in allowed:
            truth[entry.alias] = entry.version
            taken_over = {found["mlflow"] for found in [entry.evidence.get("moved_outside")] if found}
            before = allowed[entry.alias] | taken_over if entry.seq > settled else set()
            allowed[entry.alias] = before | {entry.version}
    return {
        alias: {"ledger": truth[alias], "mlflow": aliases.get(alias)}
        for alias in ALIASES
        if aliases.get(alias) not in allowed[alias]
    }


def _evidence(
    evidence: Mapping[str, Any], repaired: Sequence[str], strange: Mapping[str, str | None] | None
) -> dict[str, Any]:
    extra: dict[str, Any] = {"repaired": list(repaired)} if repaired else {}
    return {**evidence, **extra, **({"moved_outside": dict(strange)} if strange else {})}


def _registered(store: Store, name: str) -> tuple[dict[str, str], dict[str, str]]:
    """Aliases and tags of a registered model; nothing if MLflow has no such model."""
    return registered(store, name) or ({}, {})


def _write_head(store: Store, name: str, entry: LedgerEntry) -> None:
    write_head(store, name, entry.seq, entry.hash)


def _require_alias(alias: str) -> None:
    if alias not in ALIASES:
        raise RegistryError(f"{alias[:40]!r}: unknown alias; expected one of {', '.join(ALIASES)}.")


@contextmanager
def ledger_lock(engine: Engine) -> Iterator[None]:
    """One writer of the ledger at a time, on this machine (SQLite) or on all of them (Postgres).

    The lock goes when its holder dies.
    """
    busy = f"the promotion ledger is being written for more than {_LOCK_WAIT_S} s. Is a command hanging? Try again."
    if engine.dialect.name == "sqlite":
        try:
            with FileLock(f"{engine.url.database}.ledger.lock", timeout=_LOCK_WAIT_S):
                yield
        except Timeout as error:
            raise OperationsError(busy) from error
        return
    with writing(engine) as connection:
        connection.execute(text(f"SET LOCAL lock_timeout = '{_LOCK_WAIT_S}s'"))
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK_KEY})"))
        yield
