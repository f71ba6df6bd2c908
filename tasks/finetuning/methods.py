"""The fine-tuning methods: one module, one params section and one line of `METHODS` each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_contracts.params import Section
from data_contracts.progress import Progress, silent
from data_contracts.records import CuratedPair, Message
from tasks.finetuning.params import DpoParams, FinetuneParams

Judge = Callable[[Sequence[Sequence[Message]], Sequence[str]], list[float]]
"""Scores responses to prompts, higher is better; only the order of two responses to one prompt counts."""


@dataclass(frozen=True, slots=True)
class FinetuneInputs:
    """What every method is given besides its params.

    `reference` is the folder of π_ref, which is only read. `folder` is the draft of the artifact;
    `work` survives a kill. `judge_digest` names the judge, so that a run is never resumed under another one;
    `judge_length` is the most tokens of prompt and response that it takes (None: as many as the model).
    """

    reference: Path
    train: Sequence[CuratedPair]
    validation: Sequence[CuratedPair]
    judge: Judge | None
    seed: int
    threads: int
    folder: Path
    work: Path
    progress: Progress = silent
    trust_remote_code: bool = False
    judge_digest: str | None = None
    judge_length: int | None = None


@dataclass(frozen=True, slots=True)
class Method:
    """One method: its params section, how it runs, and the check of its params that needs its library."""

    params: type[Section]
    run: Callable[[FinetuneInputs, FinetuneParams], dict[str, Any]]
    check: Callable[[FinetuneParams], None]


def _run_dpo(inputs: FinetuneInputs, params: FinetuneParams) -> dict[str, Any]:
    from tasks.finetuning import dpo

    return dpo.run(inputs, params.dpo)


def _check_dpo(params: FinetuneParams) -> None:
    from tasks.finetuning import dpo

    dpo.check_params(params.dpo)


METHODS: dict[str, Method] = {
    "dpo": Method(params=DpoParams, run=_run_dpo, check=_check_dpo),
}
