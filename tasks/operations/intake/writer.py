"""One thread that validates requests and keeps them in the spool, all that wait at once.

A synced transaction costs the same for one request as for a hundred, so that what piles up while one group is worked
on becomes the next group (group commit). Each request is validated by itself: none can spoil another's verdicts.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Engine

from plumbline.tasks.operations.intake import spool
from plumbline.tasks.operations.intake.bodies import BodyRefusal, BodyRow
from plumbline.tasks.operations.intake.spool import IntakeReply, Taken

Validate = Callable[[str, Sequence[bytes]], Sequence[Mapping[str, Any]]]
"""`validate(source, rows)` gives a verdict for each row: {"status": "accepted" or "quarantined", "reason", …}."""

_GROUP_ROWS = 20_000
_GROUP_REQUESTS = 200
ACCEPTED = "accepted"


@dataclass(frozen=True, slots=True)
class Submission:
    """A request that came in whole: by whom, under which key, and its rows."""

    client: str
    source: str
    key: str
    body_sha256: str
    rows: Sequence[BodyRow]
    answer: Future[IntakeReply] = field(default_factory=Future)


class SpoolWriter:
    """Takes submissions from any thread and answers each through its future."""

    def __init__(self, engine: Engine, validate: Validate) -> None:
        self._engine, self._validate = engine, validate
        self._queue: queue.Queue[Submission | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name="intake-writer", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def stop(self) -> None:
        """Work off what waits, then end."""
        self._queue.put(None)
        self._thread.join()

    def submit(self, submission: Submission) -> Future[IntakeReply]:
        """Hand in a request; the future has its answer once that is on disk, or a `BodyRefusal`."""
        self._queue.put(submission)
        return submission.answer

    def _work(self) -> None:
        while True:
            group, last = self._next_group()
            try:
                self._take(group)
            except Exception as error:  # whatever it is, those who wait must receive it
                for item in group:
                    if not item.answer.done():
                        item.answer.set_exception(error)
            if last:
                return

    def _next_group(self) -> tuple[list[Submission], bool]:
        group: list[Submission] = []
        rows = 0
        item = self._queue.get()
        while item is not None:
            if item.answer.set_running_or_notify_cancel():  # else the client went away without an answer
                group.append(item)
                rows += len(item.rows)
            if rows >= _GROUP_ROWS or len(group) >= _GROUP_REQUESTS:
                return group, False
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return group, False
        return group, True

    def _take(self, group: Sequence[Submission]) -> None:
        validated = [(item, taken) for item in self._fresh(group) if (taken := self._validated(item)) is not None]
        kept = [taken for _, taken in validated if taken.rows]
        answers = iter(spool.keep(self._engine, kept) if kept else ())
        for item, taken in validated:
            # If nothing was accepted nothing is kept, the key neither: it is free for the corrected body.
            _settle(item, *(next(answers) if taken.rows else (item.body_sha256, taken.answer)))

    def _fresh(self, group: Sequence[Submission]) -> list[Submission]:
        """Those that were not answered before; the others are answered as then."""
        answered = spool.known(self._engine, [(item.client, item.source, item.key) for item in group])
        for item, found in zip(group, answered, strict=True):
            if found is not None:
                _settle(item, *found)
        return [item for item, found in zip(group, answered, strict=True) if found is None]

    def _validated(self, item: Submission) -> Taken | None:
        """A request with its verdicts; None if they could not be found, which only its own answer says."""
        try:
            verdicts = self._validate(item.source, [row.text for row in item.rows])
        except Exception as error:  # whatever it is: it must not be the others' fault
            item.answer.set_exception(error)
            return None
        rows = zip(item.rows, verdicts, strict=True)
        return _taken(item, [{"row": row.number, **verdict} for row, verdict in rows])


def _settle(item: Submission, digest: str, answer: IntakeReply) -> None:
    if digest == item.body_sha256:
        item.answer.set_result(answer)
    else:
        item.answer.set_exception(
            BodyRefusal(
                409, "key_reused", "this Idempotency-Key came with another body before. Use a new key for new rows."
            )
        )


def _taken(item: Submission, verdicts: Sequence[Mapping[str, Any]]) -> Taken:
    good = [row.text for row, verdict in zip(item.rows, verdicts, strict=True) if verdict["status"] == ACCEPTED]
    body = {
        "source": item.source,
        "rows": len(item.rows),
        "accepted": len(good),
        "quarantined": len(item.rows) - len(good),
        "verdicts": list(verdicts),
    }
    answer = IntakeReply(202 if good else 422, body)
    return Taken(item.client, item.source, item.key, item.body_sha256, good, answer)
