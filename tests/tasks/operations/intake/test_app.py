"""The bounds of the endpoint that a whole process does not show well, on the real application and spool."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy.exc import OperationalError

from plumbline.tasks.operations.intake import spool
from plumbline.tasks.operations.intake.app import create_app
from plumbline.tasks.operations.intake.tokens import Grants, create_token, revoke_token, token_file
from plumbline.tasks.operations.intake.writer import SpoolWriter
from plumbline.tasks.params.intake import IntakeParams

BODY = b'{"id": "a", "prompt": "q?", "chosen": "yes", "rejected": "no"}\n'
Send = Callable[..., list[httpx.Response]]


@pytest.fixture
def send(tmp_path: Path) -> Iterator[Send]:
    """Send bodies one after another: `send(bodies, free=bytes, between=call, **params)`."""
    token = create_token(token_file(tmp_path), "tester")
    create_token(token_file(tmp_path), "another")
    writer = SpoolWriter(spool.open_spool(tmp_path), lambda _, rows: [{"status": "accepted"} for _ in rows])
    writer.start()

    def go(bodies: Sequence[Any], free: int = 10**12, between: Callable[[], object] = int, **params: float) -> Any:
        chosen = IntakeParams.model_validate(params)
        grants = Grants(token_file(tmp_path))
        app = create_app(writer, grants, chosen, sources=["human_pairs"], free_bytes=lambda: free)

        async def one_by_one() -> list[httpx.Response]:
            answers = []
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://intake") as client:
                for number, body in enumerate(bodies):
                    headers = {"authorization": f"Bearer {token}", "content-type": "application/x-ndjson"}
                    headers["idempotency-key"] = f"k-{number}"
                    answers.append(await client.post("/v1/feedback/human_pairs", content=body, headers=headers))
                    between()
            return answers

        return asyncio.run(one_by_one())

    yield go
    writer.stop()


async def slow() -> AsyncIterator[bytes]:
    yield BODY
    await asyncio.sleep(30)


def codes(answers: list[httpx.Response]) -> list[int]:
    return [answer.status_code for answer in answers]


def test_too_many_requests_are_told_when_to_come_again(send: Send) -> None:
    """A burst is twice the rate: at 1 a second the third waits most of a second, and Retry-After says 1."""
    answers = send([BODY] * 3, requests_per_s=1)
    assert codes(answers) == [202, 202, 429]
    assert answers[2].headers["retry-after"] == "1"


def test_a_body_that_trickles_is_given_up(send: Send) -> None:
    assert codes(send([slow(), BODY], read_timeout_s=0.2)) == [408, 202]


def test_a_disk_with_too_little_room_takes_nothing(send: Send) -> None:
    assert codes(send([BODY], free=5, min_free_bytes=6)) == [507]
    assert codes(send([BODY], free=6, min_free_bytes=6)) == [202]


def test_a_disk_that_fills_up_while_rows_are_kept_takes_nothing(send: Send, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OperationalError("INSERT", {}, sqlite3.OperationalError("database or disk is full"))

    with monkeypatch.context() as patch:
        patch.setattr(spool, "_keep", full)
        assert codes(send([BODY])) == [507]
    (again,) = send([BODY])
    assert again.status_code == 202 and "idempotent-replayed" not in again.headers


def test_a_revoked_token_is_refused_at_once(send: Send, tmp_path: Path) -> None:
    revoked: list[str] = []

    def revoke() -> None:
        if not revoked:
            revoke_token(token_file(tmp_path), "tester")
            revoked.append("tester")

    assert codes(send([BODY, BODY], between=revoke)) == [202, 401]


def test_bodies_held_together_are_bounded_and_the_room_comes_back(send: Send) -> None:
    """One body of 1.1 MB is over the bound of 1 MB; the next finds all of it free again."""
    large = BODY * 20_000
    answers = send([large, BODY, large, BODY], max_held_bytes=1_000_000)
    assert codes(answers) == [429, 202, 429, 202]
    assert "retry-after" in answers[0].headers


def test_what_gzip_may_become_is_held_as_well() -> None:
    from plumbline.tasks.operations.intake.bodies import BodyRefusal
    from plumbline.tasks.operations.intake.limits import Memory

    memory = Memory(100)
    with memory.share() as first, memory.share() as second:
        first(60)
        second(40)
        with pytest.raises(BodyRefusal) as refused:
            second(1)
        assert refused.value.status == 429
    assert memory.held == 0
