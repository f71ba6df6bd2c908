"""Slots: which version answers in which role, swapped while requests are under way.

A slot follows one alias of the registry. When the alias moves, the new version is loaded first and then takes the
slot in one step; requests under way finish on the version that they began with, which is closed after the last of
them. A version that cannot be verified or loaded never takes the slot: the one before stays, and an alert says why.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from plumbline.data_contracts.errors import PlumblineError
from plumbline.tasks.operations.serving.chat import Backend

Resolve = Callable[[str], str | None]
"""Alias -> URI of the version that holds it (models:/NAME/NUMBER), None if none does."""

Load = Callable[[str], Backend]
"""URI of a version -> its backend, verified before it was loaded."""

State = Literal["starting", "loading", "ready", "failed", "empty", "idle"]
"""The state of a slot; a version may answer while the next one is `loading`. `empty`: nobody holds the alias; `idle`:
the version that holds it is that of the slot beside."""

_logger = logging.getLogger("plumbline.serve")


class Served:
    """One version that answers, with its threads, until it is retired and its last answer ended."""

    def __init__(self, uri: str, backend: Backend) -> None:
        self.uri = uri
        self.backend = backend
        self.threads = ThreadPoolExecutor(backend.lanes, thread_name_prefix=f"answer {uri}")
        self._lock = threading.Lock()
        self._users = 0
        self._retired = False
        self._closed = False

    def begin(self) -> None:
        """An answer begins; it will call `end`."""
        with self._lock:
            self._users += 1

    def end(self) -> None:
        """An answer ended."""
        with self._lock:
            self._users -= 1
        self._close_when_free()

    def retire(self) -> None:
        """No further answer begins; close once the last has ended."""
        self._retired = True
        self._close_when_free()

    def _close_when_free(self) -> None:
        with self._lock:
            if not self._retired or self._users > 0 or self._closed:
                return
            self._closed = True
        self.threads.shutdown(wait=False)
        self.backend.close()


class Slot:
    """A role and the version in it.

    `beside`: a slot whose version this one never loads; there would be nothing to compare.
    """

    def __init__(
        self,
        role: str,
        alias: str,
        resolve: Resolve,
        load: Load,
        *,
        retry_s: float = 30.0,
        beside: Slot | None = None,
    ) -> None:
        self.role = role
        self.alias = alias
        self._resolve = resolve
        self._load = load
        self._retry_s = retry_s
        self._beside = beside
        self._spared: str | None = None
        self._lock = threading.Lock()
        self._served: Served | None = None
        self._failed: tuple[str, float] | None = None
        self._looked = self._loading = False
        self.alert: str | None = None

    @property
    def uri(self) -> str | None:
        """The version that answers now."""
        served = self._served
        return served.uri if served else None

    @property
    def state(self) -> State:
        """Its state, for /healthz."""
        if self._loading:
            return "loading"
        if self._served is not None:
            return "ready"
        if self.alert or self._failed:
            return "failed"
        if self._spared is not None:
            return "idle"
        return "empty" if self._looked else "starting"

    def begin(self) -> Served | None:
        """The version in the slot, with an answer begun on it; None if the slot is empty."""
        with self._lock:
            if self._served is not None:
                self._served.begin()
            return self._served

    def refresh(self, *, must: bool = False) -> bool:
        """Look at the alias once and follow it; say whether the slot changed. With `must`, raise what went wrong."""
        try:
            return self._follow(self._unless_beside(self._resolve(self.alias)))
        except PlumblineError as error:
            self.alert = f"{self.role}: {error}"
            if must:
                raise
            return False

    def clear(self) -> None:
        """Empty the slot."""
        self._put(None)

    def _unless_beside(self, wanted: str | None) -> str | None:
        beside = self._beside
        if wanted is None or beside is None or wanted != beside.uri:
            self._spared = None
            return wanted
        if wanted != self._spared:  # once, not at every look
            _logger.warning(
                "%s: idle, because its version would be %s, as is that of the %s", self.role, wanted, beside.role
            )
        self._spared = wanted
        return None

    def _follow(self, wanted: str | None) -> bool:
        served = self._served
        if wanted == self.uri and (served is None or served.backend.alive()):
            return self._settled(changed=False)
        if wanted is None and self.role == "champion":
            self.alert = f"{self.role}: nobody holds the alias {self.alias!r} any more; {self.uri} goes on answering."
            return False
        if wanted is None:
            self._put(None)
            return self._settled(changed=True)
        if self._failed and self._failed[0] == wanted and time.monotonic() < self._failed[1]:
            return False
        self._failed = (wanted, time.monotonic() + self._retry_s)
        self._loading = True
        try:
            self._put(Served(wanted, self._load(wanted)))
        finally:
            self._loading = False
        return self._settled(changed=True)

    def _settled(self, *, changed: bool) -> bool:
        self._failed = self.alert = None
        self._looked = True
        return changed

    def _put(self, served: Served | None) -> None:
        with self._lock:
            before, self._served = self._served, served
        if before is not None:
            before.retire()


class Watcher:
    """A thread that does each of its duties again and again: `{what: (seconds between, duty)}`.

    What a duty raises is kept as an alert until it next succeeds; the others go on.
    """

    def __init__(self, duties: Mapping[str, tuple[float, Callable[[], object]]]) -> None:
        self._duties = duties
        self._ended = threading.Event()
        self._alerts: dict[str, str] = {}
        self._threads = [
            threading.Thread(target=self._keep_doing, args=(what, *duty), name=f"watch {what}", daemon=True)
            for what, duty in duties.items()
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End, after the duty under way."""
        self._ended.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def alerts(self) -> Sequence[str]:
        """The failures of the last time."""
        return list(self._alerts.values())

    def _keep_doing(self, what: str, every_s: float, duty: Callable[[], object]) -> None:
        while not self._ended.wait(every_s):
            try:
                duty()
                self._alerts.pop(what, None)
            except Exception as error:  # shown in /healthz; a watcher that dies silently would be worse
                self._alerts[what] = f"{what}: {type(error).__name__}: {error}"
