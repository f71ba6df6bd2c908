"""The operations database: what has to survive a crash and be agreed on by several processes.

SQLite beside the workspace, or Postgres for more than one machine. Each noun keeps its own tables in
a `MetaData` of its own and gives it to `open_database`, or to `read_database` where it only looks: that one needs no
write access and leaves nothing behind. Write inside `writing`, read inside `reading`: on SQLite `writing` takes the
write lock at once, so that what it reads cannot change before it commits.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, MetaData, StaticPool, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import SQLAlchemyError

from plumbline.data_contracts.errors import OperationsError
from plumbline.data_contracts.private_files import make_private, make_private_file
from plumbline.data_contracts.secrets import mask
from plumbline.tasks.params.operations import OperationsParams
from plumbline.tasks.params.section import from_environment
from plumbline.tasks.storage.database.sqlite import connect_for_reading, copy_database, sqlite_url

_MAKING_TABLES = 7_043_117  # a number of our own for Postgres's lock while tables are made
_LOCK_WAIT_S = 30  # SQLite: how long a writer waits for another before it fails


def database_url(root: Path, params: OperationsParams) -> str:
    """The URL: as given, from the environment variable given, or SQLite under `.plumbline`. Raises `ParamsError`."""
    given = params.database
    if given is None:
        return sqlite_url(root.resolve() / ".plumbline" / "operations.db")
    return from_environment(given, "operations.database", "a database URL")


def open_database(root: Path, params: OperationsParams, tables: MetaData) -> Engine:
    """Connect, make the tables and nullable columns that are missing, return the engine. Raises `OperationsError`."""
    url = database_url(root, params)
    if params.database is None:
        make_private(root / ".plumbline")
    engine = create_engine(url, pool_pre_ping=True)
    if engine.dialect.name == "sqlite":
        _make_file(engine, root)
        _prepare_sqlite(engine)
    with writing(engine) as connection:
        if engine.dialect.name == "postgresql":  # on SQLite the write lock already lets one process in at a time
            connection.execute(text(f"SELECT pg_advisory_xact_lock({_MAKING_TABLES})"))
        tables.create_all(connection)
        _add_missing_columns(connection, tables)
    return engine


def _make_file(engine: Engine, root: Path) -> None:
    """Make the file of a new database before SQLite does, so that others cannot read it, nor the log beside it."""
    name = engine.url.database
    if name and not os.path.exists(name) and os.path.isdir(os.path.dirname(os.path.abspath(name))):
        make_private_file(Path(name), root)


def read_database(root: Path, params: OperationsParams, tables: MetaData) -> Engine:
    """An engine for `reading` alone, with these tables: no write access is needed and no file is made or changed.

    A database that is not there yet reads as empty; one of an earlier program is completed in a private copy. Raises
    `OperationsError`.
    """
    url = make_url(database_url(root, params))
    if url.get_backend_name() != "sqlite":
        return _read_server(root, params, tables)
    path = Path(url.database or "")
    if not path.exists():
        engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
        tables.create_all(engine)
        return engine
    engine = _reading_engine(path)
    with _refusals(str(path)), engine.connect() as connection:
        if _is_complete(connection, tables):
            return engine
    engine.dispose()
    return _completed_copy(path, tables)


def _read_server(root: Path, params: OperationsParams, tables: MetaData) -> Engine:
    engine = create_engine(database_url(root, params), pool_pre_ping=True)
    with _refusals(str(engine.url)), engine.connect() as connection:
        if _is_complete(connection, tables):
            return engine.execution_options(postgresql_readonly=True)
    return open_database(root, params, tables)


def _reading_engine(path: Path) -> Engine:
    """An engine of connections that cannot write. The URL is for messages."""
    engine = create_engine(URL.create("sqlite", database=str(path)), creator=lambda: connect_for_reading(path))
    _begin_when_told(engine)
    return engine


def _completed_copy(path: Path, tables: MetaData) -> Engine:
    """A private copy, gone with the engine, of a database that lacks tables or columns."""
    folder = tempfile.TemporaryDirectory(prefix="plumbline-read-", ignore_cleanup_errors=True)
    with _refusals(str(path)):
        copy = copy_database(path, Path(folder.name) / path.name)
    engine = create_engine(f"sqlite:///{copy}")
    _begin_when_told(engine)
    weakref.finalize(engine, folder.cleanup)
    with writing(engine) as connection:
        tables.create_all(connection)
        _add_missing_columns(connection, tables)
    return engine


def _is_complete(connection: Connection, tables: MetaData) -> bool:
    found = inspect(connection)
    present = set(found.get_table_names())
    return all(
        table.name in present
        and {column["name"] for column in found.get_columns(table.name)} >= {column.name for column in table.columns}
        for table in tables.sorted_tables
    )


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """One transaction that writes: committed when the block ends well, else undone. Raises `OperationsError`."""
    with _refusals(str(engine.url)), engine.connect() as connection:
        connection = connection.execution_options(plumbline_writes=True)
        with connection.begin():
            yield connection


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """One transaction that only reads, and sees one state of the database. Raises `OperationsError`."""
    with _refusals(str(engine.url)), engine.connect() as connection, connection.begin():
        yield connection


def _add_missing_columns(connection: Connection, tables: MetaData) -> None:
    """Columns that a table of an earlier version lacks: empty in its rows, and unknown to who still writes them."""
    found = inspect(connection)
    for table in tables.sorted_tables:
        known = {column["name"] for column in found.get_columns(table.name)}
        for column in table.columns:
            if column.name not in known:
                assert column.nullable, f"{table.name}.{column.name} cannot be added to rows that are there"
                kind = column.type.compile(connection.dialect)
                name = connection.dialect.identifier_preparer.format_column(column)
                connection.execute(text(f"ALTER TABLE {table.name} ADD COLUMN {name} {kind}"))


def _prepare_sqlite(engine: Engine) -> None:
    """A write-ahead log, and transactions that begin when we say: the driver's own begin too late."""
    _begin_when_told(engine)

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _: Any) -> None:
        for pragma in ("journal_mode=WAL", "synchronous=FULL", f"busy_timeout={_LOCK_WAIT_S * 1000}"):
            connection.execute(f"PRAGMA {pragma}")


def _begin_when_told(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _: Any) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def _begun(connection: Connection) -> None:
        writes = connection.get_execution_options().get("plumbline_writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def _refusals(url: str) -> Iterator[None]:
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error) as error:
        note = mask(" ".join(str(error).split()))[:300]
        raise OperationsError(
            f"operations database {mask(url)}: it refused: {note} Check operations.database, that the server answers "
            f"and that the disk is not full; nothing was half-written."
        ) from error
