"""Params of `intake`."""

from __future__ import annotations

from pydantic import Field

from plumbline.data_contracts.nesting import MAX_LEVELS
from plumbline.tasks.params.host_names import HostName, Origin
from plumbline.tasks.params.section import Section


class IntakeParams(Section):
    """How feedback comes in by itself: a watched folder, and an HTTP endpoint with bounds on all that is sent to it."""

    inbox: str = Field(
        default="inbox",
        min_length=1,
        description="The watched folder, in the workspace or absolute: a file dropped into <inbox>/<source>/ is "
        "ingested as feedback of that kind.",
    )
    settle_s: float = Field(
        default=1.0,
        gt=0,
        le=3600,
        description="Seconds for which a file must not change before it counts as whole. Hidden names and .part, .tmp, "
        ".crdownload never count: write under such a name and rename.",
    )
    rescan_s: float = Field(
        default=30.0, gt=0, le=3600, description="Seconds between full looks at the inbox, beside the system's notices."
    )
    host: str = Field(
        default="127.0.0.1",
        min_length=1,
        description="Address that the endpoint listens on. It speaks plain HTTP: put a proxy with TLS before any other "
        "than loopback.",
    )
    port: int = Field(default=8787, ge=1, le=65_535, description="Port of the endpoint.")
    allowed_hosts: list[HostName] = Field(
        default_factory=list,
        description="Names beside loopback's and `host` under which the endpoint may be asked (the Host header), "
        "without a port: those of a proxy before it.",
    )
    allowed_origins: list[Origin] = Field(
        default_factory=list,
        description="Origins beside its own (https://name[:port]) whose pages may ask. It sends no CORS headers: those "
        "are the proxy's.",
    )
    max_body_bytes: int = Field(
        default=5_000_000, ge=1_000, description="Largest request body as sent, in bytes; more is answered 413."
    )
    max_decoded_bytes: int = Field(
        default=25_000_000, ge=1_000, description="Largest request body once gzip is undone, in bytes; more is a 413."
    )
    max_rows: int = Field(default=10_000, ge=1, description="Most rows of one request; more is answered 413.")
    max_values: int = Field(
        default=400_000, ge=100, description="Most JSON values of one request, in rows and inside them; more is a 413."
    )
    max_depth: int = Field(
        default=64,
        ge=4,
        le=MAX_LEVELS,
        description="Most levels of lists and objects in one row; more is answered 400.",
    )
    max_held_bytes: int = Field(
        default=200_000_000,
        ge=1_000_000,
        description="Bytes of request bodies held at a time, of all clients; more is answered 429. Parsed, a body "
        "takes up to ten times its size.",
    )
    max_connections: int = Field(
        default=1000,
        ge=1,
        description="Connections at a time. For one more, that which is unused for the longest is closed.",
    )
    idle_timeout_s: float = Field(
        default=10.0,
        gt=0,
        description="Seconds after which a connection is closed that sends no whole request head, or reads no answer.",
    )
    max_waiting: int = Field(
        default=128, ge=1, description="Requests worked on at a time; one more is answered 429 with Retry-After."
    )
    requests_per_s: float = Field(
        default=500.0, gt=0, description="Requests a second of one token, over a burst of twice as many; more is a 429."
    )
    read_timeout_s: float = Field(
        default=15.0, gt=0, description="Seconds in which a request body must have come in whole; later is a 408."
    )
    seal_every_s: float = Field(
        default=10.0,
        gt=0,
        description="Seconds after which accepted rows become a batch of the raw store. Until then they lie in the "
        "spool, which survives a crash.",
    )
    seal_rows: int = Field(default=5_000, ge=1, description="Accepted rows that become a batch without waiting.")
    min_free_bytes: int = Field(
        default=200_000_000, ge=0, description="Free disk space, in bytes, below which requests are answered 507."
    )
    keep_keys_days: float = Field(
        default=30.0, gt=0, description="Days for which an Idempotency-Key and its answer are remembered."
    )
    keep_keys: int = Field(
        default=100_000,
        ge=0,
        description="Newest Idempotency-Keys that are remembered whatever the clock says: it may jump by a month.",
    )
