"""A quiet MLflow client for one store, and the experiment its runs and models live in."""

from __future__ import annotations

import logging
import os
import sqlite3
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from plumbline.data_contracts.errors import RegistryError
from plumbline.data_contracts.private_files import make_private_file
from plumbline.data_contracts.private_names import private_names
from plumbline.data_contracts.secrets import mask
from plumbline.tasks.params.registry import RegistryParams
from plumbline.tasks.params.section import from_environment
from plumbline.tasks.registry.store.client_reader import ClientReader
from plumbline.tasks.registry.store.locations import require_inside, settle
from plumbline.tasks.registry.store.reader import RegistryReader
from plumbline.tasks.registry.store.tables import empty_tables, open_tables, read_tables
from plumbline.tasks.storage.database.location import ARTIFACTS, record_location
from plumbline.tasks.storage.database.sqlite import copy_database, sqlite_url

if TYPE_CHECKING:
    from mlflow import MlflowClient

DATABASE = "mlflow.db"
_GLOBAL_URI = threading.Lock()
_OPENING = threading.RLock()


def silence() -> None:
    """Turn off MLflow's telemetry and the chatter of its migrations in this process."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    import mlflow  # noqa: F401  (configures its logger on import, so it has to come first)

    for name in ("mlflow", "alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.ERROR)


def store_uri(root: Path, params: RegistryParams) -> str:
    """The store's URI: as given, from the environment variable given, or SQLite under `.plumbline` of the workspace.

    Raises `ParamsError` when the variable is not set.
    """
    given = params.tracking_uri
    if given is None:
        return sqlite_url(root.resolve() / ".plumbline" / DATABASE)
    return from_environment(given, "registry.tracking_uri", "an MLflow URI")


class Store:
    """One MLflow store. Opening it creates or migrates the database, seconds the first time.

    `reader` answers look-ups: from the tables of a database of the revision that we read ourselves, else by MLflow's
    client. The client's import takes seconds, so it is opened by the first use of it. With `read_only` nothing is
    made, migrated or written: where the client is needed for a database of the workspace's own, it gets a private copy.
    """

    def __init__(self, root: Path, params: RegistryParams, *, read_only: bool = False) -> None:
        self.root = root.resolve()
        self.params = params
        self.uri = store_uri(root, params)
        self.is_own = params.tracking_uri is None
        self._client: MlflowClient | None = None
        self._copy: tempfile.TemporaryDirectory[str] | None = None
        self._reads_only = read_only and self.is_own
        if self._reads_only:
            self.reader: RegistryReader = self._read()
            return
        self._settle()
        tables = open_tables(self.uri)
        if tables is None:
            _ = self.client
            tables = open_tables(self.uri)
            self._settle()
        self.reader = tables or ClientReader(self.client)

    def located(self, location: str) -> str:
        """Present place of artifacts. Raises `RegistryError` for one outside of a workspace that has its own store."""
        return require_inside(location, self.root) if self.is_own else location

    def _settle(self) -> None:
        """Let locations follow a workspace that was moved or copied."""
        if self.is_own:
            record_location(self.root)
            if self._database.is_file():
                with refusals(f"MLflow store {self.name} cannot be opened"), _OPENING:
                    settle(self._database, self.root)

    def _read(self) -> RegistryReader:
        """Reads the own database; one of another revision, in a private copy that MLflow migrates."""
        if not self._database.exists():
            return empty_tables()
        with refusals(f"MLflow store {self.name} cannot be read"):
            found = read_tables(self._database)
        if found is not None:
            return found
        client = self.client
        return open_tables(self.uri) or ClientReader(client)

    @property
    def _database(self) -> Path:
        return self.root / ".plumbline" / DATABASE

    @property
    def client(self) -> MlflowClient:
        """MLflow's client. Raises `RegistryError` when the store cannot be opened."""
        with _OPENING:
            if self._client is None:
                self._client = self._open()
            return self._client

    @property
    def name(self) -> str:
        """The URI for messages, its password masked."""
        return mask(self.uri)

    def _open(self) -> MlflowClient:
        silence()
        from mlflow import MlflowClient

        with refusals(f"MLflow store {self.name} cannot be opened"), _OPENING:
            if self._reads_only:
                self._copy = tempfile.TemporaryDirectory(prefix="plumbline-read-", ignore_cleanup_errors=True)
                copy = Path(self._copy.name) / DATABASE
                if self._database.exists():
                    copy_database(self._database, copy)
                self.uri = f"sqlite:///{copy}"
            elif self.is_own:
                _make_database(self._database)
            client = MlflowClient(self.uri, self.uri)
            client.get_experiment_by_name(self.params.experiment)
        return client

    def experiment_id(self) -> str:
        """The experiment's id; it is made where missing, with artifacts beside the SQLite file."""
        with refusals(f"experiment {self.params.experiment!r}"), _OPENING:
            found = self.client.get_experiment_by_name(self.params.experiment)
            if found is not None:
                if found.lifecycle_stage != "active":
                    raise RegistryError(
                        f"experiment {self.params.experiment!r} was deleted in MLflow. Restore it, or choose another "
                        f"name in registry.experiment."
                    )
                self.located(str(found.artifact_location))
                return str(found.experiment_id)
            location = (self.root / ARTIFACTS).as_uri() if self.is_own else None
            return str(self.client.create_experiment(self.params.experiment, artifact_location=location))

    @contextmanager
    def as_default(self) -> Iterator[None]:
        """Make this store the process's default: MLflow's SQL registry looks up logged models there alone."""
        import mlflow

        with _GLOBAL_URI:
            # The setter also writes an environment variable, which would leak into child processes.
            before, variable = mlflow.get_tracking_uri(), os.environ.get("MLFLOW_TRACKING_URI")
            mlflow.set_tracking_uri(self.uri)
            try:
                yield
            finally:
                mlflow.set_tracking_uri(before)
                if variable is None:
                    os.environ.pop("MLFLOW_TRACKING_URI", None)
                else:
                    os.environ["MLFLOW_TRACKING_URI"] = variable


def _make_database(path: Path) -> None:
    """Make MLflow's database if there is none: under another name, renamed once it is whole.

    SQLite commits each statement of MLflow's migrations by itself. A kill among them, in the seconds that the first
    opening takes, would leave a database that MLflow can neither open nor migrate.
    """
    with private_names("mlflow"):
        from mlflow.store.db.utils import _safe_initialize_tables, create_sqlalchemy_engine

    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f"{path.name}.lock")):
        if path.exists():  # another process was here first
            return
        for left in path.parent.glob(f".{path.name}.draft-*"):
            left.unlink()
        draft = path.with_name(f".{path.name}.draft-{os.getpid()}")
        make_private_file(draft, path.parent.parent)
        engine = create_sqlalchemy_engine(f"sqlite:///{draft}")
        try:
            _safe_initialize_tables(engine)
        except BaseException:
            engine.dispose()
            for left in path.parent.glob(f"{draft.name}*"):
                left.unlink()
            raise
        engine.dispose()
        draft.replace(path)


@contextmanager
def refusals(what: str) -> Iterator[None]:
    """Turn MLflow's, its transport's and its database's errors into `RegistryError`, naming `what` was tried."""
    try:
        yield
    except Exception as error:
        if not _is_of_the_store(error):
            raise
        note = mask(" ".join(str(error).split()))[:400]
        raise RegistryError(
            f"{what}: MLflow refused: {note} Check that it answers at registry.tracking_uri (`plumbline doctor`), then "
            f"run again: finished stages are kept."
        ) from error


def _is_of_the_store(error: Exception) -> bool:
    from sqlalchemy.exc import SQLAlchemyError

    if isinstance(error, SQLAlchemyError | sqlite3.Error):
        return True
    # they raise nothing before they are imported
    libraries = (("mlflow.exceptions", "MlflowException"), ("requests", "RequestException"))
    return any(
        isinstance(error, getattr(sys.modules[module], name)) for module, name in libraries if module in sys.modules
    )
