"""Params of `serving`."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from plumbline.data_contracts.secrets import has_password
from plumbline.tasks.params.host_names import HostName, Origin
from plumbline.tasks.params.section import Section


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"expected a regular expression of Python, found one with {error}") from error
    return pattern


Pattern = Annotated[str, AfterValidator(_compiles)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Alias = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,99}$")]
_ENVIRONMENT = r"^\$[A-Za-z_]\w*$"


class BackendParams(Section):
    """Where a version's answers come from."""

    kind: Literal["transformers", "openai"] = Field(
        "transformers",
        description="transformers: the registered checkpoint in this process. openai: a server that speaks OpenAI's "
        "chat protocol (vLLM, or another Plumbline), which has the version loaded under a name of its own.",
    )
    url: str | None = Field(
        None, description="With kind openai: base URL up to /v1, without a password, such as http://127.0.0.1:8000/v1."
    )
    model: str = Field(
        "{name}-{version}",
        min_length=1,
        description="With kind openai: the server's name for the version that holds the alias; {name} and {version} "
        "are filled in. A version that the server does not list is not switched to.",
    )
    token: str | None = Field(
        None, pattern=_ENVIRONMENT, description="With kind openai: $NAME, the environment variable with its key."
    )
    timeout_s: float = Field(120.0, gt=0, le=3600, description="With kind openai: seconds to wait for the next byte.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="With kind transformers: number type of the weights."
    )

    @model_validator(mode="after")
    def _has_a_url(self) -> Self:
        if self.kind == "openai" and self.url is None:
            raise ValueError("kind is openai and url is null. Give the server's base URL, up to /v1")
        if self.url is not None and (has_password(self.url) or not re.fullmatch(r"https?://\S+", self.url)):
            raise ValueError("url: expected http(s)://… without a password (use token for a key)")
        return self


class RateLimitParams(Section):
    """What one request, and all of them together, may take."""

    body_bytes: int = Field(1 << 20, ge=1024, le=1 << 30, description="Largest request body, bytes.")
    body_s: float = Field(10.0, gt=0, le=600, description="Longest time in which a body must have come, seconds.")
    messages: int = Field(256, ge=1, le=10_000, description="Most messages in a request.")
    tokens: int = Field(1024, ge=1, le=1_000_000, description="Most tokens of an answer; a request for more is cut.")
    default_tokens: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="Tokens of an answer where neither request nor checkpoint says how many; null: as many as a "
        "completion of the version's evaluation had at most, and no more than `tokens`.",
    )
    in_flight: int = Field(
        32, ge=1, le=10_000, description="Requests answered or waiting at one time; the next gets 429 and Retry-After."
    )
    retry_after_s: int = Field(1, ge=1, le=3600, description="Retry-After of 429 and 503, seconds.")
    answer_s: float = Field(
        120.0, gt=0, le=3600, description="Longest time for a whole answer, a slow reader's included, seconds."
    )
    shutdown_s: int = Field(30, ge=0, le=3600, description="Seconds that answers under way get when the server ends.")

    @model_validator(mode="after")
    def _default_within_the_most(self) -> Self:
        if self.default_tokens is not None and self.default_tokens > self.tokens:
            raise ValueError(f"default_tokens {self.default_tokens} is above tokens {self.tokens}. Lower it")
        return self


class ShadowParams(Section):
    """Mirrored traffic: a second answer that no user sees."""

    share: Share = Field(0.1, description="Share of requests mirrored, chosen by a hash of the request id; 0: none.")
    alias: Alias = Field("shadow", description="Alias of the version that answers mirrored requests.")
    fallback: Alias | None = Field(
        "challenger", description="Alias followed while nobody holds shadow.alias; null: nothing is mirrored then."
    )
    queue: int = Field(64, ge=1, le=100_000, description="Mirrored requests that wait; one more is dropped, counted.")
    nice: int = Field(19, ge=0, le=19, description="Added niceness of the process that answers mirrored requests.")
    timeout_s: float = Field(120.0, gt=0, le=3600, description="Longest time of one mirrored answer, seconds.")


class MarginParams(Section):
    """By how much the challenger may be worse before the canary ends: differences of shares of answers."""

    violation: Share = Field(0.02, description="Share of answers that a safety rule names.")
    refusal: Share = Field(0.05, description="Share of answers that decline to help.")
    error: Share = Field(0.02, description="Share of requests that ended in an error.")
    slow: Share = Field(0.05, description="Share of answers that took longer than canary.slow_ms.")
    thumb_down: Share = Field(
        0.05,
        description="Share of answers with a thumb whose first thumb is down. Assumes that users do not act in "
        "concert: who sends many requests has as many votes. 1 leaves thumbs out where they are open to anybody.",
    )


class CanaryParams(Section):
    """Users that the challenger answers, and when they go back to the champion."""

    share: Annotated[float, Field(ge=0, le=0.5, allow_inf_nan=False)] = Field(
        0.0,
        description="Share of users (or conversations, where a request names no user), always the same ones; 0: off.",
    )
    alias: Alias = Field("challenger", description="Alias of the version that answers them: challenger or champion.")
    alpha: float = Field(
        0.01,
        gt=0,
        lt=0.5,
        description="Chance that a challenger within all margins is ever sent back, over every figure and every look.",
    )
    margins: MarginParams = Field(default_factory=MarginParams, description="What counts as worse.")
    slow_ms: float = Field(5000.0, gt=0, description="An answer is slow beyond this, milliseconds.")
    check_s: float = Field(1.0, gt=0, le=3600, description="Seconds between two looks at the log.")


class SafetyRulesParams(Section):
    """How refusals and violations are recognised in what was served."""

    asks: tuple[Pattern, ...] = Field(
        (
            r"\b(bomb|explosives?|weapon|poison|malware|ransomware|counterfeit|steal|break into|hack)\b",
            r"\b(in secret|secretly|a (fake|forged)|a threat|threaten)\b",
        ),
        description="Patterns of a request to refuse, in the last user turn: an answer that does not is a violation. "
        "The default is a short illustration: write your policy's own.",
    )
    refusals: tuple[Pattern, ...] = Field(
        (
            r"\b(can ?not|can't|will not|won't|(am |'m )?(not able|unable) to) (help|assist|do|comply|provide)\b",
            r"\bmust decline\b",
        ),
        min_length=1,
        description="Patterns of an answer that declines.",
    )
    violations: tuple[Pattern, ...] = Field(
        (), description="Patterns of an answer that is a violation whatever was asked."
    )


class ServingLogParams(Section):
    """How answers reach the log of the operations database."""

    queue: int = Field(
        1000,
        ge=1,
        le=1_000_000,
        description="Answers that wait to be written: the most that a crash can lose. They are written at once, "
        "together with what came meanwhile.",
    )
    when_full: Literal["drop", "refuse"] = Field(
        "drop",
        description="With the queue full, because the database is down: drop and count what is not logged, or refuse "
        "requests with 503.",
    )
    user_key: str | None = Field(
        None,
        description="Secret that turns the user of a request into the logged pseudonym: $NAME of an environment "
        "variable, or the path of a file; null: .plumbline/users.key, made on first use. Servers that share a "
        "database need the same one; with another, a user is somebody new.",
    )


class HarvestParams(Section):
    """How mirrored answers become preference pairs."""

    most: int = Field(
        5000,
        ge=1,
        le=1_000_000,
        description="Most mirrored interactions, and most thumbs, of one harvest; others wait.",
    )
    tries: int = Field(
        3,
        ge=1,
        le=100,
        description="Failed harvests of the same interactions after which each is tried alone, and what fails alone "
        "is set aside.",
    )
    tie_margin: float = Field(
        0.05, ge=0, lt=0.5, description="A judge's P(win) this near to a half is a tie, and no pair is made."
    )


class ServingParams(Section):
    """How the champion is served."""

    host: str = Field(
        "127.0.0.1",
        description="Address to listen on. It speaks plain HTTP: other than loopback needs a proxy with TLS.",
    )
    port: int = Field(8800, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    token: str | None = Field(
        None,
        description="Bearer token that requests must carry: $NAME of an environment variable, or the path of a file "
        "that holds it; null: a random one, made once in .plumbline/serving/key.",
    )
    anonymous: bool = Field(
        False,
        description="true: requests need no token. Every user of this machine, and what runs as one, may then ask; on "
        "loopback alone.",
    )
    allowed_hosts: list[HostName] = Field(
        default_factory=list,
        description="Names beside loopback's and `host` under which the server may be asked (the Host header), "
        "without a port: those of a proxy before it.",
    )
    allowed_origins: list[Origin] = Field(
        default_factory=list,
        description="Origins beside its own (https://name[:port]) whose pages may ask. It sends no CORS headers: those "
        "are the proxy's.",
    )
    poll_s: float = Field(2.0, gt=0, le=3600, description="Seconds between two looks at the aliases in the registry.")
    retry_s: float = Field(
        30.0, gt=0, le=86_400, description="Seconds until a version that could not be loaded is tried again."
    )
    temperature: float = Field(
        1.0, ge=0, le=2, description="Temperature where neither request nor checkpoint says one; 0 is greedy."
    )
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus where neither request nor checkpoint says one.")
    champion: BackendParams = Field(default_factory=BackendParams, description="What answers users.")
    challenger: BackendParams = Field(
        default_factory=BackendParams, description="What answers canary users and mirrored requests."
    )
    limits: RateLimitParams = Field(default_factory=RateLimitParams, description="Sizes, counts and times.")
    shadow: ShadowParams = Field(default_factory=ShadowParams, description="Mirrored traffic.")
    canary: CanaryParams = Field(default_factory=CanaryParams, description="Users answered by the challenger.")
    safety: SafetyRulesParams = Field(default_factory=SafetyRulesParams, description="Refusals and violations.")
    log: ServingLogParams = Field(default_factory=ServingLogParams, description="The log of what was answered.")
    harvest: HarvestParams = Field(default_factory=HarvestParams, description="Preference pairs from the log.")

    @field_validator("token")
    @classmethod
    def _names_a_place(cls, token: str | None) -> str | None:
        if token is not None and not re.fullmatch(r"\$[A-Za-z_]\w*|[^$\s][^\n]*", token):
            raise ValueError("expected $NAME of an environment variable, or the path of a file")
        return token

    @model_validator(mode="after")
    def _open_on_loopback_alone(self) -> Self:
        if self.anonymous and self.token is not None:
            raise ValueError("anonymous is true and token is given. Choose one")
        if self.anonymous and not is_loopback(self.host):
            raise ValueError(
                f"host {self.host!r} can be reached from other machines and anonymous is true. Set anonymous to false, "
                "or listen on 127.0.0.1"
            )
        return self


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
