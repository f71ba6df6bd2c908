"""Params of the operations database."""

from __future__ import annotations

import re

from pydantic import Field, field_validator

from plumbline.data_contracts.secrets import has_password
from plumbline.tasks.params.section import Section

_URL = re.compile(r"\$[A-Za-z_]\w*|(sqlite|postgresql(\+psycopg2)?)://\S+")


class OperationsParams(Section):
    """Where the outbox, the promotion ledger and the log of served answers are kept."""

    database: str | None = Field(
        default=None,
        description="SQLAlchemy URL (sqlite:///…, postgresql://…) without a password, or $NAME, the environment "
        "variable that holds it; null: SQLite under .plumbline in the workspace. One database a workspace.",
    )

    @field_validator("database")
    @classmethod
    def _is_a_url_without_a_password(cls, url: str | None) -> str | None:
        if url is not None and (has_password(url) or not _URL.fullmatch(url)):
            raise ValueError(
                "expected sqlite:///…, postgresql://… without a password, or $NAME of an environment variable"
            )
        return url
