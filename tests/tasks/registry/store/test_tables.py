"""MLflow's tables as we read them: held to MLflow's own models, and to what its client says of the same store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from plumbline.data_contracts.errors import RegistryError
from plumbline.tasks.registry.store import tables
from plumbline.tasks.registry.store.client import Store
from plumbline.tasks.registry.store.client_reader import ClientReader
from plumbline.tasks.registry.store.lookup import location_of, registered, registered_at, stage_seconds
from plumbline.tasks.registry.store.schema import METADATA, SCHEMA_REVISION
from plumbline.tasks.registry.store.tables import open_tables
from plumbline.tasks.registry.versions.listing import live_aliases, pinned_versions
from plumbline.tasks.registry.versions.registered import all_versions, resolve


def test_revision_and_columns_are_those_of_the_mlflow_that_is_installed(migrated_store: Path) -> None:
    """When MLflow is raised: compare its models with `schema.py`, then write the new revision there."""
    from mlflow.store.db.base_sql_model import Base
    from mlflow.store.model_registry.dbmodels import models as registry_models  # noqa: F401  (fills Base)
    from mlflow.store.tracking.dbmodels import models as tracking_models  # noqa: F401  (likewise)

    with create_engine(f"sqlite:///{migrated_store}").connect() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == SCHEMA_REVISION
    for name, table in METADATA.tables.items():
        if name != "alembic_version":
            theirs = Base.metadata.tables[name].columns
            assert [(c.name, str(c.type)) for c in table.columns] == [
                (c.name, str(theirs[c.name].type)) for c in table.columns
            ]


def test_what_stands_for_a_deleted_version_and_for_the_only_workspace_are_mlflows() -> None:
    from mlflow.entities.model_registry.model_version_stages import STAGE_DELETED_INTERNAL
    from mlflow.utils.workspace_utils import DEFAULT_WORKSPACE_NAME

    assert (tables._DELETED, tables.DEFAULT_WORKSPACE) == (STAGE_DELETED_INTERNAL, DEFAULT_WORKSPACE_NAME)


def _answers(store: Store, name: str) -> dict[str, Any]:
    versions = all_versions(store, name)
    return {
        "model": registered(store, name),
        "aliases": live_aliases(store, name),
        "versions": versions,
        "found": [resolve(store, uri) for uri in (name, f"models:/{name}/2", f"models:/{name}@champion")],
        "places": [location_of(store, name, version.number) for version in versions],
        "times": [registered_at(store, name, version.number) for version in versions],
        "names": store.reader.names(),
        "seconds": stage_seconds(store),
        "runs": [store.reader.runs(str(version.run_id)) for version in versions],
        "pins": {number: pin.manifest_sha256 for number, pin in pinned_versions(store, name).items()},
    }


def test_tables_and_client_say_the_same(registry: Any) -> None:
    """Three versions, one rejected and one deleted; with tables hidden, the client answers every question."""
    for key, passed in (("one", True), ("two", True), ("three", False)):
        registry.register(key, passed=passed)
    client = Store(registry.root, registry.params).client
    client.delete_model_version(registry.name, "3")
    client.set_model_version_tag(registry.name, "2", "of somebody", "tag")
    by_tables, by_client = Store(registry.root, registry.params), Store(registry.root, registry.params)
    by_client.reader = ClientReader(by_client.client)
    found = _answers(by_tables, registry.name)
    assert found == _answers(by_client, registry.name)
    assert by_tables._client is None
    assert [version.number for version in found["versions"]] == ["1", "2"]
    assert registered(by_tables, "no-such-model") is None


def test_a_number_that_no_version_can_have_is_unknown(registry: Any) -> None:
    registry.register("one")
    with pytest.raises(RegistryError, match="no such version"):
        resolve(registry.store, f"models:/{registry.name}/{10**30}")


@pytest.mark.parametrize("uri", ["http://127.0.0.1:5000", "databricks", "sqlite://", "bogus://host"])
def test_a_store_that_is_no_database_of_ours_is_left_to_the_client(uri: str) -> None:
    assert open_tables(uri) is None


def test_a_missing_database_is_not_made_and_one_of_another_revision_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    assert open_tables(f"sqlite:///{path}") is None
    assert not path.exists()
    for revision, readable in ((SCHEMA_REVISION, True), ("0123456789ab", False)):
        with create_engine(f"sqlite:///{path}").begin() as connection:
            connection.execute(text("CREATE TABLE IF NOT EXISTS alembic_version (version_num TEXT)"))
            connection.execute(text("DELETE FROM alembic_version"))
            connection.execute(text("INSERT INTO alembic_version VALUES (:revision)"), {"revision": revision})
        assert (open_tables(f"sqlite:///{path}") is not None) is readable


def test_with_workspaces_of_mlflow_its_client_is_asked(migrated_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_tables(f"sqlite:///{migrated_store}") is not None
    monkeypatch.setenv("MLFLOW_ENABLE_WORKSPACES", "true")
    assert open_tables(f"sqlite:///{migrated_store}") is None
