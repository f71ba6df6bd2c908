"""Names in a listing of a folder. Others wrote it: a remote, a backup, a workspace that came from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from plumbline.data_contracts.errors import VersioningError
from plumbline.data_contracts.inner_paths import is_inner

_MARK = "plumbline_inner_alone"
_DIGEST = re.compile(r"[0-9a-f]{32}(\.dir)?")


def require_digest(digest: str) -> None:
    """Raise `VersioningError` for what is no hash: it would be taken for a path."""
    if not is_digest(digest):
        raise VersioningError(f"{digest[:80]!r}: expected an md5 of DVC, found something else.")


def is_digest(digest: str) -> bool:
    """True for an md5 of DVC, of a file or of a folder."""
    return _DIGEST.fullmatch(digest) is not None


def require_inner(names: Iterable[object], digest: str) -> None:
    """Raise `VersioningError` for a listing with a name that leads out of its folder."""
    for name in names:
        if not is_inner(name):
            raise VersioningError(f"{digest}: its listing names {str(name)[:80]!r}, which is no path inside a folder.")


def refuse_stray_listings() -> None:
    """Let DVC, in this process, write no file outside of the folder that a listing is of. Repeating it is free."""
    from dvc_data.hashfile import tree as module

    tree: Any = module.Tree
    if getattr(tree, _MARK, False):
        return
    plain = tree.from_list.__func__

    def from_list(cls: Any, entries: Any, hash_name: str | None = None) -> Any:
        listed = list(entries)
        require_inner((entry[tree.PARAM_RELPATH] for entry in listed), "a folder's hash")
        return plain(cls, listed, hash_name)

    tree.from_list = classmethod(from_list)
    setattr(tree, _MARK, True)
