"""Pseudonyms of users: they distinguish users in the log without their names.

A pseudonym is an HMAC-SHA256 of the user that a request names, cut to 128 bits. Without the key nobody can try names
against the log; with the key deleted, what was logged belongs to nobody any more.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import time
from functools import partial
from pathlib import Path

from plumbline.data_contracts.errors import ParamsError
from plumbline.tasks.operations.serving.service import Pseudonym

KEY_FILE = Path(".plumbline") / "users.key"
_BYTES = 32
_WAIT_S = 5.0


def pseudonyms(root: Path, place: str | None) -> Pseudonym:
    """The pseudonyms of a workspace; `place` is `serving.log.user_key`. Raises `ParamsError` for a key too short."""
    if place is None:
        key = _own_key(root / KEY_FILE)
    elif place.startswith("$"):
        key = os.environ.get(place[1:], "")
    else:
        key = _read(root / place)
    if len(key) < _BYTES:
        raise ParamsError(
            f"serving.log.user_key: expected a secret of at least {_BYTES} characters, found {len(key)}. Make one with "
            f"`openssl rand -hex 32`, in {place or KEY_FILE}."
        )
    return partial(pseudonym, key.encode())


def pseudonym(key: bytes, user: str) -> str:
    """32 hexadecimal digits, always the same for a user and a key."""
    return hmac.new(key, user.encode(errors="surrogatepass"), hashlib.sha256).hexdigest()[:32]


def _own_key(file: Path) -> str:
    """The workspace's own key, made if there is none; of two servers that make one, the first wins."""
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        until = time.monotonic() + _WAIT_S
        while not (key := _read(file)) and time.monotonic() < until:  # the other is about to write it
            time.sleep(0.01)
        return key
    with os.fdopen(descriptor, "w") as made:
        made.write(secrets.token_hex(_BYTES))
    return _read(file)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ParamsError(f"serving.log.user_key: expected a readable file {file}, found {error.strerror}.") from error
