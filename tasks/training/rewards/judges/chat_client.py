"""Many requests to one server of the OpenAI chat protocol, a bounded number at once, each with retries and a deadline.

What goes wrong becomes a named reason (`Unusable`) where another question may fare better, and a `JudgeError` if
none will: wrong key, unknown model or address.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from plumbline.data_contracts.errors import JudgeError
from plumbline.tasks.models.chat_server import COMPLETIONS, address
from plumbline.tasks.params.llm_judge import LlmJudgeParams
from plumbline.tasks.training.rewards.judges.parsing import Reply, Unusable, excerpt, read_reply

Request = Mapping[str, Any]
"""The fields of a request; those of `extra_body`, which a cache keeps apart, are sent beside the others."""

_SHORTEST_SECRET = 8  # local servers are given words such as EMPTY, which are no secret and may stand in a completion
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 8.0
_LONGEST_ASKED_S = 60.0  # of Retry-After
_HOPELESS = {
    401: "the key was refused: check the variable that api_key_env names",
    403: "access was refused: check the key's rights and the model's name",
    404: "there is no such model or address: check model, and that base_url ends as the server wants it (often /v1)",
}


@dataclass(frozen=True, slots=True)
class JudgeReply:
    """The outcome of one request: a reply, or why there is none."""

    outcome: Reply | Unusable
    retries: int
    seconds: float


@dataclass(frozen=True)
class ChatClient:
    """Asks one server. The key stays in the environment: in no field, message, log, cache or pickle of ours.

    Raises `JudgeError` when the key's variable is not set.
    """

    params: LlmJudgeParams

    def __post_init__(self) -> None:
        _key(self.params)  # missing: better now than after an hour of rollouts

    def ask_all(
        self,
        requests: Mapping[str, Request],
        wanted: Callable[[str], bool],
        received: Callable[[str, JudgeReply], None],
    ) -> None:
        """Send each request that is still `wanted` when its turn comes, and hand each answer to `received`.

        Requests start in order and end in any. Whatever `received` raises stops the rest and comes out of here.
        """
        if not requests:
            return
        try:
            asyncio.run(self._ask_all(requests, wanted, received))
        except ExceptionGroup as group:
            raise group.exceptions[0] from None

    async def _ask_all(
        self,
        requests: Mapping[str, Request],
        wanted: Callable[[str], bool],
        received: Callable[[str, JudgeReply], None],
    ) -> None:
        pending = iter(requests.items())

        async def work(client: httpx.AsyncClient) -> None:
            for name, request in pending:
                if wanted(name):
                    received(name, await self._ask(client, request))

        lanes = min(self.params.concurrency, len(requests))
        client = httpx.AsyncClient(
            **address(self.params.base_url, _key(self.params)),
            timeout=self.params.timeout_seconds,
            limits=httpx.Limits(max_connections=lanes),
            follow_redirects=True,
        )
        async with client, asyncio.TaskGroup() as group:
            for _ in range(lanes):
                group.create_task(work(client))

    async def _ask(self, client: httpx.AsyncClient, request: Request) -> JudgeReply:
        started, retries = time.perf_counter(), 0
        try:
            # the client's timeout is one of silence: a server that drips bytes would never meet it
            async with asyncio.timeout(self.params.deadline_seconds):
                outcome, pause_s = await self._attempt(client, request, retries)
                while pause_s is not None and retries < self.params.max_retries:
                    await asyncio.sleep(pause_s)
                    retries += 1
                    outcome, pause_s = await self._attempt(client, request, retries)
        except TimeoutError:
            outcome = Unusable("timeout", f"not done within {self.params.deadline_seconds:g} s in all")
        return JudgeReply(outcome, retries, time.perf_counter() - started)

    async def _attempt(
        self, client: httpx.AsyncClient, request: Request, retries: int
    ) -> tuple[Reply | Unusable, float | None]:
        """The outcome of one attempt, and the seconds before the next; None if another would fare no better."""
        tried = f"{retries + 1} attempts" if retries else "1 attempt"
        try:
            response = await client.post(COMPLETIONS, json=_body(request))
        except httpx.TimeoutException:
            found = f"silent for {self.params.timeout_seconds:g} s at each of {tried}"
            return Unusable("timeout", found), _pause_s(retries)
        except httpx.RequestError as error:
            found = self._redact(f"{type(error).__name__}: {error} ({tried})")
            return Unusable("unreachable", found), _pause_s(retries)
        if response.is_success:
            return read_reply(self._redact(response.text).encode()), None
        return self._refusal(response, tried, retries)

    def _refusal(self, response: httpx.Response, tried: str, retries: int) -> tuple[Unusable, float | None]:
        """The meaning of an error status. Raises `JudgeError` for one that every other request would meet too."""
        status = response.status_code
        said = f"status {status}: {excerpt(self._redact(response.text))} ({tried})"
        if status in _HOPELESS:
            raise JudgeError(f"{where(self.params)}: {_HOPELESS[status]}. Found {said}.")
        if status >= 500 or status in (408, 409, 429):
            return Unusable("unreachable", said), _asked_s(response.headers) or _pause_s(retries)
        return Unusable("rejected", said), None

    def _redact(self, text: str) -> str:
        """The text without the key, should a server repeat it."""
        key = _key(self.params)
        return text.replace(key, "***") if key is not None and len(key) >= _SHORTEST_SECRET else text


def where(params: LlmJudgeParams) -> str:
    """The judge in a message: model and address."""
    return f"LLM judge {params.model} at {params.base_url}"


def _key(params: LlmJudgeParams) -> str | None:
    if params.api_key_env is None:
        return None
    key = os.environ.get(params.api_key_env, "").strip()
    if not key:
        raise JudgeError(
            f"{where(params)}: expected the API key in the environment variable {params.api_key_env}, found it unset "
            "or empty. Export it, or set api_key_env: null for a server without keys."
        )
    return key


def _body(request: Request) -> dict[str, Any]:
    own = {name: value for name, value in request.items() if name != "extra_body"}
    return {**own, **request.get("extra_body", {})}


def _pause_s(retries: int) -> float:
    """Seconds before the next attempt: half a second, doubled each time up to 8 s, up to a quarter less by chance."""
    return min(_FIRST_PAUSE_S * 2.0**retries, _LONGEST_PAUSE_S) * random.uniform(0.75, 1.0)


def _asked_s(headers: httpx.Headers) -> float | None:
    """The seconds that a server asks to wait, as a number or a date; None if it asks none, or more than a minute."""
    text, milliseconds = headers.get("retry-after", ""), headers.get("retry-after-ms")
    try:
        asked = float(milliseconds) / 1000 if milliseconds else float(text)
    except ValueError:
        try:
            asked = parsedate_to_datetime(text).timestamp() - time.time()
        except ValueError:
            return None
    return asked if 0 < asked <= _LONGEST_ASKED_S else None
