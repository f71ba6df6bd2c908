"""Artifacts of MLflow on this machine: in place where the store is local, downloaded where it is not.

What is downloaded for good lies under `.plumbline/versions`, for its owner alone, named by the manifest's SHA-256 and
the seal: other content gets another folder. It is used again as long as every file in it still has its hash.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlparse

from plumbline.tasks.registry.store.client import Store, refusals, silence
from plumbline.tasks.storage.database.caches import cache_folder

CACHE = Path(".plumbline") / "versions"


def in_place(location: str) -> Path | None:
    """The folder at `location` where it is one of this machine."""
    parsed = urlparse(location)
    return Path(unquote(parsed.path)) if parsed.scheme in ("", "file") else None


@contextmanager
def fetched(store: Store, location: str, name: str | None = None) -> Iterator[Path]:
    """A folder with the artifacts at `location` (with `name`, that one alone), gone afterwards if downloaded."""
    location = store.located(location)
    folder = in_place(location)
    if folder is not None:
        yield folder
        return
    with tempfile.TemporaryDirectory() as scratch:
        found = download(store, location if name is None else f"{location.rstrip('/')}/{name}", Path(scratch))
        yield found if name is None else found.parent


def download(store: Store, location: str, to: Path) -> Path:
    """Download into a folder; where it lies then. Raises `RegistryError`."""
    silence()
    from mlflow.artifacts import download_artifacts

    with refusals(f"downloading {location}"):
        return Path(download_artifacts(artifact_uri=location, dst_path=str(to), tracking_uri=store.uri))


def cached(store: Store, location: str, name: str, whole: Callable[[Path], bool]) -> Path:
    """The artifacts at `location` under `name` in the cache, downloaded unless they are there and still `whole`."""
    folder = cache_folder(store.root, CACHE) / name
    if folder.is_dir() and whole(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".draft-", dir=folder.parent) as scratch:
        found = download(store, location, Path(scratch) / "files")
        aside = Path(scratch) / "replaced"
        if folder.exists():
            os.replace(folder, aside)
        try:
            os.replace(found, folder)
        except OSError:  # another process put it there at the same moment
            if not folder.is_dir():
                raise
    return folder


def scratch(store: Store, location: str) -> tuple[Path, Callable[[], None]]:
    """The artifacts at `location` in a folder that is not verified, and how to remove it."""
    home = Path(tempfile.mkdtemp(prefix="plumbline-version-"))
    return download(store, location, home), lambda: shutil.rmtree(home, ignore_errors=True)
