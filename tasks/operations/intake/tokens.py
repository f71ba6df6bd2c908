"""Bearer tokens of the endpoint: made once, shown once, kept as SHA-256 hashes in a file that only its owner reads.

A token is 256 random bits, so that a plain hash is enough: there is nothing to guess.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import orjson

from plumbline.data_contracts.artifact import write_synced
from plumbline.data_contracts.errors import UsageError

VARIABLE = "PLUMBLINE_INTAKE_TOKENS"
"""Environment variable with tokens, separated by spaces or commas; each may send every kind of feedback.

It is read at the start: to revoke such a token, restart the endpoint. One made by `create_token` is revoked at once.
"""

_PREFIX = "plt_"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_SHORTEST = 20  # characters of a token given by hand in the environment


@dataclass(frozen=True, slots=True)
class Grant:
    """The rights of a token. `sources` empty: every kind of feedback."""

    name: str
    sha256: str
    sources: tuple[str, ...] = ()
    created_at: str = ""

    def allows(self, source: str) -> bool:
        """True if feedback of this kind may be sent."""
        return not self.sources or source in self.sources


def token_file(root: Path) -> Path:
    """The file with the hashes of a workspace's tokens."""
    return root / ".plumbline" / "intake" / "tokens.json"


def create_token(path: Path, name: str, sources: Sequence[str] = ()) -> str:
    """Make a token, keep its hash, and return it: it cannot be read again. A name that is there is replaced.

    Raises `UsageError` for a name that would not be fit for a log line.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"token name {name!r}: expected 1 to 64 letters, digits, '.', '_' or '-'.")
    token = _PREFIX + secrets.token_urlsafe(32)
    made = datetime.now(UTC).isoformat(timespec="seconds")
    others = [grant for grant in _from_file(path) if grant.name != name]
    _write(path, [*others, Grant(name, _hash(token), tuple(sources), made)])
    return token


def revoke_token(path: Path, name: str) -> None:
    """Forget a token. Raises `UsageError` if there is none of that name."""
    grants = _from_file(path)
    if name not in {grant.name for grant in grants}:
        raise UsageError(f"token {name}: no such token; there are {', '.join(g.name for g in grants) or 'none'}.")
    _write(path, [grant for grant in grants if grant.name != name])


def token_names(path: Path) -> list[str]:
    """Names of the tokens that were made and not revoked."""
    return [grant.name for grant in _from_file(path)]


def load_grants(path: Path) -> list[Grant]:
    """Every grant, of the file and of the environment. Raises `UsageError` if there is none, or others may read it.

    A running endpoint reads the file again for each look-up that fails or whenever it changed, so that a new or
    revoked token counts at once.
    """
    grants = [*_from_file(path), *_from_environment()]
    if not grants:
        raise UsageError(
            f"no token: nobody could send feedback. Make one with `plumbline intake token NAME`, or set {VARIABLE}."
        )
    return grants


def find_grant(header: str | None, grants: Iterable[Grant]) -> Grant | None:
    """The grant of an `Authorization: Bearer …` header, compared in constant time with every hash."""
    scheme, _, token = (header or "").partition(" ")
    presented = _hash(token.strip()) if scheme.lower() == "bearer" and token.strip() else ""
    found = None
    for grant in grants:
        if hmac.compare_digest(grant.sha256, presented):
            found = grant
    return found


class Grants:
    """The grants of a running endpoint, read anew whenever the file changes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = self._stamp()
        self._grants = load_grants(path)

    def find(self, header: str | None) -> Grant | None:
        """The grant that a header proves, or None."""
        stamp = self._stamp()
        if stamp != self._seen:
            self._grants = [*_from_file(self._path), *_from_environment()]
            self._seen = stamp
        return find_grant(header, self._grants)

    def _stamp(self) -> tuple[int, int] | None:
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return None
        return status.st_mtime_ns, status.st_ino


def _from_file(path: Path) -> list[Grant]:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read()
    except FileNotFoundError:
        return []
    if stat.S_IMODE(mode) & 0o077:
        raise UsageError(
            f"{path}: expected a file that only its owner can read, found mode {stat.S_IMODE(mode):o}. `chmod 600` it, "
            f"and make new tokens if others may have read it."
        )
    try:
        return [Grant(**{**item, "sources": tuple(item["sources"])}) for item in orjson.loads(data)]
    except (orjson.JSONDecodeError, TypeError, KeyError) as error:
        raise UsageError(f"{path}: expected tokens as `plumbline intake token` writes them: {error}.") from error


def _from_environment() -> list[Grant]:
    given = re.split(r"[,\s]+", os.environ.get(VARIABLE, "").strip())
    tokens = [token for token in given if token]
    if any(len(token) < _SHORTEST for token in tokens):
        raise UsageError(f"{VARIABLE}: expected tokens of {_SHORTEST} characters or more, found a shorter one.")
    return [Grant(f"env-{number}", _hash(token)) for number, token in enumerate(tokens, 1)]


def _write(path: Path, grants: Sequence[Grant]) -> None:
    """Replace the file; it is never readable by others, not for a moment."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, name = tempfile.mkstemp(prefix=".tokens-", dir=path.parent)  # mode 0600
    write_synced(handle, orjson.dumps([asdict(grant) for grant in grants], option=orjson.OPT_INDENT_2))
    os.replace(name, path)


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
