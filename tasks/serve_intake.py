"""Verb: the HTTP endpoint in a workspace: judge by the contract, spool, seal into batches, announce."""

from __future__ import annotations

import contextlib
import logging
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from filelock import FileLock, Timeout
from sqlalchemy import Engine

from data_contracts.errors import ContractViolation, PlumblineError, UsageError
from data_contracts.records import Feedback, PreferencePair, Quarantined, UnpairedResponse, load_jsonl
from tasks.announce import AnnounceParams, announce_batches
from tasks.curate_preferences import UNPAIRED
from tasks.feedback import SOURCES
from tasks.feedback.params import FeedbackParams
from tasks.feedback.validate import validate
from tasks.ingest_feedback import ingest_feedback
from tasks.intake import spool
from tasks.intake.desk import Desk
from tasks.intake.params import IntakeParams
from tasks.intake.spool import Seal
from tasks.intake.tokens import Door, token_file

if TYPE_CHECKING:
    from fastapi import FastAPI

_logger = logging.getLogger("plumbline.intake")
_LOOK_EVERY_S = 0.25
_DAY_S = 86_400.0
_LENIENT = FeedbackParams(quarantine_threshold=1.0, on_single_label="warn")


class ServeParams(AnnounceParams, Protocol):
    """The sections of params that are needed here."""

    @property
    def intake(self) -> IntakeParams:
        """Bounds, port and rhythm."""


class Intake:
    """A running endpoint, less its socket: one a workspace, held by a file lock.

    `app` answers requests. Leaving the block works off what was accepted and seals it.
    """

    def __init__(self, root: Path, params: ServeParams) -> None:
        self._root, self._params = root, params
        self._folder = root / ".plumbline" / "intake"
        self._ended = threading.Event()
        self._sealing = threading.Thread(target=self._seal_on, name="intake-seal", daemon=True)

    def __enter__(self) -> Intake:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        door = Door(token_file(self._root))
        self._lock = FileLock(self._folder / "serve.lock", timeout=0)
        try:
            self._lock.acquire()
        except Timeout:
            raise UsageError(
                f"{self._root}: another `plumbline intake serve` runs in this workspace. One is enough; end it first."
            ) from None
        self.engine = spool.open_spool(self._folder)
        judge_rows("human_pairs", [b"{}"])  # loads what a check needs, so that the first request does not wait
        self._desk = Desk(self.engine, judge_rows)
        self._desk.start()
        self._sealing.start()
        self.app = self._application(door)
        return self

    def __exit__(self, *_: object) -> None:
        self._desk.stop()
        self._ended.set()
        self._sealing.join()
        self._lock.release()

    def _application(self, door: Door) -> FastAPI:
        from tasks.intake.app import create_app

        return create_app(
            self._desk, door, self._params.intake, sources=SOURCES, free_bytes=lambda: free_bytes(self._folder)
        )

    def _seal_on(self) -> None:
        """Seal whenever rows are due; what cannot be sealed now stays in the spool and is tried again."""
        tried = 0
        while True:
            last = self._ended.wait(_LOOK_EVERY_S * 2 ** min(tried, 8))
            try:
                for source, batch in seal_due(self._root, self._params, self.engine, at_once=last):
                    _logger.info("sealed %s rows into %s", source, batch)
                tried = 0
            except Exception as error:  # a thread that ended would accept for ever and seal nothing
                tried += 1
                known = isinstance(error, PlumblineError | OSError)
                _logger.error("accepted rows stay in the spool: %s", error, exc_info=not known)
            if last:
                return


def serve(root: Path, params: ServeParams) -> None:
    """Answer requests until the process is told to end. Raises `UsageError` where the port is taken."""
    import signal
    import socket

    import uvicorn

    # uvicorn raises the signal that ended it once more: by default that would kill us before the last seal.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    host, port = params.intake.host, params.intake.port
    with Intake(root, params) as intake, socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise UsageError(
                f"intake.port: cannot listen on {host}:{port} ({error.strerror}). Set intake.host or intake.port."
            ) from error
        # No header above 32 KiB; what the application logs is all that is logged.
        config = uvicorn.Config(
            intake.app,
            access_log=False,
            log_config=None,
            server_header=False,
            lifespan="off",
            h11_max_incomplete_event_size=32_768,
        )
        uvicorn.Server(config).run([listener])


def seal_due(root: Path, params: ServeParams, engine: Engine, *, at_once: bool = False) -> list[tuple[str, str]]:
    """Make batches of what a crash left frozen and of what is due; returns kind and batch of each."""
    limits = params.intake
    for item in spool.waiting(engine):
        if at_once or item.rows >= limits.seal_rows or item.age_s >= limits.seal_every_s:
            spool.freeze(engine, item.source)
    return [(seal.source, _land(root, params, engine, seal)) for seal in spool.unfinished(engine)]


def _land(root: Path, params: ServeParams, engine: Engine, seal: Seal) -> str:
    """Spool -> raw store, version, outbox, event; then the spool may forget. Each step may be repeated."""
    with tempfile.TemporaryDirectory(dir=root / ".plumbline" / "intake") as name:
        path = Path(name) / f"seal-{seal.number}.jsonl"
        spool.write_seal(engine, seal, path)
        batches = ingest_feedback(root, seal.source, [path])
    batch = batches[0].path.relative_to(root).as_posix()
    try:
        announce_batches(root, params, seal.source, batches, {batches[0].digest: seal.rows})
    except PlumblineError as error:  # the batch is safe and versioned: the next drain or poll announces it
        _logger.warning("%s is stored and not announced yet: %s", batch, error)
    spool.done(engine, seal, batch, keep_s=params.intake.keep_keys_days * _DAY_S)
    return batch


def judge_rows(source: str, rows: Sequence[bytes]) -> list[Mapping[str, Any]]:
    """A verdict for each row, by the very reading and contract check that a run applies, over all rows at once.

    An id that a later run finds to have other content in another batch is quarantined then.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / "rows.jsonl"
        file.write_bytes(b"".join(row + b"\n" for row in rows))
        with contextlib.suppress(ContractViolation):  # not one valid row; the files are written all the same
            validate([(source, "request", file)], _LENIENT, folder)
        verdicts = _verdicts(folder)
    return [verdicts[line] for line in range(1, len(rows) + 1)]


def _verdicts(folder: Path) -> dict[int, Mapping[str, Any]]:
    found: dict[int, Mapping[str, Any]] = {}
    accepted: Iterator[Feedback] = load_jsonl(folder / "accepted.jsonl", PreferencePair)
    if (folder / UNPAIRED).exists():
        accepted = load_jsonl(folder / UNPAIRED, UnpairedResponse)
    for record in accepted:
        found[record.origin.line] = {"status": "accepted", "id": record.id}
    for row in load_jsonl(folder / "quarantine.jsonl", Quarantined):
        told = {"reason": row.reason, "field": row.field, "expected": row.expected, "found": row.found}
        found[row.line] = {"status": "quarantined", "id": row.record_id, **told}
    return found


def free_bytes(folder: Path) -> int:
    """Free space of the disk that a folder is on."""
    return shutil.disk_usage(folder).free
