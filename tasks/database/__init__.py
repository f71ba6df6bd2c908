"""The operations database: what has to survive a crash and be agreed on by several processes.

SQLite beside the workspace, or Postgres for more than one machine. Each noun keeps its own tables in
a `MetaData` of its own and gives it to `open_database`. Write inside `writing`, read inside
`reading`: on SQLite `writing` takes the write lock at once, so that what it reads cannot change before it commits.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, MetaData, create_engine, event, inspect, text
from sqlalchemy.exc import SQLAlchemyError

from data_contracts.errors import OperationsError
from data_contracts.params import from_environment
from data_contracts.private_files import make_private, make_private_file
from data_contracts.secrets import mask
from tasks.database.params import OperationsParams

_MAKING_TABLES = 7_043_117  # a number of our own for Postgres's lock while tables are made
_LOCK_WAIT_S = 30  # SQLite: how long a writer waits for another before it fails


def database_url(root: Path, params: OperationsParams) -> str:
    """The URL: as given, from the environment variable given, or SQLite under `.plumbline`. Raises `ParamsError`."""
    given = params.database
    if given is None:
        return f"sqlite:///{root.resolve() / '.plumbline' / 'operations.db'}"
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

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _: Any) -> None:
        connection.isolation_level = None
        for pragma in ("journal_mode=WAL", "synchronous=FULL", f"busy_timeout={_LOCK_WAIT_S * 1000}"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begun(connection: Connection) -> None:
        writes = connection.get_execution_options().get("plumbline_writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def _refusals(url: str) -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        note = mask(" ".join(str(error).split()))[:300]
        raise OperationsError(
            f"operations database {mask(url)}: it refused: {note} Check operations.database, that the server answers "
            f"and that the disk is not full; nothing was half-written."
        ) from error
