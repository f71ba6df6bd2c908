"""A Postgres database saved by `pg_dump`, in its custom format; the password stands in no command line."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from sqlalchemy import make_url

from plumbline.data_contracts.errors import OperationsError
from plumbline.data_contracts.secrets import mask


def is_postgres(url: str) -> bool:
    """True if it is the URL of a Postgres database, whatever driver it names."""
    return url.startswith(("postgresql://", "postgresql+", "postgres://"))


def dump_postgres(url: str, to: Path) -> None:
    """Save one database; `pg_restore` brings it back. Raises `OperationsError`."""
    program = shutil.which("pg_dump")
    if program is None:
        raise OperationsError(
            f"{mask(url)}: expected `pg_dump` on PATH to save it, found none. Install Postgres's client programs of "
            f"the server's version and run again."
        )
    parts = make_url(url)
    plain = parts.set(drivername="postgresql", password=None).render_as_string(hide_password=False)
    environment = {**os.environ, **({"PGPASSWORD": str(parts.password)} if parts.password else {})}
    command = [program, "--format=custom", "--no-password", f"--file={to}", f"--dbname={plain}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OperationsError(f"{mask(url)}: pg_dump refused: {mask(done.stderr.strip())[:400]}")
