"""DVC without analytics, update checks, logs and progress bars, and with a memory of its own.

What DVC remembers of files and links it keeps as pickles, which run code when they are read, by default in
/var/tmp/dvc, where every user of the machine may replace them. Here they are in the user's own cache folder.
"""

from __future__ import annotations

import logging
import os

from plumbline.tasks.storage.database.caches import own_folder

MEMORY = "dvc"


def silence() -> None:
    """Turn off DVC's analytics, update checks, logging and progress bars in this process; keep its memory private."""
    os.environ.setdefault("DVC_NO_ANALYTICS", "1")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("DVC_SITE_CACHE_DIR", os.fspath(own_folder(MEMORY)))
    import dvc  # noqa: F401  (configures its loggers on import, so it has to come first)

    for name in ("dvc", "dvc_data", "dvc_objects", "scmrepo"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
