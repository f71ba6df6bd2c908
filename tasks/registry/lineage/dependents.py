"""A derived index of all versions of a model: who rests on what, answered without opening a thousand manifests.

It is SQLite under `.plumbline/lineage`, made from manifests alone and safe to delete. `missing` compares it with what
the registry says now (number and SHA-256 of each manifest): a version that is new, gone, or registered anew under its
number is read again or dropped before anything is answered, so that it cannot lie. Aliases are not in it.

Accounts (who contributed how many lines to a dataset) are kept once a dataset, by its DVC hash, however many versions
share it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plumbline.data_contracts.errors import UsageError

SCHEMA = 1
DATASETS = ("raw", "world", "validated", "curated")
_TABLES = """
CREATE TABLE IF NOT EXISTS versions (
    name TEXT, number INTEGER, manifest TEXT, passed INTEGER, problem TEXT, PRIMARY KEY (name, number)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS things (
    kind TEXT, key TEXT, name TEXT, number INTEGER, label TEXT, PRIMARY KEY (kind, key, name, number, label)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS things_of_a_version ON things (name, number);
CREATE TABLE IF NOT EXISTS accounts (
    kind TEXT, whose TEXT, dataset TEXT, file TEXT, lines INTEGER, PRIMARY KEY (kind, whose, dataset, file)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS accounted (dataset TEXT PRIMARY KEY) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class Dependent:
    """A version that rests on a thing: `label` says which of its parts that is."""

    number: str
    passed: bool
    key: str
    label: str


class DependentsIndex:
    """The index of one workspace's registry, in one file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._prepare()
        except sqlite3.DatabaseError:  # not a database, or a damaged one: everything in it can be made again
            path.unlink(missing_ok=True)
            self._prepare()

    def _prepare(self) -> None:
        with self._connect() as connection:
            if connection.execute("PRAGMA user_version").fetchone()[0] not in (0, SCHEMA):
                for table in ("versions", "things", "accounts", "accounted"):
                    connection.execute(f"DROP TABLE IF EXISTS {table}")
            connection.executescript(_TABLES)
            connection.execute(f"PRAGMA user_version = {SCHEMA}")

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(self.path, timeout=30)
        try:
            with connection:
                yield connection
        finally:
            connection.close()

    def missing(self, name: str, live: Mapping[str, str]) -> list[str]:
        """Numbers that have to be read (again); what the registry no longer has is dropped. `live`: number -> hash."""
        with self._connect() as connection:
            rows = connection.execute("SELECT number, manifest FROM versions WHERE name = ?", (name,))
            known = {str(number): manifest for number, manifest in rows}
            for number in known.keys() - live.keys():
                _forget(connection, name, number)
        return [number for number, manifest in live.items() if known.get(number) != manifest]

    def add(self, name: str, entries: Iterable[tuple[str, str, bool, Mapping[str, Any] | None, str]]) -> None:
        """Enter versions: number, hash of the manifest, passed, the manifest (None: unreadable), and why not."""
        with self._connect() as connection:
            for number, digest, passed, manifest, problem in entries:
                _forget(connection, name, number)
                row = (name, int(number), digest, passed, problem)
                connection.execute("INSERT INTO versions VALUES (?, ?, ?, ?, ?)", row)
                things = sorted(set(_things(manifest))) if manifest is not None else []
                connection.executemany(
                    "INSERT OR IGNORE INTO things VALUES (?, ?, ?, ?, ?)",
                    [(kind, key, name, int(number), label) for kind, key, label in things],
                )
                for dataset, account in _accounts(manifest or {}).items():
                    _enter_account(connection, dataset, account)

    def add_account(self, dataset: str, account: Mapping[str, Any]) -> None:
        """Enter the account of a dataset whose manifests, being old, have none."""
        with self._connect() as connection:
            _enter_account(connection, bare(dataset), account)

    def unaccounted(self, name: str) -> list[str]:
        """Datasets of versions of which nobody has counted yet who contributed."""
        query = """SELECT DISTINCT key FROM things WHERE kind = 'accountable' AND name = ?
                   AND key NOT IN (SELECT dataset FROM accounted)"""
        with self._connect() as connection:
            return [key for (key,) in connection.execute(query, (name,))]

    def problems(self, name: str) -> list[str]:
        """Versions that could not be read, and why."""
        query = "SELECT problem FROM versions WHERE name = ? AND problem != '' ORDER BY number"
        with self._connect() as connection:
            return [problem for (problem,) in connection.execute(query, (name,))]

    def size(self, name: str) -> int:
        """The number of versions in the index."""
        with self._connect() as connection:
            return int(connection.execute("SELECT count(*) FROM versions WHERE name = ?", (name,)).fetchone()[0])

    def datasets(self, name: str) -> list[tuple[str, str]]:
        """Every dataset with records that a version rests on: its hash and its role, older versions' first."""
        query = """SELECT key, label FROM things WHERE kind = 'accountable' AND name = ?
                   GROUP BY key, label ORDER BY min(number), label"""
        with self._connect() as connection:
            return [(key, role) for key, role in connection.execute(query, (name,))]

    def resting_on(self, name: str, kind: str, key: str) -> list[Dependent]:
        """Versions with a thing of this kind whose key is `key`, or, for a hash, begins with it."""
        prefix = len(key) >= 7 and all(letter in "0123456789abcdef" for letter in key)
        upper = key + "g" if prefix else key
        query = """SELECT number, passed, key, label FROM things JOIN versions USING (name, number)
                   WHERE kind = ? AND name = ? AND key >= ? AND key <= ? ORDER BY number, label"""
        with self._connect() as connection:
            rows = connection.execute(query, (kind, name, key, upper)).fetchall()
        return [Dependent(str(number), bool(passed), found, label) for number, passed, found, label in rows]

    def keys(self, name: str, kind: str) -> list[str]:
        """Every key of a kind, for a message that says what there is."""
        query = "SELECT DISTINCT key FROM things WHERE kind = ? AND name = ? ORDER BY key LIMIT 50"
        with self._connect() as connection:
            return [key for (key,) in connection.execute(query, (kind, name))]

    def contributions(self, kind: str, whose: str) -> dict[str, dict[str, int]]:
        """Dataset -> file -> lines that an annotator, a batch (by path) or a judge's prompt contributed."""
        query = "SELECT dataset, file, lines FROM accounts WHERE kind = ? AND whose = ?"
        found: dict[str, dict[str, int]] = {}
        with self._connect() as connection:
            for dataset, file, lines in connection.execute(query, (kind, whose)):
                found.setdefault(dataset, {})[file] = lines
        return found

    def names(self, kind: str, contains: str = "") -> list[str]:
        """Names in the accounts that contain a text, at most fifty."""
        query = "SELECT DISTINCT whose FROM accounts WHERE kind = ? AND instr(whose, ?) > 0 ORDER BY whose LIMIT 50"
        with self._connect() as connection:
            return [whose for (whose,) in connection.execute(query, (kind, contains))]


def bare(digest: str) -> str:
    """A DVC hash without the suffix of folders."""
    return digest.removesuffix(".dir")


def require_hash(text: str) -> str:
    """A hash, or the first seven or more characters of one, in lower case. Raises `UsageError`."""
    plain = bare(text.lower())
    if len(plain) < 7 or any(letter not in "0123456789abcdef" for letter in plain):
        raise UsageError(f"{text}: expected a hash, or its first seven or more hexadecimal digits.")
    return plain


def _forget(connection: sqlite3.Connection, name: str, number: str) -> None:
    for table in ("versions", "things"):
        connection.execute(f"DELETE FROM {table} WHERE name = ? AND number = ?", (name, int(number)))


def _enter_account(connection: sqlite3.Connection, dataset: str, account: Mapping[str, Any]) -> None:
    if connection.execute("SELECT 1 FROM accounted WHERE dataset = ?", (dataset,)).fetchone():
        return
    rows = [
        (kind, whose, dataset, file, lines)
        for kind, files in account.items()
        for file, counts in files.items()
        for whose, lines in counts.items()
    ]
    connection.executemany("INSERT OR REPLACE INTO accounts VALUES (?, ?, ?, ?, ?)", rows)
    connection.execute("INSERT OR IGNORE INTO accounted VALUES (?)", (dataset,))


def _things(manifest: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """The things that a version rests on: (kind, key, which part of it)."""
    for role, entry in manifest["objects"].items():
        for key in (bare(entry["md5"]), entry["digest"]):
            if key and role in DATASETS:
                yield "dataset", key, role
            elif key and role == "reward":
                yield "reward_model", key, role
        if role in ("validated", "curated"):
            yield "accountable", bare(entry["md5"]), role
    for batch in manifest["raw_batches"]:
        stem = batch["path"].rsplit("/", 1)[-1].split(".")[0]
        for key in (batch["md5"], stem, batch["path"]):
            yield "batch", key, batch["path"]
    for rubric in manifest.get("judge_prompts", ()):
        for key in (rubric["digest"], f"{rubric['name']}@{rubric['version']}"):
            yield "judge_prompt", key, ", ".join(rubric["used_by"])
    for label, commit in (
        ("workspace", manifest["git"]["commit"]),
        ("program", manifest["program"].get("git_commit")),
    ):
        if commit:
            yield "commit", commit, label


def _accounts(manifest: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """DVC hash of a dataset -> its account, as the manifest has it."""
    objects = manifest.get("objects", {})
    return {bare(objects[role]["md5"]): account for role, account in manifest.get("accounts", {}).items()}
