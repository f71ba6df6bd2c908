"""DVC without analytics, update checks, logs and progress bars."""

from __future__ import annotations

import logging
import os


def silence() -> None:
    """Turn off DVC's analytics, update checks, logging and progress bars in this process."""
    os.environ.setdefault("DVC_NO_ANALYTICS", "1")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    import dvc  # noqa: F401  (configures its loggers on import, so it has to come first)

    for name in ("dvc", "dvc_data", "dvc_objects", "scmrepo"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
