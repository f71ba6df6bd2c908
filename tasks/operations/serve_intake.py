"""Verb: the HTTP endpoint in a workspace: validate by the contract, spool, seal into batches, announce."""

from __future__ import annotations

import logging
import shutil
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from sqlalchemy import Engine

from plumbline.data_contracts.errors import PlumblineError, UsageError
from plumbline.data_contracts.records import Feedback, Quarantined
from plumbline.tasks.access.requests import checked
from plumbline.tasks.data.feedback import SOURCES
from plumbline.tasks.data.feedback.personal_data import Protect, keep, protection
from plumbline.tasks.data.feedback.validate import check_rows
from plumbline.tasks.data.ingest_feedback import ingest_feedback
from plumbline.tasks.operations.announce import announce_batches
from plumbline.tasks.operations.intake import spool
from plumbline.tasks.operations.intake.spool import Seal
from plumbline.tasks.operations.intake.tokens import Grants, token_file
from plumbline.tasks.operations.intake.writer import SpoolWriter
from plumbline.tasks.params.feedback_limits import LIMITS, Limits
from plumbline.tasks.params.whole import Params

if TYPE_CHECKING:
    from fastapi import FastAPI

_logger = logging.getLogger("plumbline.intake")
_LOOK_EVERY_S = 0.25
_DAY_S = 86_400.0
_OWN_FILES = 256  # open files beside connections


class Intake:
    """A running endpoint, less its socket: one a workspace, held by a file lock.

    `app` answers requests. Leaving the block works off what was accepted and seals it.
    """

    def __init__(self, root: Path, params: Params, server: str | None = None) -> None:
        self._root, self._params, self._server = root, params, server
        self._folder = root / ".plumbline" / "intake"
        self._ended = threading.Event()
        self._sealing = threading.Thread(target=self._seal_on, name="intake-seal", daemon=True)

    def __enter__(self) -> Intake:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        grants = Grants(token_file(self._root))
        self._lock = FileLock(self._folder / "serve.lock", timeout=0)
        try:
            self._lock.acquire()
        except Timeout:
            raise UsageError(
                f"{self._root}: another `plumbline intake serve` runs in this workspace. One is enough; end it first."
            ) from None
        self.engine = spool.open_spool(self._folder)
        feedback = self._params.feedback
        verdicts = partial(validate_rows, limits=feedback.limits(), protect=protection(feedback))
        self._writer = SpoolWriter(self.engine, verdicts)
        self._writer.start()
        self._sealing.start()
        self.app = self._application(grants)
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.stop()
        self._ended.set()
        self._sealing.join()
        self._lock.release()

    def _application(self, grants: Grants) -> FastAPI:
        from plumbline.tasks.operations.intake.app import create_app

        return create_app(
            self._writer, grants, self._params.intake, sources=SOURCES, free_bytes=lambda: free_bytes(self._folder)
        )

    def _seal_on(self) -> None:
        """Seal whenever rows are due; what cannot be sealed now stays in the spool and is tried again."""
        tried = 0
        while True:
            last = self._ended.wait(_LOOK_EVERY_S * 2 ** min(tried, 8))
            try:
                for source, batch in seal_due(self._root, self._params, self.engine, at_once=last, server=self._server):
                    _logger.info("sealed %s rows into %s", source, batch)
                tried = 0
            except Exception as error:  # a thread that ended would accept for ever and seal nothing
                tried += 1
                known = isinstance(error, PlumblineError | OSError)
                _logger.error("accepted rows stay in the spool: %s", error, exc_info=not known)
            if last:
                return


def serve(root: Path, params: Params, server: str | None = None) -> None:
    """Answer requests until a signal ends the process; events go to `server`, unless PREFECT_API_URL names another.

    Raises `UsageError` if the port is taken.
    """
    import resource
    import signal
    import socket

    import uvicorn

    from plumbline.tasks.operations.intake.connections import bounded

    # uvicorn raises the signal that ended it once more: by default that would kill us before the last seal.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    host, port = params.intake.host, params.intake.port
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = params.intake.max_connections + _OWN_FILES
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted if hard < 0 else min(wanted, hard)), hard))
    # Named TCP: only then asyncio sends an answer's parts at once, else the second waits 40 ms for the client's ACK.
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    with Intake(root, params, server) as intake, listening as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise UsageError(
                f"intake.port: cannot listen on {host}:{port} ({error.strerror}). Set intake.host or intake.port."
            ) from error
        # No header above 32 KiB; what the application logs is all that is logged.
        allowed = params.intake
        config = uvicorn.Config(
            checked(
                intake.app,
                host=host,
                allowed_hosts=allowed.allowed_hosts,
                allowed_origins=allowed.allowed_origins,
            ),
            http=bounded(params.intake.max_connections, params.intake.idle_timeout_s),
            ws="none",
            access_log=False,
            log_config=None,
            server_header=False,
            lifespan="off",
            h11_max_incomplete_event_size=32_768,
        )
        uvicorn.Server(config).run([listener])


def seal_due(
    root: Path, params: Params, engine: Engine, *, at_once: bool = False, server: str | None = None
) -> list[tuple[str, str]]:
    """Make batches of what a crash left frozen and of what is due; returns kind and batch of each."""
    limits = params.intake
    for item in spool.waiting(engine):
        if at_once or item.rows >= limits.seal_rows or item.age_s >= limits.seal_every_s:
            spool.freeze(engine, item.source)
    return [(seal.source, _land(root, params, engine, seal, server)) for seal in spool.unfinished(engine)]


def _land(root: Path, params: Params, engine: Engine, seal: Seal, server: str | None) -> str:
    """Spool -> raw store, version, outbox, event; then the spool may forget. Each step may be repeated."""
    with tempfile.TemporaryDirectory(dir=root / ".plumbline" / "intake") as name:
        path = Path(name) / f"seal-{seal.number}.jsonl"
        spool.write_seal(engine, seal, path)
        batches = ingest_feedback(root, seal.source, [path], senders=spool.senders(engine, seal))
    batch = batches[0].path.relative_to(root).as_posix()
    try:
        announce_batches(root, params, seal.source, batches, {batches[0].digest: seal.rows}, server)
    except PlumblineError as error:  # the batch is safe and versioned: the next drain or poll announces it
        _logger.warning("%s is stored and not announced yet: %s", batch, error)
    spool.done(engine, seal, batch, keep_s=params.intake.keep_keys_days * _DAY_S, keep=params.intake.keep_keys)
    return batch


def validate_rows(
    source: str, rows: Sequence[bytes], limits: Limits = LIMITS, protect: Protect = keep
) -> list[Mapping[str, Any]]:
    """A verdict for each row, by the reading and the contract that a run applies, over all rows at once.

    Where a later run finds that another batch gave an id to other content, the record goes by its content's id.
    `protect`: what params do with personal data, so that the id is that of the record.
    """
    return [_verdict(outcome) for outcome in check_rows(source, rows, "request", limits, protect)]


def _verdict(outcome: Feedback | Quarantined) -> Mapping[str, Any]:
    if not isinstance(outcome, Quarantined):
        return {"status": "accepted", "id": outcome.id}
    told = {"reason": outcome.reason, "field": outcome.field, "expected": outcome.expected, "found": outcome.found}
    return {"status": "quarantined", "id": outcome.record_id, **told}


def free_bytes(folder: Path) -> int:
    """Free space of the disk that a folder is on."""
    return shutil.disk_usage(folder).free
