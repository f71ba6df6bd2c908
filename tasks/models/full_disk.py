"""A full disk, reported by writers that lose the operating system's error: torch, safetensors and tokenizers."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from plumbline.data_contracts.artifact import full_disk_as_stage_error
from plumbline.data_contracts.errors import PlumblineError

_LOW_BYTES = 1 << 20
_SAYINGS = {
    "No space left": errno.ENOSPC,
    "quota exceeded": errno.EDQUOT,
    "File too large": errno.EFBIG,
}


@contextmanager
def full_disk_named(folder: Path) -> Iterator[None]:
    """`full_disk_as_stage_error` that also knows what torch, safetensors and tokenizers raise when a write fails."""
    with full_disk_as_stage_error(folder):
        try:
            yield
        except (OSError, PlumblineError):
            raise
        # tokenizers raises bare Exception
        except Exception as error:
            code = _errno_of(error, folder)
            if code is None:
                raise
            first = (str(error).splitlines() or [""])[0]
            raise OSError(code, f"no space left for a model or checkpoint ({first})") from error


def _errno_of(error: BaseException, folder: Path) -> int | None:
    text = str(error)
    for saying, code in _SAYINGS.items():
        if saying in text:
            return code
    # torch's writer says only that it failed, or that it is not where it should be
    if "PytorchStreamWriter failed writing" in text or "unexpected pos" in text:
        return errno.ENOSPC
    return errno.ENOSPC if shutil.disk_usage(folder).free < _LOW_BYTES else None
