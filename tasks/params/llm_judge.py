"""Params of a language-model judge behind the OpenAI chat protocol."""

from __future__ import annotations

from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field, JsonValue, field_validator, model_validator

from plumbline.tasks.params.section import Section

OWN_FIELDS = frozenset(
    (
        "model",
        "messages",
        "temperature",
        "seed",
        "max_completion_tokens",
        "max_tokens",
        "response_format",
        "stream",
        "n",
    )
)
"""Request fields that the judge sets itself."""


class LlmJudgeParams(Section):
    """Where the judge is, what it is asked, and how much of its trouble is borne. It holds no secret."""

    # a URL with a password in it is refused, and must not be printed by the refusal
    model_config = ConfigDict(hide_input_in_errors=True)

    base_url: str = Field(
        "http://127.0.0.1:8000/v1",
        description="Address of the server up to and including /v1, without user, password or query. The default is "
        "where `transformers serve` and vLLM listen. It is not part of the judge's digest or of the cache key.",
    )
    model: str = Field(
        "Qwen/Qwen3-4B-Instruct-2507", min_length=1, description="Name of the model, as the server knows it."
    )
    model_revision: str | None = Field(
        None,
        description="Any text that tells apart two models of one name (commit, date, quantisation). Part of the digest "
        "and of the cache key.",
    )
    api_key_env: str | None = Field(
        None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="NAME of the environment variable that holds the API key, such as OPENAI_API_KEY. null: the "
        "server wants no key (the word `none` is sent as one).",
    )
    rubric: str = Field(
        "helpfulness-1",
        min_length=1,
        description="A rubric of tasks/training/rewards/judges/rubrics by its file's name, or the path of a .toml file "
        "of that form.",
    )
    mode: Literal["pairwise", "listwise"] = Field(
        "pairwise",
        description="pairwise: each pair of a group is a question, K(K-1)/2 of them (twice that with order both). "
        "listwise: one question ranks all K; cheaper, and noisier from about 5 candidates on.",
    )
    order: Literal["both", "random"] = Field(
        "random",
        description="Of a pair: ask in both orders and average, which cancels position bias, or in one order that is "
        "drawn by seed. Listwise questions are always shuffled once.",
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of positions, also sent with each request.")
    temperature: float | None = Field(
        0.0,
        ge=0,
        le=2,
        description="Sampling temperature; 0 asks for the same answer each time. null: not sent, for models that "
        "refuse the field.",
    )
    max_tokens: int = Field(
        64,
        ge=1,
        le=100_000,
        description="Most tokens of an answer (max_completion_tokens). A verdict takes about 10, a ranking of 8 about "
        "40; reasoning models need thousands. An answer cut off is unusable.",
    )
    structured: Literal["json_schema", "json_object", "none"] = Field(
        "json_schema",
        description="What response_format asks the server for. json_schema: OpenAI, vLLM, llama.cpp; "
        "`transformers serve` ignores the field. none: for servers that refuse it. The answer is parsed strictly in "
        "every case.",
    )
    extra_body: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="Further request fields, such as {chat_template_kwargs: {enable_thinking: false}}. Part of the "
        "digest. Never put a secret here.",
    )
    timeout_seconds: float = Field(60.0, gt=0, le=3600, description="Seconds an attempt may be silent.")
    deadline_seconds: float = Field(
        300.0,
        gt=0,
        le=86_400,
        description="Seconds a question may take in all: attempts, the waits between them, and answers that drip.",
    )
    max_retries: int = Field(
        4,
        ge=0,
        le=20,
        description="Further attempts after a lost connection, a timeout, or status 408, 409, 429 or 5xx; 0.5 s, "
        "1 s, 2 s up to 8 s apart, or what Retry-After says.",
    )
    concurrency: int = Field(8, ge=1, le=1024, description="Most questions under way at once.")
    on_unusable: Literal["skip", "fail"] = Field(
        "skip",
        description="A group with an answer that is no verdict (or never came): skip counts it and leaves the group "
        "without a judgement, fail stops. A verdict is never guessed.",
    )
    max_unusable_share: float = Field(
        0.2,
        ge=0,
        le=1,
        description="Largest share of the groups of a batch that may be left without a judgement before the judge "
        "stops. The default is ours: above it the groups that remain are hardly a fair sample.",
    )
    price_prompt: float = Field(0.0, ge=0, description="Price of a million prompt tokens, in any one currency.")
    price_completion: float = Field(0.0, ge=0, description="Price of a million completion tokens, same currency.")

    @field_validator("base_url")
    @classmethod
    def _plain_url(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
            raise ValueError(
                "must not carry a user, password, query or fragment: put the key into an environment variable and its "
                "name into api_key_env"
            )
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must look like http://host:port/v1 or https://host/v1")
        return url.rstrip("/")

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        taken = sorted(OWN_FIELDS & self.extra_body.keys())
        if taken:
            raise ValueError(f"extra_body: {', '.join(taken)} are set by keys of their own; leave them out")
        if self.deadline_seconds < self.timeout_seconds:
            raise ValueError(
                f"deadline_seconds ({self.deadline_seconds:g}) covers whole questions: set it to at least "
                f"timeout_seconds ({self.timeout_seconds:g})"
            )
        return self
