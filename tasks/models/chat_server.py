"""A server of OpenAI's chat protocol: where it is asked, and how a request carries its key."""

from __future__ import annotations

from typing import Any

COMPLETIONS, MODELS = "chat/completions", "models"


def address(url: str, key: str | None) -> dict[str, Any]:
    """Arguments of an httpx client for the server at `url`, which ends as the server wants it (often /v1)."""
    return {"base_url": f"{url.rstrip('/')}/", "headers": {"Authorization": f"Bearer {key}"} if key else {}}
