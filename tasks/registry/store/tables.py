"""MLflow's registry tables, read with SQLAlchemy alone: importing MLflow takes longer than an audit may.

Described are the few columns that look-ups need. They are read only where the database has the very revision of the
schema that they were written for; a test holds revision and columns to MLflow's own. Everything else, and all
writing, goes through MLflow's client: a store behind HTTP, a database to be made or migrated, MLflow's workspaces.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import (
    URL,
    BigInteger,
    Column,
    Connection,
    Engine,
    Integer,
    MetaData,
    NullPool,
    StaticPool,
    String,
    Table,
    Text,
    create_engine,
    make_url,
    select,
)
from sqlalchemy.exc import SQLAlchemyError

from plumbline.tasks.storage.database.sqlite import connect_for_reading

SCHEMA_REVISION = "dc11669786a5"  # the last migration of the MLflow that these tables were read off
METADATA = MetaData()
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
DEFAULT_WORKSPACE = "default"  # MLflow's workspace if none is named
_DELETED = "Deleted_Internal"  # stage of a version that was deleted and keeps its number
_LARGEST = 2**31 - 1  # of an integer column

_REVISION = Table("alembic_version", METADATA, Column("version_num", String(32)))
_MODELS = Table("registered_models", METADATA, Column("workspace", String(63)), Column("name", String(256)))
_MODEL_TAGS = Table(
    "registered_model_tags",
    METADATA,
    Column("workspace", String(63)),
    Column("name", String(256)),
    Column("key", String(250)),
    Column("value", String(5000)),
)
_ALIASES = Table(
    "registered_model_aliases",
    METADATA,
    Column("workspace", String(63)),
    Column("name", String(256)),
    Column("alias", String(256)),
    Column("version", Integer),
)
_VERSIONS = Table(
    "model_versions",
    METADATA,
    Column("workspace", String(63)),
    Column("name", String(256)),
    Column("version", Integer),
    Column("creation_time", BigInteger),
    Column("current_stage", String(20)),
    Column("source", String(500)),
    Column("storage_location", String(500)),
    Column("run_id", String(32)),
    Column("description", String(5000)),
)
_VERSION_TAGS = Table(
    "model_version_tags",
    METADATA,
    Column("workspace", String(63)),
    Column("name", String(256)),
    Column("version", Integer),
    Column("key", String(250)),
    Column("value", Text),
)


@dataclass(frozen=True, slots=True)
class VersionRow:
    """One version as MLflow has it.

    `location` is where its files lie, `created_ms` is MLflow's clock, `source` is what it was made from.
    """

    number: str
    tags: Mapping[str, str]
    run_id: str | None
    created_ms: int
    location: str | None
    description: str | None = None
    source: str | None = None


class Tables:
    """The registry's tables of one store, read-only, a connection a question. Raises SQLAlchemy's errors."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def model(self, name: str) -> tuple[dict[str, str], dict[str, str]] | None:
        """Aliases (to version numbers) and tags of a registered model; None if there is no such model."""
        with self.reading() as connection:
            if connection.execute(_of(select(_MODELS.c.name), _MODELS, name)).first() is None:
                return None
            aliases = connection.execute(_of(select(_ALIASES.c.alias, _ALIASES.c.version), _ALIASES, name))
            tags = connection.execute(_of(select(_MODEL_TAGS.c.key, _MODEL_TAGS.c.value), _MODEL_TAGS, name))
            return {alias: str(number) for alias, number in aliases}, {key: value for key, value in tags}

    def version(self, name: str, number: str) -> VersionRow | None:
        """One version; None if there is none, or it was deleted."""
        if int(number) > _LARGEST:
            return None
        rows = self._versions(name, int(number), None)
        return rows[0] if rows else None

    def versions(self, name: str, tags: Sequence[str] | None = None) -> list[VersionRow]:
        """Every version of a model, oldest first, with all its tags or those named."""
        return self._versions(name, None, tags)

    def latest(self, name: str) -> str | None:
        """The highest number of a version; None if there is none."""
        newest = _alive(select(_VERSIONS.c.version), name).order_by(_VERSIONS.c.version.desc()).limit(1)
        with self.reading() as connection:
            number = connection.execute(newest).scalar()
        return None if number is None else str(number)

    def _versions(self, name: str, number: int | None, tags: Sequence[str] | None) -> list[VersionRow]:
        wanted = _alive(select(_VERSIONS), name).order_by(_VERSIONS.c.version)
        tagged = _of(select(_VERSION_TAGS.c.version, _VERSION_TAGS.c.key, _VERSION_TAGS.c.value), _VERSION_TAGS, name)
        if number is not None:
            wanted = wanted.where(_VERSIONS.c.version == number)
            tagged = tagged.where(_VERSION_TAGS.c.version == number)
        if tags is not None:
            tagged = tagged.where(_VERSION_TAGS.c.key.in_(tags))
        found: dict[int, dict[str, str]] = {}
        with self.reading() as connection:
            for owner, key, value in connection.execute(tagged):
                found.setdefault(owner, {})[key] = value
            return [_row(item, found.get(item.version, {})) for item in connection.execute(wanted)]

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """One transaction, so that the queries of a question see one state."""
        with self._engine.connect() as connection, connection.begin():
            yield connection


def open_tables(uri: str) -> Tables | None:
    """The tables of a store; None if it is none of our databases, or not (yet) of the revision that we read."""
    if uri.partition(":")[0].partition("+")[0] not in _DATABASES or os.environ.get("MLFLOW_ENABLE_WORKSPACES"):
        return None
    # A database that cannot be asked is no error here: MLflow's client is opened next, and says what is wrong with it.
    try:
        url = make_url(uri)
        if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
            return None  # connecting would make an empty file
        engine = create_engine(url, poolclass=NullPool)
        with engine.connect() as connection:
            revisions = list(connection.execute(select(_REVISION.c.version_num)).scalars())
    except (SQLAlchemyError, ImportError):
        return None
    return Tables(engine) if revisions == [SCHEMA_REVISION] else None


def read_tables(database: Path) -> Tables | None:
    """The tables of an SQLite file, which is not written to; None if it has another revision than we read.

    Raises SQLAlchemy's errors, and `OperationsError` for a file that may not be read.
    """
    where = URL.create("sqlite", database=str(database))
    engine = create_engine(where, creator=lambda: connect_for_reading(database), poolclass=NullPool)
    with engine.connect() as connection:
        revisions = list(connection.execute(select(_REVISION.c.version_num)).scalars())
    return Tables(engine) if revisions == [SCHEMA_REVISION] else None


def empty_tables() -> Tables:
    """The tables of a store in which nothing was ever registered."""
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    METADATA.create_all(engine)
    return Tables(engine)


def _of(query: Any, table: Table, name: str) -> Any:
    return query.where(table.c.workspace == DEFAULT_WORKSPACE, table.c.name == name)


def _alive(query: Any, name: str) -> Any:
    return _of(query, _VERSIONS, name).where(_VERSIONS.c.current_stage != _DELETED)


def _row(item: Any, tags: Mapping[str, str]) -> VersionRow:
    location = item.storage_location or item.source
    return VersionRow(
        str(item.version), tags, item.run_id, int(item.creation_time), location, item.description, item.source
    )
