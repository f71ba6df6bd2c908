"""Types of params that name hosts and origins."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

HostName = Annotated[str, Field(pattern=r"^(\*|(\*\.)?[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])$")]
"""A Host header without its port: a name, `*.example.com`, an address, `[::1]`, or `*` for any."""

Origin = Annotated[str, Field(pattern=r"^(\*|https?://[A-Za-z0-9._\[\]:-]+)$")]
"""The origin of a page: scheme, host and, where it is not the scheme's own, port; or `*` for any."""
