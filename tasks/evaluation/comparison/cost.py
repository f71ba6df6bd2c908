"""The cost of fine-tuning a variant: seconds, CPU seconds, tokens and payments to a judge, measured as it runs.

The account lies beside the artifact, never in it: a clock would give equal weights unequal digests. It is
written at the start and every other second, so that a killed run's seconds are kept, and a resumed one goes on from
them.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import orjson

from plumbline.data_contracts.artifact import write_json
from plumbline.tasks.models.judging import judging_account

_EVERY_S = 2.0


class Context(Protocol):
    """The context of a stage body (`tasks.pipeline.stage.StageContext`)."""

    @property
    def folder(self) -> Path: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of training, over all `sessions` (more than one if it was killed and resumed).

    `wall_seconds` and `cpu_seconds` (user and system, of all threads and ended children) include loading models and
    validation; `gpus` were at hand. `tokens_seen` went forward and backward through training, `tokens_generated`
    were sampled for it, as the method says of the whole training; None if it does not. `judge_…` is what a judge of
    candidates was asked, its calibration included and cached answers not: requests, their time on the wall clock (part
    of `wall_seconds`), and their price in the currency of `judge.llm.price_prompt`.
    """

    wall_seconds: float
    cpu_seconds: float
    sessions: int
    gpus: int
    tokens_seen: int | None = None
    tokens_generated: int | None = None
    judge_requests: float = 0.0
    judge_seconds: float = 0.0
    judge_cost: float = 0.0

    def price(self, cpu_hour: float, gpu_hour: float) -> float:
        """CPU seconds and GPU seconds (wall-clock times GPUs) at a price an hour each, and what the judge was paid."""
        return (self.cpu_seconds * cpu_hour + self.wall_seconds * self.gpus * gpu_hour) / 3600 + self.judge_cost


def read_cost(path: Path) -> Cost | None:
    """The account that `Metered` left; None if there is none, or no readable one."""
    try:
        return Cost(**orjson.loads(path.read_bytes()))
    except (OSError, orjson.JSONDecodeError, TypeError):
        return None


@dataclass(frozen=True, slots=True)
class Metered:
    """A fine-tuning stage's body, unchanged, with its cost written to `account`. Pickled into the stage's process."""

    body: Callable[..., dict[str, Any]]
    account: Path

    def __call__(self, context: Context, **params: Any) -> dict[str, Any]:
        """Run the body; return its facts as they are."""
        self.account.parent.mkdir(parents=True, exist_ok=True)
        with _metering(self.account) as spent:
            facts = self.body(context, **params)
        tokens = facts.get("tokens", {})
        cost = replace(spent(), tokens_seen=tokens.get("seen"), tokens_generated=tokens.get("generated"))
        write_json(self.account, asdict(cost))
        return facts


@contextmanager
def _metering(account: Path) -> Iterator[Callable[[], Cost]]:
    """Count what is spent inside the block on top of what the account holds; the value is final after the block."""
    before = read_cost(account) or Cost(0.0, 0.0, 0, 0)
    wall, cpu, done = time.perf_counter(), _cpu_seconds(), threading.Event()

    def now() -> Cost:
        wall_seconds = before.wall_seconds + time.perf_counter() - wall
        return Cost(
            wall_seconds,
            before.cpu_seconds + _cpu_seconds() - cpu,
            before.sessions + 1,
            _gpus(),
            judge_requests=before.judge_requests + judge["requests"],
            judge_seconds=before.judge_seconds + judge["seconds"],
            judge_cost=before.judge_cost + judge["cost"],
        )

    def keep() -> None:
        write_json(account, asdict(now()))
        while not done.wait(_EVERY_S):
            write_json(account, asdict(now()))

    thread = threading.Thread(target=keep, daemon=True)
    final: list[Cost] = []
    with judging_account() as judge:
        thread.start()
        try:
            yield lambda: final[0]
        finally:
            final.append(now())
            done.set()
            thread.join()
            write_json(account, asdict(final[0]))


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _gpus() -> int:
    torch = sys.modules.get("torch")  # importing it here would be paid for by the first tick
    return int(torch.cuda.device_count()) if torch is not None and torch.cuda.is_available() else 0
