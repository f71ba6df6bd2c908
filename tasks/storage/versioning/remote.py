"""The default remote of a workspace: its own folder, named relative to it, or whatever a person chose.

DVC resolves a relative URL against the folder of its configuration, so that a workspace that was moved or copied uses
its own remote. An earlier program wrote an absolute path there: `settle_remote` corrects that in `.dvc/config.local`.
A clone by git has no such folder of its own, and keeps what the configuration says.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plumbline.data_contracts.errors import VersioningError
from plumbline.tasks.storage.database.caches import kept_folder
from plumbline.tasks.storage.database.location import REMOTE, local_path, workspace_part
from plumbline.tasks.storage.versioning.git import run_git
from plumbline.tasks.storage.versioning.silence import MEMORY, silence

if TYPE_CHECKING:
    from dvc.config import Config

NAME = "storage"
ORIGIN = "origin"  # in a clone: the remote of the workspace that it was cloned from, for `dvc pull -r origin`


def read_config(root: Path) -> Config:
    """DVC's configuration, all levels of it. Raises `VersioningError`."""
    silence()
    from dvc.config import Config
    from dvc.exceptions import DvcException

    folder = root / ".dvc"
    if not folder.is_dir():
        raise VersioningError(f"{root}: expected a workspace under DVC, found no .dvc in it.")
    try:
        return Config(os.fspath(folder))
    except DvcException as error:
        raise VersioningError(f"{root}: cannot read DVC's configuration: {error}") from error


def default_remote(root: Path) -> tuple[str, dict[str, Any]] | None:
    """Name and settings of the default remote as this workspace uses it; None without one."""
    config = read_config(root)
    name = config["core"].get("remote")
    if not name:
        return None
    settings = dict(config["remote"].get(name) or {})
    if "url" not in settings:
        raise VersioningError(
            f"{root}: DVC's default remote {name} has no url. `dvc remote modify {name} url URL` sets it."
        )
    settings["url"] = own_url(root, str(settings["url"]))
    return str(name), settings


def own_url(root: Path, url: str) -> str:
    """The URL; in place of the own remote of another workspace, which this one was copied from, that of this one."""
    path, own = local_path(url), root.resolve() / REMOTE
    if path is None:
        return url
    path = os.path.normpath(path)  # DVC leaves the `..` of a relative one in it
    return str(own) if workspace_part(path, REMOTE) is not None and own.is_dir() else path


def own_remote(root: Path) -> str:
    """The workspace's own remote as DVC's configuration takes it: written relative to its file."""
    from dvc.config_schema import RelPath

    relative: str = RelPath(root.resolve() / REMOTE)
    return relative


def settle_remote(root: Path) -> None:
    """Let DVC itself use the own remote in a workspace that was moved or copied. Repeating it is free."""
    config = read_config(root)
    name = config["core"].get("remote")
    url = str((config["remote"].get(name) or {}).get("url", "")) if name else ""
    if url and own_url(root, url) != (os.path.normpath(url) if url.startswith("/") else url):
        with config.edit("local") as local:
            local["remote"].setdefault(str(name), {})["url"] = own_remote(root)


def settle_memory(root: Path) -> None:
    """Let a `dvc` that a person runs by hand here keep its memory where ours does. Repeating it is free.

    A folder that a person chose stays; another user's of ours, in a workspace that was copied, does not.
    """
    kept = kept_folder(MEMORY)
    found = read_config(root)["core"].get("site_cache_dir")
    if kept is None or found == os.fspath(kept) or (found and Path(found).parts[-2:] != kept.parts[-2:]):
        return
    with read_config(root).edit("local") as local:
        local["core"]["site_cache_dir"] = os.fspath(kept)


def name_origin(root: Path) -> Path | None:
    """In a clone by git of a workspace on this machine, name that one's remote `origin`, to pull from; return it.

    It stands in `.dvc/config.local`, so that it stays here. Nothing is pushed to it: that goes to the own remote.
    """
    try:
        source = local_path(run_git(root, "config", "--get", "remote.origin.url").strip())
    except VersioningError:  # no clone
        return None
    remote = Path(source, REMOTE) if source is not None else None
    if remote is None or not remote.is_dir() or remote.resolve() == (root / REMOTE).resolve():
        return None
    config = read_config(root)
    if ORIGIN not in config["remote"]:
        with config.edit("local") as local:
            local["remote"][ORIGIN] = {"url": str(remote)}
    return remote
