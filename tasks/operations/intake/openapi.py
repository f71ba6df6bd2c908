"""Models of the endpoint's answers, from which FastAPI makes `/openapi.json`.

They describe, and check nothing: bodies are read and refused row by row, and answers are written as they are.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

_PAIR = {"id": "r-1", "prompt": "How do I reset it?", "chosen": "Hold the button for ten seconds.", "rejected": "No."}


class RowVerdict(BaseModel):
    """The outcome of one row."""

    row: int = Field(ge=1, description="line of the body, or place in the list")
    status: Literal["accepted", "quarantined"]
    id: str | None = Field(None, description="the record's id: as given, or of its content")
    reason: str | None = Field(None, description="why it is quarantined, a reason of the contract")
    field: str | None = None
    expected: str | None = None
    found: str | None = None


_VERDICTS: Any = [
    {"row": 1, "status": "accepted", "id": "r-1"},
    {"row": 2, "status": "quarantined", "reason": "empty_text", "field": "chosen", "expected": "text", "found": '""'},
]


class RowVerdicts(BaseModel):
    """The outcome of a request."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "source": "human_pairs",
                "rows": 2,
                "accepted": 1,
                "quarantined": 1,
                "verdicts": _VERDICTS,
                "request_id": "5b0c2a52-4f0e-4a53-9a3f-2f1d3a6f8a10",
            }
        }
    )

    source: str
    rows: int
    accepted: int
    quarantined: int
    verdicts: list[RowVerdict]
    request_id: str | None = Field(None, json_schema_extra={"format": "uuid"})


class RefusalReason(BaseModel):
    """The reason of a refusal, and its place in the body."""

    code: str = Field(description="for programs")
    message: str = Field(description="for people")
    line: int | None = Field(None, ge=1)
    field: str | None = None


class RequestRefusal(BaseModel):
    """A request that was refused as a whole."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {"error": {"code": "broken_json", "message": "not JSON, column 9: unexpected end.", "line": 3}}
        }
    )

    error: RefusalReason


_ERRORS = {
    400: "No JSON object on a line, no rows, bad gzip, or no fit Idempotency-Key",
    401: "No valid bearer token",
    403: "The token may not send this kind of feedback",
    404: "Unknown kind of feedback",
    408: "The body came too slowly",
    409: "The Idempotency-Key came with another body before",
    413: "The body, or the number of rows, is over the limit",
    415: "Content-Type or Content-Encoding is not understood",
    429: "Too many requests; Retry-After says how many seconds to wait",
    500: "The request broke; nothing is said to be taken",
    503: "The spool does not answer; nothing was taken",
    507: "The disk is full; nothing was taken",
}

RESPONSES: dict[int | str, dict[str, Any]] = {
    422: {"description": "No row satisfies the contract; nothing was taken", "model": RowVerdicts},
    **{status: {"description": why, "model": RequestRefusal} for status, why in _ERRORS.items()},
}

# Headers and body are read by hand, so FastAPI knows nothing of them.
REQUEST: dict[str, Any] = {
    "parameters": [
        {
            "name": "Idempotency-Key",
            "in": "header",
            "required": True,
            "description": "Same key and body: the same answer, nothing taken twice. Same key, other body: 409.",
            "schema": {"type": "string", "minLength": 1, "maxLength": 255},
            "example": "export-2026-11-24-0007",
        },
        {"name": "Content-Encoding", "in": "header", "schema": {"enum": ["gzip", "identity"]}},
    ],
    "requestBody": {
        "required": True,
        "content": {
            "application/x-ndjson": {
                "schema": {"type": "string"},
                "example": '{"prompt": "Hi", "chosen": "Hello.", "rejected": "What?"}\n',
            },
            "application/json": {"schema": {"type": "array", "items": {"type": "object"}}, "example": [_PAIR]},
        },
    },
}
