"""MLflow's server and UI behind credentials and checks of Host and Origin, started as a module.

What `mlflow server` runs, in one process: MLflow's own accounts (`--app-name basic-auth`) would bring a database, one
more package and a slow hash for each request, for one user. Here every path but `/health` asks for the workspace's
credentials.
"""

from __future__ import annotations

import os

import uvicorn

from plumbline.data_contracts.errors import RegistryError
from plumbline.tasks.access.requests import BasicCredentials, Proving, checked
from plumbline.tasks.access.serving_arguments import server_arguments
from plumbline.tasks.registry.store.client import silence

CREDENTIALS = "PLUMBLINE_MLFLOW_CREDENTIALS"
_OPEN = ("/health",)


def main(argv: list[str] | None = None) -> None:
    """Serve the store of MLFLOW_BACKEND_STORE_URI until a signal ends it."""
    given = server_arguments((__doc__ or "").splitlines()[0], argv)
    secret = os.environ.pop(CREDENTIALS, "")
    if not secret:
        raise RegistryError(f"{CREDENTIALS}: expected credentials in the environment, found none. Use `plumbline up`.")
    _settle_environment(given.allowed_origin)
    from mlflow.server.fastapi_app import app

    guarded = checked(
        Proving(BasicCredentials(app, secret, _OPEN), secret, given.port),
        host=given.host,
        allowed_hosts=given.allowed_host,
        allowed_origins=given.allowed_origin,
    )
    uvicorn.run(guarded, host=given.host, port=given.port, log_level="warning", server_header=False)


def _settle_environment(origins: list[str]) -> None:
    """Set the environment that `mlflow server` gives its application; make or migrate the store."""
    silence()
    from mlflow.server import constants, handlers

    store = os.environ["MLFLOW_BACKEND_STORE_URI"]
    artifacts = os.environ.get("MLFLOW_DEFAULT_ARTIFACT_ROOT", "mlflow-artifacts:/")  # MLflow's own default
    os.environ.update(
        {
            # Ours is asked first: MLflow's own takes names like 10.example.com for the local network.
            "MLFLOW_SERVER_ALLOWED_HOSTS": "*",
            "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": ",".join(origins),
            constants.BACKEND_STORE_URI_ENV_VAR: store,
            constants.REGISTRY_STORE_URI_ENV_VAR: store,
            constants.ARTIFACT_ROOT_ENV_VAR: artifacts,
            constants.SERVE_ARTIFACTS_ENV_VAR: "true",
            constants.ARTIFACTS_DESTINATION_ENV_VAR: os.environ["MLFLOW_ARTIFACTS_DESTINATION"],
        }
    )
    handlers.initialize_backend_stores(store, store, artifacts)


if __name__ == "__main__":
    main()
