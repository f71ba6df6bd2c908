"""Many requests to one server of the OpenAI chat protocol, a bounded number at once, each with retries and a deadline.

Connections, attempts and backoff are the openai client's. What it raises becomes a named reason (`Unusable`) where
another question may fare better, and a `JudgeError` if none will: wrong key, unknown model or address.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from plumbline.data_contracts.errors import JudgeError
from plumbline.data_contracts.extras import needs_extra
from plumbline.tasks.params.llm_judge import LlmJudgeParams
from plumbline.tasks.training.rewards.judges.parsing import Reply, Unusable, excerpt, read_reply

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI

Request = Mapping[str, Any]

NO_KEY = "none"
"""Sent as the key where the server wants none; without it the client would send OPENAI_API_KEY to any address."""

_RETRY_COUNT = "x-stainless-retry-count"  # the header by which the openai client numbers attempts
_SHORTEST_SECRET = 8  # local servers are given words such as EMPTY, which are no secret and may stand in an answer
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

    Raises `JudgeError` when the key's variable is not set, and `UsageError` without the openai client.
    """

    params: LlmJudgeParams

    def __post_init__(self) -> None:
        # missing: better now than after an hour of rollouts
        _key(self.params)
        with needs_extra("llm-judge", where(self.params)):
            import openai  # noqa: F401

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
        from openai import AsyncOpenAI

        pending = iter(requests.items())

        async def work(client: AsyncOpenAI) -> None:
            for name, request in pending:
                if wanted(name):
                    received(name, await self._ask(client, request))

        client = AsyncOpenAI(
            base_url=self.params.base_url,
            api_key=_key(self.params),
            timeout=self.params.timeout_seconds,
            max_retries=self.params.max_retries,
        )
        async with client, asyncio.TaskGroup() as group:
            for _ in range(min(self.params.concurrency, len(requests))):
                group.create_task(work(client))

    async def _ask(self, client: AsyncOpenAI, request: Request) -> JudgeReply:
        import openai

        started = time.perf_counter()

        def answer(outcome: Reply | Unusable, retries: int) -> JudgeReply:
            return JudgeReply(outcome, retries, time.perf_counter() - started)

        try:
            # the client's timeout is one of silence: a server that drips bytes would never meet it
            async with asyncio.timeout(self.params.deadline_seconds):
                raw = await client.chat.completions.with_raw_response.create(**request)
        except openai.APITimeoutError as error:
            found = f"silent for {self.params.timeout_seconds:g} s at each of {_attempts(error)}"
            return answer(Unusable("timeout", found), _retries(error))
        except TimeoutError:
            return answer(Unusable("timeout", f"not done within {self.params.deadline_seconds:g} s in all"), 0)
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            found = self._redact(f"{type(cause).__name__}: {cause} ({_attempts(error)})")
            return answer(Unusable("unreachable", found), _retries(error))
        except openai.APIStatusError as error:
            return answer(self._refusal(error), _retries(error))
        return answer(read_reply(self._redact(raw.text).encode()), raw.retries_taken)

    def _refusal(self, error: APIStatusError) -> Unusable:
        """The meaning of an error status. Raises `JudgeError` for one that every other request would meet too."""
        said = f"status {error.status_code}: {excerpt(self._redact(error.response.text))} ({_attempts(error)})"
        if error.status_code in _HOPELESS:
            # not chained: the server's own words may repeat the key
            raise JudgeError(f"{where(self.params)}: {_HOPELESS[error.status_code]}. Found {said}.") from None
        transient = error.status_code >= 500 or error.status_code in (408, 409, 429)
        return Unusable("unreachable" if transient else "rejected", said)

    def _redact(self, text: str) -> str:
        """The text without the key, should a server repeat it."""
        key = _key(self.params)
        return text.replace(key, "***") if len(key) >= _SHORTEST_SECRET else text


def where(params: LlmJudgeParams) -> str:
    """The judge in a message: model and address."""
    return f"LLM judge {params.model} at {params.base_url}"


def _key(params: LlmJudgeParams) -> str:
    if params.api_key_env is None:
        return NO_KEY
    key = os.environ.get(params.api_key_env, "").strip()
    if not key:
        raise JudgeError(
            f"{where(params)}: expected the API key in the environment variable {params.api_key_env}, found it unset "
            "or empty. Export it, or set api_key_env: null for a server without keys."
        )
    return key


def _attempts(error: Exception) -> str:
    retries = _retries(error)
    return f"{retries + 1} attempts" if retries else "1 attempt"


def _retries(error: Exception) -> int:
    request = getattr(error, "request", None)
    return int(request.headers.get(_RETRY_COUNT, 0)) if request is not None else 0
