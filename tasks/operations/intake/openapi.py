"""The part of `/openapi.json` beyond the paths: bodies, headers, answers, errors, each with an example."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from fastapi import FastAPI

_PAIR = {"id": "r-1", "prompt": "How do I reset it?", "chosen": "Hold the button for ten seconds.", "rejected": "No."}
_VERDICTS = [
    {"row": 1, "status": "accepted", "id": "r-1"},
    {
        "row": 2,
        "status": "quarantined",
        "reason": "empty_text",
        "field": "chosen",
        "expected": "text with a visible character",
        "found": '""',
    },
]
_ANSWER = {
    "source": "human_pairs",
    "rows": 2,
    "accepted": 1,
    "quarantined": 1,
    "verdicts": _VERDICTS,
    "request_id": "5b0c2a52-4f0e-4a53-9a3f-2f1d3a6f8a10",
}
_SCHEMAS: Mapping[str, Any] = {
    "Verdict": {
        "type": "object",
        "required": ["row", "status"],
        "properties": {
            "row": {"type": "integer", "minimum": 1, "description": "line of the body, or place in the list"},
            "status": {"enum": ["accepted", "quarantined"]},
            "id": {
                "type": ["string", "null"],
                "description": "the record's id: as given, or of its content",
            },
            "reason": {"type": "string", "description": "why it is quarantined, a reason of the contract"},
            "field": {"type": ["string", "null"]},
            "expected": {"type": "string"},
            "found": {"type": "string"},
        },
    },
    "Answer": {
        "type": "object",
        "required": ["source", "rows", "accepted", "quarantined", "verdicts"],
        "properties": {
            "source": {"type": "string"},
            "rows": {"type": "integer"},
            "accepted": {"type": "integer"},
            "quarantined": {"type": "integer"},
            "verdicts": {"type": "array", "items": {"$ref": "#/components/schemas/Verdict"}},
            "request_id": {"type": "string", "format": "uuid"},
        },
        "example": _ANSWER,
    },
    "Error": {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["code", "message"],
                "properties": {
                    "code": {"type": "string", "description": "for programs"},
                    "message": {"type": "string", "description": "for people"},
                    "line": {"type": "integer", "minimum": 1},
                    "field": {"type": "string"},
                },
            }
        },
        "example": {"error": {"code": "broken_json", "message": "not JSON, column 9: unexpected end.", "line": 3}},
    },
}
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


def _content(schema: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


FEEDBACK: dict[str, Any] = {
    "security": [{"bearer": []}],
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
            "application/x-ndjson": {"schema": {"type": "string"}, "example": '{"prompt": "Hi", "chosen": "Hello.", '
                                     '"rejected": "What?"}\n'},
            "application/json": {"schema": {"type": "array", "items": {"type": "object"}}, "example": [_PAIR]},
        },
    },
    "responses": {
        "200": None,
        "202": {"description": "The accepted rows are on disk", "content": _content("Answer")},
        "422": {"description": "No row satisfies the contract; nothing was taken", "content": _content("Answer")},
        **{str(status): {"description": why, "content": _content("Error")} for status, why in _ERRORS.items()},
    },
}  # fmt: skip
HEALTH: dict[str, Any] = {
    "responses": {
        "200": {"description": "It takes requests"},
        "507": {"description": "The disk is full, requests are refused"},
    }
}


def describe(app: FastAPI, sources: Collection[str]) -> None:
    """Complete the document once it is first asked for."""
    plain = app.openapi

    def whole() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = plain()
            post = document["paths"]["/v1/feedback/{source}"]["post"]
            post["responses"] = {status: said for status, said in FEEDBACK["responses"].items() if said is not None}
            for parameter in post["parameters"]:
                if parameter["name"] == "source":
                    parameter["schema"] = {"enum": sorted(sources)}
            parts = document.setdefault("components", {})
            parts["schemas"] = dict(_SCHEMAS)
            parts["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = whole  # type: ignore[method-assign]
