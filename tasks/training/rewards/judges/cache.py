"""Replies on disk, by the content of their question: a JSON file each, replaced atomically.

The key is the SHA-256 of the whole request and the rubric's digest; an entry holds the reply alone: no prompt, no
candidate, no address, no key. Replies that are no verdict are kept too, so that a resumed run meets the same ones;
what never arrived is not. An entry that cannot be read as whole is a miss, and is counted.

Files rather than `diskcache` (installed by way of DVC): that keeps pickles in one SQLite file, so a damaged file loses
every entry, who can write the folder can run code in ours, and network file systems lock it badly.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from plumbline.data_contracts.artifact import write_bytes
from plumbline.data_contracts.errors import JudgeError
from plumbline.tasks.training.rewards.judges.parsing import Reply


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    reply: Reply
    check: str  # SHA-256 of the reply: a flipped bit may turn one verdict into another


@dataclass(frozen=True, slots=True)
class Lookup:
    """The cache's entry of a key: a reply or none, and whether there was an entry that could not be trusted."""

    reply: Reply | None
    corrupt: bool = False


@dataclass(frozen=True, slots=True)
class ReplyCache:
    """A folder of answers; several processes may share it."""

    folder: Path

    def path(self, key: str) -> Path:
        """The path of the entry of a key (hex digits)."""
        return self.folder / key[:2] / f"{key}.json"

    def read(self, key: str) -> Lookup:
        """Look a key up. Raises `JudgeError` when the folder cannot be read."""
        try:
            entry = _Entry.model_validate_json(self.path(key).read_bytes())
        except FileNotFoundError:
            return Lookup(None)
        except ValidationError:
            return Lookup(None, corrupt=True)
        except OSError as error:
            raise self._unusable(error) from error
        if entry.key != key or entry.check != _check(entry.reply):
            return Lookup(None, corrupt=True)
        return Lookup(entry.reply)

    def write(self, key: str, reply: Reply) -> None:
        """Keep a reply. Raises `JudgeError` when the folder cannot be written."""
        path = self.path(key)
        entry = _Entry(key=key, reply=reply, check=_check(reply))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, orjson.dumps(entry.model_dump(), option=orjson.OPT_SORT_KEYS))
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> JudgeError:
        return JudgeError(
            f"{self.folder}: expected a folder to keep the judge's answers in, found {error.strerror} "
            f"({error.filename}). Free space or fix its permissions; answers already there are kept."
        )


def _check(reply: Reply) -> str:
    return hashlib.sha256(orjson.dumps(reply.model_dump(), option=orjson.OPT_SORT_KEYS)).hexdigest()
