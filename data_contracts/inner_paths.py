"""Folders that are written into, and names of files inside them as a manifest, a backup or a listing spells them."""

from __future__ import annotations

from pathlib import Path

from plumbline.data_contracts.errors import UsageError


def require_new_folder(to: Path) -> None:
    """Raise `UsageError` unless `to` is an empty folder, or not there."""
    if holds_content(to):
        raise UsageError(f"{to}: expected a new or empty folder, found content. Choose another folder.")


def holds_content(to: Path) -> bool:
    """True if something is there already: a file of that name, or a folder that is not empty."""
    return to.exists() and (not to.is_dir() or any(to.iterdir()))


def is_inner(name: object) -> bool:
    """True if a name, joined to a folder, stays in it: relative, in plain parts, and none of git's own files."""
    if not isinstance(name, str) or "\0" in name:
        return False
    return all(part not in ("", ".", "..") and part.lower() != ".git" for part in name.split("/"))
