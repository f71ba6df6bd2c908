"""The credentials of a workspace's services: made once, kept in one private file, shown to our own processes alone.

`.plumbline/services/credentials.json` maps a service to `user:password`. The launcher puts them into the environment of
the service that needs them; commands put Prefect's into their own, once the server has proved that it has them too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import orjson

from plumbline.data_contracts.errors import UsageError
from plumbline.tasks.access.secret_files import random_secret, read_secret, write_secret

FILE = "credentials.json"
PREFECT, MLFLOW = "prefect", "mlflow"
_USER = "plumbline"


def credentials_file(folder: Path) -> Path:
    """The file in the services' folder."""
    return folder / FILE


def make_credentials(folder: Path) -> None:
    """Make what is missing. The caller holds the lock of `up`."""
    found = find_credentials(folder)
    wanted = {name: found.get(name) or f"{_USER}:{random_secret()}" for name in (PREFECT, MLFLOW)}
    if wanted != found:
        write_secret(credentials_file(folder), orjson.dumps(wanted, option=orjson.OPT_INDENT_2) + b"\n")


def find_credentials(folder: Path) -> Mapping[str, str]:
    """By service; empty before the first `up`. Raises `UsageError` if others may read them."""
    data = read_secret(credentials_file(folder))
    if data is None:
        return {}
    try:
        loaded = orjson.loads(data)
        return {str(name): str(value) for name, value in loaded.items()}
    except (orjson.JSONDecodeError, AttributeError) as error:
        raise UsageError(
            f"{credentials_file(folder)}: expected the services' credentials as JSON, found something else ({error}). "
            f"Remove it; `plumbline up` makes new ones and starts the services again."
        ) from error


def fingerprint(folder: Path) -> str:
    """Changes with the credentials; tells nothing of them."""
    data = read_secret(credentials_file(folder))
    return "" if data is None else hashlib.sha256(data).hexdigest()[:16]
