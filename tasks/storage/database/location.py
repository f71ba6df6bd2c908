"""The folder where a workspace lies, and those where it lay before: state that names its folder follows it.

`.plumbline/location.json` holds the folder of the last command that wrote. A workspace of an earlier program has no
such file: its folder is then read from what that program recorded (MLflow's experiments, the plan of the services,
DVC's remote). A copy beside the living original counts as moved too: it never uses the original's files.
"""

from __future__ import annotations

import configparser
import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from filelock import FileLock

from plumbline.data_contracts.artifact import write_bytes
from plumbline.data_contracts.private_files import make_private
from plumbline.tasks.storage.database.sqlite import connect_for_reading

STATE = Path(".plumbline")
ARTIFACTS = STATE / "mlartifacts"
REMOTE = STATE / "remote"
MLFLOW = STATE / "mlflow.db"
_FILE = STATE / "location.json"
_KEPT = 20  # folders that are remembered


@dataclass(frozen=True, slots=True)
class Location:
    """The real path of a workspace, and its paths before, the last one at the end."""

    root: Path
    before: tuple[str, ...] = ()

    @property
    def moved_from(self) -> str | None:
        """The path before this one, if there was another."""
        return self.before[-1] if self.before else None


def find_location(root: Path) -> Location:
    """Find the present and former places of the workspace, without writing anything."""
    root = root.resolve()
    recorded, before = _read(root) or (_derived(root), ())
    if recorded is None or recorded == str(root):
        return Location(root, before)
    earlier = [path for path in before if path not in (recorded, str(root))]
    return Location(root, (*earlier, recorded)[-_KEPT:])


def record_location(root: Path) -> Location:
    """As `find_location`, and kept for the commands that come. Called by whatever writes into the workspace."""
    root = root.resolve()
    found = _read(root)
    if found is not None and found[0] == str(root):
        return Location(root, found[1])
    make_private(root / STATE)
    with FileLock(root / STATE / "location.lock"):
        location = find_location(root)
        content = {"root": str(root), "before": list(location.before)}
        write_bytes(root / _FILE, json.dumps(content, indent=2).encode() + b"\n")  # ASCII: a path may be no UTF-8
    return location


def workspace_part(path: str, marker: Path) -> tuple[str, str] | None:
    """A path cut into the workspace that it names and the rest from `marker` on; None if it has no such part."""
    head, found, rest = path.rpartition(f"/{marker.as_posix()}")
    if not found or (rest and not rest.startswith("/")):
        return None
    return head, f"{marker.as_posix()}{rest}"


def local_path(location: str) -> str | None:
    """The path of a `file:` URI or a plain path; None for every other kind of location."""
    if location.startswith("file:"):
        return unquote(urlsplit(location).path)
    return location if location.startswith("/") else None


def _read(root: Path) -> tuple[str, tuple[str, ...]] | None:
    try:
        content: Any = json.loads((root / _FILE).read_bytes())
        return str(content["root"]), tuple(map(str, content["before"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):  # half a file, or none of ours: as if an earlier program had been here
        return None


def _derived(root: Path) -> str | None:
    """The folder that an earlier program recorded; None if it recorded none."""
    sources: tuple[Callable[[Path], Iterator[str]], ...] = (_of_mlflow, _of_services, _of_dvc)
    return next((found for source in sources for found in source(root)), None)


def _of_mlflow(root: Path) -> Iterator[str]:
    if not (root / MLFLOW).is_file():
        return
    with suppress(sqlite3.Error), closing(connect_for_reading(root / MLFLOW)) as connection:
        rows = connection.execute("SELECT artifact_location FROM experiments WHERE experiment_id != 0").fetchall()
        yield from _workspaces(ARTIFACTS, (str(location) for (location,) in rows))


def _of_services(root: Path) -> Iterator[str]:
    with suppress(OSError, ValueError, KeyError, TypeError):
        yield str(json.loads((root / STATE / "services" / "plan.json").read_bytes())["root"])


def _of_dvc(root: Path) -> Iterator[str]:
    if not (root / REMOTE).is_dir():  # a clone by git: the remote that its configuration names is the original's
        return
    config = configparser.RawConfigParser()
    with suppress(OSError, configparser.Error, UnicodeDecodeError):
        config.read_string((root / ".dvc" / "config").read_text(encoding="utf-8"))
        yield from _workspaces(REMOTE, (config[section].get("url", "") for section in config.sections()))


def _workspaces(marker: Path, locations: Iterator[str]) -> Iterator[str]:
    for location in locations:
        path = local_path(location)
        cut = workspace_part(path, marker) if path is not None else None
        if cut is not None:
            yield cut[0]
