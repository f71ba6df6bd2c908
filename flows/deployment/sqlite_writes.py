"""SQLite beneath Prefect's server: a transaction that will write asks for its turn before it reads.

Prefect begins its transactions deferred. One that read and then writes is refused at once, whatever the busy timeout,
when another wrote between the two: SQLite says "database is locked" (SQLITE_BUSY_SNAPSHOT) and the API answers 503. An
immediate one waits for its turn, up to Prefect's busy timeout of a minute. Reads outside of transactions wait for none.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any

from prefect.server.database.configurations import AioSqliteConfiguration

from plumbline.data_contracts.private_names import require_names

require_names("prefect", AioSqliteConfiguration, "begin_transaction")
_begin = AioSqliteConfiguration.begin_transaction


def _begin_immediately(
    self: AioSqliteConfiguration, session: Any, with_for_update: bool = False
) -> AbstractAsyncContextManager[Any]:
    return _begin(self, session, with_for_update=True)


def wait_for_turns() -> None:
    """Let every transaction of this process's server on SQLite begin with the right to write."""
    AioSqliteConfiguration.begin_transaction = _begin_immediately  # type: ignore[method-assign,assignment]
