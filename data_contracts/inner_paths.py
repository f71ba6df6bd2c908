"""Names of files inside a folder, as a manifest, a backup or a listing of objects spells them: others wrote them."""

from __future__ import annotations


def is_inner(name: object) -> bool:
    """Whether a name, joined to a folder, stays in it: relative, in plain parts, and none of git's own files."""
    if not isinstance(name, str) or "\0" in name:
        return False
    return all(part not in ("", ".", "..") and part.lower() != ".git" for part in name.split("/"))
