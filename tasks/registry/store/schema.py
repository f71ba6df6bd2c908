"""The columns of MLflow's tables that look-ups read, and the revision of its schema that they were written for.

A test holds revision and columns to the MLflow that is installed.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Boolean, Column, Float, Integer, MetaData, String, Table, Text

SCHEMA_REVISION = "dc11669786a5"  # the last migration of the MLflow that these tables were read off
METADATA = MetaData()


def _table(name: str, /, **columns: Any) -> Table:
    return Table(name, METADATA, *(Column(column, kind) for column, kind in columns.items()))


REVISION = _table("alembic_version", version_num=String(32))

_MODEL = {"workspace": String(63), "name": String(256)}
MODELS = _table("registered_models", **_MODEL)
MODEL_TAGS = _table("registered_model_tags", **_MODEL, key=String(250), value=String(5000))
ALIASES = _table("registered_model_aliases", **_MODEL, alias=String(256), version=Integer)
VERSIONS = _table(
    "model_versions",
    **_MODEL,
    version=Integer,
    creation_time=BigInteger,
    current_stage=String(20),
    source=String(500),
    storage_location=String(500),
    run_id=String(32),
    description=String(5000),
)
VERSION_TAGS = _table("model_version_tags", **_MODEL, version=Integer, key=String(250), value=Text)

EXPERIMENTS = _table("experiments", experiment_id=Integer, **_MODEL)
RUNS = _table(
    "runs",
    run_uuid=String(32),
    experiment_id=Integer,
    status=String(20),
    end_time=BigInteger,
    lifecycle_stage=String(20),
    artifact_uri=String(200),
)
RUN_PARAMS = _table("params", run_uuid=String(32), key=String(250), value=String(8000))
RUN_TAGS = _table("tags", run_uuid=String(32), key=String(250), value=String(8000))
METRICS = _table("metrics", run_uuid=String(32), key=String(250), value=Float(53), timestamp=BigInteger, is_nan=Boolean)
LATEST_METRICS = _table("latest_metrics", run_uuid=String(32), key=String(250), value=Float(53), is_nan=Boolean)
INPUTS = _table(
    "inputs",
    input_uuid=String(36),
    source_type=String(36),
    source_id=String(36),
    destination_type=String(36),
    destination_id=String(36),
)
INPUT_TAGS = _table("input_tags", input_uuid=String(36), name=String(255), value=String(500))
DATASETS = _table("datasets", dataset_uuid=String(36), name=String(500), digest=String(36))

LOGGED_METRICS = _table("logged_model_metrics", model_id=String(36), metric_name=String(500), metric_value=Float(53))
LOGGED_PARAMS = _table("logged_model_params", model_id=String(36), param_key=String(255), param_value=Text)
LOGGED_TAGS = _table("logged_model_tags", model_id=String(36), tag_key=String(255), tag_value=Text)
