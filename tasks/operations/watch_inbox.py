"""Verb: take files that are dropped into the inbox of a workspace, and announce them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from plumbline.data_contracts.errors import PlumblineError, UsageError
from plumbline.data_contracts.extras import needs_extra
from plumbline.tasks.data.feedback import SOURCES
from plumbline.tasks.data.ingest_feedback import count_rows, ingest_feedback
from plumbline.tasks.operations.announce import announce_batches
from plumbline.tasks.operations.intake.inbox import Handled, Inbox
from plumbline.tasks.params.intake import IntakeParams
from plumbline.tasks.params.whole import Params

Report = Callable[[str], None]

_SETTLE_LOOKS = 4  # looks at a file in the time that it has to stay unchanged
_SHORTEST_LOOK_MS = 50


def scan_inbox(root: Path, params: Params, report: Report, server: str | None = None) -> list[Handled]:
    """Take what is whole now, once. Raises `UsageError` if a watcher runs."""
    with _one_watcher(root):
        return _inbox(root, params, report, server).scan()


def watch_inbox(
    root: Path, params: Params, report: Report, *, server: str | None = None, stop: threading.Event | None = None
) -> None:
    """Take what is there and what comes, until `stop` is set. Raises `UsageError` if another watcher runs."""
    inbox, ended = _inbox(root, params, report, server), stop or threading.Event()
    with _one_watcher(root):
        while not ended.is_set():
            inbox.prepare()
            _watch(inbox, params.intake, report, ended)


def _watch(inbox: Inbox, params: IntakeParams, report: Report, ended: threading.Event) -> None:
    """Scan at every notice of the system; return where the folder was deleted or replaced, to be made again."""
    with needs_extra("inbox", "watching the inbox"):
        from watchfiles import watch

    watched = inbox.folder.stat().st_ino
    look_ms = max(_SHORTEST_LOOK_MS, int(1000 * params.settle_s / _SETTLE_LOOKS))
    full_every = max(1, int(1000 * params.rescan_s / look_ms))
    _told(inbox, report)
    notices = watch(
        inbox.folder,
        watch_filter=None,
        debounce=_SHORTEST_LOOK_MS,
        step=20,
        rust_timeout=look_ms,
        yield_on_timeout=True,
        stop_event=ended,
        raise_interrupt=True,
    )
    for count, changes in enumerate(notices, 1):
        if not inbox.folder.is_dir() or inbox.folder.stat().st_ino != watched:
            report(f"{inbox.folder} was deleted or replaced; watching it anew")
            return
        if changes or inbox.settling() or count % full_every == 0:
            _told(inbox, report)


def _told(inbox: Inbox, report: Report) -> None:
    try:
        for handled in inbox.scan():
            report(f"{handled.source or '.'}/{handled.name!r}: {handled.outcome}, {handled.detail}")
    except FileNotFoundError as error:  # the folder went away under the scan; the next look makes it again
        report(f"{error.filename}: went away")


def _inbox(root: Path, params: Params, report: Report, server: str | None) -> Inbox:
    def take(source: str, path: Path) -> str:
        batches = ingest_feedback(root, source, [path], params.feedback.limits())
        try:
            announce_batches(root, params, source, batches, count_rows(batches), server)
        except PlumblineError as error:  # stored and versioned: the next drain or poll announces it
            report(f"{batches[0].path.name}: stored, not announced yet: {error}")
        return batches[0].digest

    return Inbox(root / params.intake.inbox, tuple(SOURCES), take, params.intake.settle_s)


@contextmanager
def _one_watcher(root: Path) -> Iterator[None]:
    path = root / ".plumbline" / "inbox.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path, timeout=0):
            yield
    except Timeout:
        raise UsageError(
            f"{root}: another process watches this inbox. One is enough; end it first, or leave the files to it."
        ) from None
