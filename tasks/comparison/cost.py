"""What fine-tuning a variant cost: seconds, CPU seconds and tokens, measured where it runs.

The account lies beside the artifact, never in it: a clock would give equal weights unequal digests. It is
written every other second, so that a killed run's seconds are kept, and a resumed one goes on from them.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import orjson

from data_contracts.artifact import write_json
from data_contracts.records import CuratedPair, load_jsonl

_EVERY_S = 2.0
_OFFLINE = ("dpo", "kto", "orpo")  # read both responses of every pair once a pass, with its prompt, and sample nothing


class Context(Protocol):
    """What a stage body is given (`tasks.stage.StageContext`)."""

    @property
    def folder(self) -> Path: ...  # noqa: D102

    def dep(self, name: str) -> Path: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Cost:
    """What training took, over all `sessions` (more than one where it was killed and resumed).

    `wall_seconds` and `cpu_seconds` (user and system, of all threads and ended children) include loading models and
    validation; `gpus` were at hand. `tokens_seen` went through a training forward pass, `tokens_generated`
    were sampled for training; None where the method does not say.
    """

    wall_seconds: float
    cpu_seconds: float
    sessions: int
    gpus: int
    tokens_seen: int | None = None
    tokens_generated: int | None = None

    def price(self, cpu_hour: float, gpu_hour: float) -> float:
        """CPU seconds and GPU seconds (wall-clock times GPUs) at a price an hour each."""
        return (self.cpu_seconds * cpu_hour + self.wall_seconds * self.gpus * gpu_hour) / 3600


def read_cost(path: Path) -> Cost | None:
    """The account that `Metered` left; None where there is none, or no readable one."""
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
        seen, generated = _tokens(facts, context, params.get("reference_trust_remote_code", False))
        write_json(self.account, asdict(replace(spent(), tokens_seen=seen, tokens_generated=generated)))
        return facts


@contextmanager
def _metering(account: Path) -> Iterator[Callable[[], Cost]]:
    """Count seconds inside the block on top of those in the account; the value is final after the block."""
    before = read_cost(account) or Cost(0.0, 0.0, 0, 0)
    wall, cpu, done = time.perf_counter(), _cpu_seconds(), threading.Event()

    def now() -> Cost:
        wall_seconds = before.wall_seconds + time.perf_counter() - wall
        return Cost(wall_seconds, before.cpu_seconds + _cpu_seconds() - cpu, before.sessions + 1, _gpus())

    def keep() -> None:
        while not done.wait(_EVERY_S):
            write_json(account, asdict(now()))

    thread = threading.Thread(target=keep, daemon=True)
    final: list[Cost] = []
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


def _tokens(facts: Mapping[str, Any], context: Context, trust_remote_code: bool) -> tuple[int | None, int | None]:
    """Tokens seen and generated: as the method says, else counted for offline ones; the sum over a stack's stages."""
    if "stages" in facts:
        parts = [_tokens(stage, context, trust_remote_code) for stage in facts["stages"].values()]
        return _sum([seen for seen, _ in parts]), _sum([generated for _, generated in parts])
    said = facts.get("tokens")
    if isinstance(said, Mapping):
        return said.get("seen"), said.get("generated")
    if "response_tokens" in facts:  # PPO counts what it sampled, once, however many epochs it learned from it
        return None, facts["response_tokens"]
    if facts.get("method") not in _OFFLINE or not {"settings", "steps", "too_long"} <= set(facts):
        return None, None
    passes = facts["settings"]["epochs"] * facts["steps"]["run"] / facts["steps"]["planned"]
    return round(_tokens_a_pass(context, facts["too_long"]["max_length"], trust_remote_code) * passes), 0


def _sum(parts: Sequence[int | None]) -> int | None:
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None


def _tokens_a_pass(context: Context, max_length: int, trust_remote_code: bool) -> int:
    from tasks.models.chat import encode_all, split_by_context
    from tasks.models.loading import load_tokenizer

    tokenizer = load_tokenizer(context.folder, trust_remote_code=trust_remote_code)
    pairs = list(load_jsonl(context.dep("curated") / "train.jsonl", CuratedPair))
    kept, _ = split_by_context(pairs, tokenizer, max_length)
    sides = ([pair.chosen for pair in kept], [pair.rejected for pair in kept])
    encoded = [encode_all(tokenizer, [pair.prompt for pair in kept], side) for side in sides]
    return sum(len(head) + len(tail) for side in encoded for head, tail in side)
