"""A user whom the system does not know, or who has no home to write to: libraries ask for both.

Containers run as a bare number, services have a home that is not there. A number names the user then, and a private
folder beneath the system's temporary one takes what libraries would write into the home. Nothing that has to last is
kept there: a signing key is asked for by name instead.
"""

from __future__ import annotations

import os
import pwd
import stat
import tempfile
from pathlib import Path

from plumbline.data_contracts.errors import UsageError

STAND_IN = "PLUMBLINE_STAND_IN_HOME"
"""The variable with the folder that stands in for a home; the user's own things are not there."""

# What is read from a home is still read there, where it is; what is written goes to the stand-in.
_READ = {
    "XDG_CONFIG_HOME": ".config",
    "HF_HOME": ".cache/huggingface",
    "PREFECT_PROFILES_PATH": ".prefect/profiles.toml",
}


def settle_account() -> None:
    """Give this process and its children a user's name and a home that can be written to, where they lack either."""
    if not _is_known():
        for name in ("LOGNAME", "USER"):
            os.environ.setdefault(name, f"uid{os.getuid()}")
    home = os.path.expanduser("~")
    if os.path.isabs(home) and os.access(home, os.W_OK | os.X_OK):
        return
    for variable, place in _READ.items():
        if (Path(home) / place).exists():
            os.environ.setdefault(variable, os.path.join(home, place))
    os.environ[STAND_IN] = os.environ["HOME"] = str(_private_folder())


def _is_known() -> bool:
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        return False
    return True


def _private_folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"plumbline-home-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise UsageError(
            f"{folder}: expected a folder that only this user can enter, because there is no home that can be written "
            f"to; found mode {stat.filemode(found.st_mode)} of user {found.st_uid}. Set HOME to a folder of this user."
        )
    return folder
