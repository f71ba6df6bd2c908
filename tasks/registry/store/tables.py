"""Look-ups in MLflow's tables with SQLAlchemy alone: importing MLflow takes longer than an audit may.

They are read only where the database has the very revision of `schema`. Everything else, and all writing, goes
through MLflow's client: a store behind HTTP, a database to be made or migrated, MLflow's workspaces.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, NullPool, StaticPool, Table, create_engine, make_url, or_, select
from sqlalchemy.exc import SQLAlchemyError

from plumbline.tasks.registry.store.reader import (
    CONTEXT,
    CURVE,
    PARENT,
    REUSED_TAG,
    SECONDS,
    STAGE_TAG,
    RunRecord,
    VersionRecord,
)
from plumbline.tasks.registry.store.schema import (
    ALIASES,
    DATASETS,
    EXPERIMENTS,
    INPUT_TAGS,
    INPUTS,
    LATEST_METRICS,
    LOGGED_METRICS,
    LOGGED_PARAMS,
    LOGGED_TAGS,
    METADATA,
    METRICS,
    MODEL_TAGS,
    MODELS,
    REVISION,
    RUN_PARAMS,
    RUN_TAGS,
    RUNS,
    SCHEMA_REVISION,
    VERSION_TAGS,
    VERSIONS,
)
from plumbline.tasks.storage.database.sqlite import connect_for_reading

_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
DEFAULT_WORKSPACE = "default"  # MLflow's workspace if none is named
_DELETED = "Deleted_Internal"  # stage of a version that was deleted and keeps its number
_LARGEST = 2**31 - 1  # of an integer column


class TableReader:
    """A `RegistryReader` of one database, a connection for each question. Raises SQLAlchemy's errors."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def names(self) -> list[str]:
        """Names of the registered models."""
        named = select(MODELS.c.name).where(MODELS.c.workspace == DEFAULT_WORKSPACE).order_by(MODELS.c.name)
        with self._reading() as connection:
            return list(connection.execute(named).scalars())

    def model(self, name: str) -> tuple[dict[str, str], dict[str, str]] | None:
        """Aliases (to version numbers) and tags of a registered model; None if there is no such model."""
        with self._reading() as connection:
            if connection.execute(_of(select(MODELS.c.name), MODELS, name)).first() is None:
                return None
            aliases = connection.execute(_of(select(ALIASES.c.alias, ALIASES.c.version), ALIASES, name))
            tags = connection.execute(_of(select(MODEL_TAGS.c.key, MODEL_TAGS.c.value), MODEL_TAGS, name))
            return {alias: str(number) for alias, number in aliases}, {key: value for key, value in tags}

    def version(self, name: str, number: str) -> VersionRecord | None:
        """One version; None if there is none, or it was deleted."""
        if not number.isdecimal() or int(number) > _LARGEST:
            return None
        rows = self._versions(name, int(number), None)
        return rows[0] if rows else None

    def versions(self, name: str, tags: Sequence[str] | None = None) -> list[VersionRecord]:
        """Every version of a model, oldest first, with all its tags or those named."""
        return self._versions(name, None, tags)

    def latest(self, name: str) -> str | None:
        """The highest number of a version; None if there is none."""
        newest = _alive(select(VERSIONS.c.version), name).order_by(VERSIONS.c.version.desc()).limit(1)
        with self._reading() as connection:
            number = connection.execute(newest).scalar()
        return None if number is None else str(number)

    def location(self, name: str, number: str) -> str | None:
        """The location of a version's files."""
        row = self.version(name, number)
        return None if row is None else row.location

    def runs(self, run_id: str) -> dict[str, RunRecord]:
        """The run and the runs of its stages by id, deleted ones too, without curves of training: a query a table."""
        with self._reading() as connection:
            return _read_runs(connection, run_id)

    def stage_seconds(self, experiment: str) -> dict[str, float]:
        """Seconds of each stage's last run that ended well and was no reuse, by the stage's name."""
        stage, reused, seconds = RUN_TAGS.alias(), RUN_TAGS.alias(), LATEST_METRICS.c
        wanted = (
            select(stage.c.value, seconds.value)
            .select_from(RUNS)
            .join(EXPERIMENTS, EXPERIMENTS.c.experiment_id == RUNS.c.experiment_id)
            .join(stage, (stage.c.run_uuid == RUNS.c.run_uuid) & (stage.c.key == STAGE_TAG))
            .join(reused, (reused.c.run_uuid == RUNS.c.run_uuid) & (reused.c.key == REUSED_TAG))
            .join(LATEST_METRICS, (seconds.run_uuid == RUNS.c.run_uuid) & (seconds.key == SECONDS))
            .where(EXPERIMENTS.c.name == experiment, EXPERIMENTS.c.workspace == DEFAULT_WORKSPACE)
            .where(RUNS.c.status == "FINISHED", RUNS.c.lifecycle_stage == "active", reused.c.value == "false")
            .order_by(RUNS.c.end_time)
        )
        with self._reading() as connection:
            return {name: float(value) for name, value in connection.execute(wanted)}

    def logged_model(self, model_id: str) -> RunRecord:
        """MLflow's entry of a logged model beside its files."""
        found = RunRecord(model_id, deleted=False)
        shown = (
            (LOGGED_METRICS, lambda key, value: found.metrics.setdefault(key, set()).add(value)),
            (LOGGED_PARAMS, found.params.__setitem__),
            (LOGGED_TAGS, found.tags.__setitem__),
        )
        with self._reading() as connection:
            for table, keep in shown:
                _, key, value = table.c
                for row in connection.execute(select(key, value).where(table.c.model_id == model_id)):
                    keep(*row)
        return found

    def _versions(self, name: str, number: int | None, tags: Sequence[str] | None) -> list[VersionRecord]:
        wanted = _alive(select(VERSIONS), name).order_by(VERSIONS.c.version)
        tagged = _of(select(VERSION_TAGS.c.version, VERSION_TAGS.c.key, VERSION_TAGS.c.value), VERSION_TAGS, name)
        if number is not None:
            wanted = wanted.where(VERSIONS.c.version == number)
            tagged = tagged.where(VERSION_TAGS.c.version == number)
        if tags is not None:
            tagged = tagged.where(VERSION_TAGS.c.key.in_(tags))
        found: dict[int, dict[str, str]] = {}
        with self._reading() as connection:
            for owner, key, value in connection.execute(tagged):
                found.setdefault(owner, {})[key] = value
            return [_row(item, found.get(item.version, {})) for item in connection.execute(wanted)]

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        """One transaction, so that the queries of a question see one state."""
        with self._engine.connect() as connection, connection.begin():
            yield connection


def open_tables(uri: str) -> TableReader | None:
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
            revisions = list(connection.execute(select(REVISION.c.version_num)).scalars())
    except (SQLAlchemyError, ImportError):
        return None
    return TableReader(engine) if revisions == [SCHEMA_REVISION] else None


def read_tables(database: Path) -> TableReader | None:
    """The tables of an SQLite file, which is not written to; None if it has another revision than we read.

    Raises SQLAlchemy's errors, and `OperationsError` for a file that may not be read.
    """
    where = URL.create("sqlite", database=str(database))
    engine = create_engine(where, creator=lambda: connect_for_reading(database), poolclass=NullPool)
    with engine.connect() as connection:
        revisions = list(connection.execute(select(REVISION.c.version_num)).scalars())
    return TableReader(engine) if revisions == [SCHEMA_REVISION] else None


def empty_tables() -> TableReader:
    """The tables of a store in which nothing was ever registered."""
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    METADATA.create_all(engine)
    return TableReader(engine)


def _of(query: Any, table: Table, name: str) -> Any:
    return query.where(table.c.workspace == DEFAULT_WORKSPACE, table.c.name == name)


def _alive(query: Any, name: str) -> Any:
    return _of(query, VERSIONS, name).where(VERSIONS.c.current_stage != _DELETED)


def _row(item: Any, tags: Mapping[str, str]) -> VersionRecord:
    location = item.storage_location or item.source
    return VersionRecord(
        str(item.version), tags, item.run_id, int(item.creation_time), location, item.description, item.source
    )


def _read_runs(connection: Connection, run_id: str) -> dict[str, RunRecord]:
    children = select(RUN_TAGS.c.run_uuid).where(RUN_TAGS.c.key == PARENT, RUN_TAGS.c.value == run_id)
    wanted = select(RUNS).where(or_(RUNS.c.run_uuid == run_id, RUNS.c.run_uuid.in_(children)))
    found = {
        row.run_uuid: RunRecord(row.run_uuid, row.lifecycle_stage == "deleted", artifacts=row.artifact_uri or "")
        for row in connection.execute(wanted)
    }
    ids = list(found)
    for table in (METRICS, LATEST_METRICS):
        figures = select(table.c.run_uuid, table.c.key, table.c.value, table.c.is_nan)
        own = table.c.run_uuid.in_(ids), table.c.key.not_like(f"{CURVE}%")
        for run, key, value, nan in connection.execute(figures.where(*own)):
            found[run].metrics.setdefault(key, set()).add(float("nan") if nan else value)
    for run, key, value in _pairs(connection, RUN_PARAMS, ids):
        found[run].params[key] = value
    for run, key, value in _pairs(connection, RUN_TAGS, ids):
        found[run].tags[key] = value
    for run, name, digest, context in _inputs(connection, ids):
        found[run].datasets[name] = (digest, context or "")
    return found


def _pairs(connection: Connection, table: Table, ids: Sequence[str]) -> Iterable[Any]:
    columns = select(table.c.run_uuid, table.c.key, table.c.value)
    return connection.execute(columns.where(table.c.run_uuid.in_(ids)))


def _inputs(connection: Connection, ids: Sequence[str]) -> Iterable[Any]:
    """Datasets of the runs with the context of each: a join, one query."""
    joined = INPUTS.join(DATASETS, DATASETS.c.dataset_uuid == INPUTS.c.source_id).outerjoin(
        INPUT_TAGS, (INPUT_TAGS.c.input_uuid == INPUTS.c.input_uuid) & (INPUT_TAGS.c.name == CONTEXT)
    )
    columns = select(INPUTS.c.destination_id, DATASETS.c.name, DATASETS.c.digest, INPUT_TAGS.c.value)
    of_runs = INPUTS.c.destination_type == "RUN", INPUTS.c.destination_id.in_(ids)
    return connection.execute(columns.select_from(joined).where(*of_runs))
