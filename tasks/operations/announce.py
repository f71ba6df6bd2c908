"""Verb: send the Prefect server an event for what is new, so that no event can be lost.

The order is batch, version, outbox row, event. Whatever dies between two steps, `reconcile` finds the batch
without a row and `drain_outbox` the row without a confirmed event; both run at every drain and every poll.

Events are posted to the server's events API and looked for there afterwards: `prefect.events.emit_event`
sends in the background and loses an event, without an error, where no server listens. An event has an id made from
its workspace and key, and the server keeps one of an id.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine

from plumbline.data_contracts.artifact import sha256_file
from plumbline.data_contracts.errors import OperationsError
from plumbline.data_contracts.secrets import mask
from plumbline.tasks.access.identity import who_answers
from plumbline.tasks.data.feedback.batches import Batch
from plumbline.tasks.data.feedback.validate import raw_batches
from plumbline.tasks.data.ingest_feedback import arrived_batches, has_arrived, version_raw
from plumbline.tasks.data.validate_feedback import RAW
from plumbline.tasks.operations.freshness import outbox
from plumbline.tasks.operations.freshness.outbox import OutboxEntry
from plumbline.tasks.operations.services.addresses import known_server
from plumbline.tasks.operations.services.health import (
    foreign_server,
    given_credentials,
    refused_credentials,
    why_silent,
)
from plumbline.tasks.operations.services.temporary import TEMPORARY
from plumbline.tasks.params.whole import Params
from plumbline.tasks.storage.database import open_database, read_database
from plumbline.tasks.storage.database.outbox_tables import METADATA, utc_now

if TYPE_CHECKING:
    import httpx

EVENTS: Mapping[str, str] = {"batch": "preferences.fresh", "finding": "monitor.finding"}
"""Kind of entry -> the name of its event."""

_DIGEST_NAME = re.compile(r"[0-9a-f]{16}")
_REQUEST_S = 30.0
_AGAIN_S = (0.5, 2.0, 5.0)  # pauses before a request is sent again
_LOOK_EVERY_S = 0.3
_CHUNK = 50  # events of one request


def workspace_id(root: Path) -> str:
    """The name of a workspace in events: 16 hex characters of the SHA-256 of its real path."""
    return hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]


def open_outbox(root: Path, params: Params) -> Engine:
    """The operations database with the tables of fresh data."""
    return open_database(root, params.operations, METADATA)


def read_outbox(root: Path, params: Params) -> Engine:
    """As `open_outbox`, to read alone: nothing is made or written."""
    return read_database(root, params.operations, METADATA)


def batch_key(source: str, digest: str) -> str:
    """The outbox key of a batch: its kind of feedback and the start of its digest, as its file is named."""
    return f"{source}/{digest[:16]}"


def announce_batches(
    root: Path,
    params: Params,
    source: str,
    batches: Sequence[Batch],
    rows: Mapping[str, int],
    server: str | None = None,
) -> list[OutboxEntry]:
    """Enter stored and versioned batches into the outbox, then send the events if a server is configured.

    `rows` counts the rows of each batch by digest, `server` is what Prefect's settings name. Returns the entries as
    they then stand: `emitted_at` is None for those that the server has not confirmed.
    """
    engine = open_outbox(root, params)
    entries = [
        put_batch(engine, root, source, batch.path, batch.digest, rows=rows.get(batch.digest)) for batch in batches
    ]
    if api_url(server) is not None:
        told = {entry.key: entry for entry in drain_outbox(root, params, server)}
        entries = [told.get(entry.key, entry) for entry in entries]
    return entries


def request_retraining(root: Path, params: Params, *, key: str, why: str, evidence: Mapping[str, Any]) -> OutboxEntry:
    """Put a finding's request into the outbox, for `drain_outbox` to send; the same key asks once.

    Returns the entry as it stands.
    """
    payload = {"why": why, "evidence": dict(evidence)}
    return outbox.put(
        open_outbox(root, params), kind="finding", subject=why, payload=payload, key=key, workspace=workspace_id(root)
    )


def drain_outbox(root: Path, params: Params, server: str | None = None) -> list[OutboxEntry]:
    """Send every event that the server has not confirmed; return the entries that it now has.

    Batches in the raw store that were never announced are entered first. An entry that the server does not
    confirm in time stays pending. Raises `OperationsError` when events wait and no server is configured or answers.
    """
    engine = open_outbox(root, params)
    reconcile(root, params)
    waiting = outbox.pending(engine)
    if not waiting:
        return []
    with closing(_client(root, server)) as client:  # a client that was used already cannot be entered
        there = _deliver(client, root, waiting, params.trigger.confirm_timeout_s)
    for entry in waiting:
        if entry.event_id in there:
            outbox.mark_emitted(engine, entry.key)
    told = {standing.entry.key: standing.entry for standing in outbox.entry_states(engine)}
    return [told[entry.key] for entry in waiting if entry.event_id in there]


def reconcile(root: Path, params: Params) -> list[OutboxEntry]:
    """Enter batches that were accepted and have no outbox row: left by a crash, or put there by other means.

    What waited for a run to end comes into the raw store, if it has ended.
    """
    engine = open_outbox(root, params)
    arrived = arrived_batches(root)
    if has_arrived(root):
        version_raw(root)
    known = {standing.entry.key for standing in outbox.entry_states(engine)}
    lost = {name: (source, path) for source, name, path in [*arrived, *raw_batches(root / RAW, within=root)]}
    unknown = [
        (source, root / name, path, key)
        for name, (source, path) in lost.items()
        if (key := _key_of(source, path)) not in known
    ]
    if not unknown:
        return []
    version_raw(root)
    return [
        put_batch(engine, root, source, final, sha256_file(final if final.exists() else path), key=key)
        for source, final, path, key in unknown
    ]


def put_batch(
    engine: Engine, root: Path, source: str, path: Path, digest: str, *, rows: int | None = None, key: str | None = None
) -> OutboxEntry:
    """Enter one batch of the raw store."""
    batch = path.resolve().relative_to(root.resolve()).as_posix()
    payload = {"source": source, "batch": batch, "sha256": digest, "rows": rows}
    named = key or batch_key(source, digest)
    return outbox.put(engine, kind="batch", subject=batch, payload=payload, key=named, workspace=workspace_id(root))


def api_url(configured: str | None = None) -> str | None:
    """The API of the Prefect server: PREFECT_API_URL, or what Prefect's settings name (`configured`); None without one.

    A temporary server of this process is none: events sent to it end with it.
    """
    url = os.environ.get("PREFECT_API_URL") or configured
    return url.rstrip("/") if url and url != os.environ.get(TEMPORARY) else None


def _key_of(source: str, path: Path) -> str:
    stem = path.name.partition(".")[0]
    return batch_key(source, stem if _DIGEST_NAME.fullmatch(stem) else sha256_file(path))


def _client(root: Path, server: str | None) -> httpx.Client:
    """A client of the server's API, found healthy. Raises `OperationsError`.

    Our own server proves that it is ours each time: a watch that runs for days may outlive it.
    """
    import httpx

    url = api_url(server)
    if url is None:
        raise OperationsError(
            "no Prefect server is configured, so events stay in the outbox. Run `plumbline up`, or set "
            "PREFECT_API_URL; the next `plumbline outbox drain` or poll sends them."
        )
    own = known_server(root)
    if own is not None and own.own and own.url == url:
        secret = os.environ.get("PREFECT_API_AUTH_STRING")
        if who_answers(url, secret) == "foreign":
            raise OperationsError(f"{foreign_server(url)} Events stay in the outbox.")
    client = httpx.Client(base_url=url, headers=given_credentials(), timeout=_REQUEST_S)
    try:
        _ask(client, "GET", "/health")
    except httpx.HTTPError as error:
        client.close()
        raise _unreachable(url, error) from error
    return client


def _ask(server: httpx.Client, method: str, path: str, **content: Any) -> httpx.Response:
    """One request, sent again where the server is busy (503) or slow: an event's id makes it count once."""
    import httpx

    for pause in _AGAIN_S:
        with suppress(httpx.TimeoutException):
            answer = server.request(method, path, **content)
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                return answer.raise_for_status()
        time.sleep(pause)
    return server.request(method, path, **content).raise_for_status()


def _deliver(server: httpx.Client, root: Path, entries: Sequence[OutboxEntry], timeout_s: float) -> set[str]:
    """Post what the server does not have yet and wait until it has all, or the time is up; the ids that it has."""
    import httpx

    wanted = [entry.event_id for entry in entries]
    try:
        there = _confirmed(server, wanted)
        missing = [entry for entry in entries if entry.event_id not in there]
        for start in range(0, len(missing), _CHUNK):
            events = [_event(root, entry) for entry in missing[start : start + _CHUNK]]
            _ask(server, "POST", "/events", json=events)
        until = time.monotonic() + timeout_s
        while len(there) < len(set(wanted)) and time.monotonic() < until:
            time.sleep(_LOOK_EVERY_S)
            there |= _confirmed(server, [event_id for event_id in wanted if event_id not in there])
    except httpx.HTTPError as error:
        raise _unreachable(str(server.base_url), error) from error
    return there


def _confirmed(server: httpx.Client, ids: Collection[str]) -> set[str]:
    """Which of these events the server has written down."""
    found: set[str] = set()
    listed = list(ids)
    for start in range(0, len(listed), _CHUNK):
        # Without `occurred` the server looks back 180 days only, which is longer than it keeps events.
        query = {"filter": {"id": {"id": listed[start : start + _CHUNK]}}, "limit": _CHUNK}
        answer = _ask(server, "POST", "/events/filter", json=query)
        try:
            found |= {event["id"] for event in answer.json()["events"]}
        except (ValueError, KeyError, TypeError) as error:
            raise OperationsError(
                f"{server.base_url}: expected a Prefect server's list of events, found another answer: "
                f"{answer.text[:80]!r}. Is PREFECT_API_URL the address of its API? Events stay in the outbox."
            ) from error
    return found


def _event(root: Path, entry: OutboxEntry) -> dict[str, Any]:
    told = {"root": str(root.resolve()), "key": entry.key, "kind": entry.kind, "subject": entry.subject}
    return {
        "id": entry.event_id,
        "event": EVENTS[entry.kind],
        "occurred": utc_now().isoformat(),
        "resource": {
            "prefect.resource.id": f"plumbline.workspace.{workspace_id(root)}",
            "prefect.resource.name": root.resolve().name,
        },
        "payload": {**dict(entry.payload), **told},
    }


def _unreachable(url: str, error: Exception) -> OperationsError:
    from httpx import HTTPStatusError

    if isinstance(error, HTTPStatusError) and error.response.status_code == 401:
        return OperationsError(f"{refused_credentials(url)} Events stay in the outbox.")
    return OperationsError(
        f"{mask(url)}: expected a healthy Prefect server, found: {why_silent(error)}. Events "
        f"stay in the outbox; start the server (`plumbline up`) and run `plumbline outbox drain`, or wait for the poll."
    )
