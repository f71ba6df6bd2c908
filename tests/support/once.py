"""Worlds that take long: made once for all workers, and kept until anything changes that could decide their bytes."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from importlib.metadata import distributions
from pathlib import Path

from filelock import FileLock

from plumbline.tasks.params.registry import RegistryParams
from plumbline.tasks.registry.signing.key_files import make_key
from plumbline.tasks.registry.store.client import Store

REPOSITORY = Path(__file__).resolve().parents[2]
KEPT = REPOSITORY / ".pytest_cache" / "plumbline"
KEY = KEPT / "signing.key"
SOURCES = ("data_contracts", "flows", "tasks")


def give_key(config: Path) -> None:
    """Put the tests' own signing key in a configuration folder: one key, so that all trust what one of them signed."""
    if not KEY.is_file():
        make_key(KEY)
    place = config / "plumbline" / KEY.name
    place.parent.mkdir(mode=0o700, parents=True)
    shutil.copy2(KEY, place)


def made_once(name: str, ingredients: tuple[Path, ...], make: Callable[[Path], None], copy: Path) -> Path:
    """A copy of the folder that `make` fills, kept under a digest of all sources, of packages and of `ingredients`.

    The first worker makes it while the others wait. Another suite, with other sources, may remove what is kept.
    """
    KEPT.mkdir(parents=True, exist_ok=True)
    with FileLock(KEPT / f"{name}.lock"):
        folder = KEPT / f"{name}-{_digest(ingredients)}"
        if not folder.is_dir():
            for old in KEPT.glob(f"{name}-*"):
                shutil.rmtree(old)
            draft = KEPT / f".{name}.draft"
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir()
            make(draft)
            draft.rename(folder)
        shutil.copytree(folder, copy, symlinks=True)
    return copy


def copy_workspace(source: Path, target: Path) -> None:
    """A workspace at another path that looks as if it had been made there."""
    shutil.copytree(source, target, symlinks=True)
    Store(target, RegistryParams())  # lets the locations in the database follow
    (target / ".plumbline/location.json").write_text(json.dumps({"root": str(target.resolve()), "before": []}))


@functools.cache
def _digest(ingredients: tuple[Path, ...]) -> str:
    sources = [path for name in SOURCES for path in (REPOSITORY / name).rglob("*")]
    told = hashlib.sha256(sys.version.encode())
    for path in sorted({*sources, *ingredients, Path(__file__), KEY}):
        if path.is_file() and path.suffix != ".pyc":
            told.update(f"\n{os.path.relpath(path, REPOSITORY)} ".encode())
            told.update(hashlib.sha256(path.read_bytes()).digest())
    installed = sorted(f"{each.metadata['Name']}=={each.version}" for each in distributions())
    return hashlib.sha256(told.digest() + "\n".join(installed).encode()).hexdigest()[:20]
