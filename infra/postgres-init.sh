#!/bin/sh
# Three databases, each with an owner of its own. Postgres runs this once, on an empty volume.
set -eu
make() {
    psql --set ON_ERROR_STOP=1 --set name="$1" --set password="$2" --username postgres <<-'SQL'
	CREATE ROLE :"name" LOGIN PASSWORD :'password';
	CREATE DATABASE :"name" OWNER :"name";
	SQL
}
make prefect "$PREFECT_DB_PASSWORD"
make mlflow "$MLFLOW_DB_PASSWORD"
make operations "$OPERATIONS_DB_PASSWORD"
