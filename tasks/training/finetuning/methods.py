"""The fine-tuning methods: one module, one params section and one line of `METHODS` each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Any

from plumbline.data_contracts.progress import Progress, silent
from plumbline.data_contracts.records import CuratedPair, Message, UnpairedResponse
from plumbline.tasks.models.judging import GainFunction, Judge, Reward
from plumbline.tasks.params.finetuning import FinetuneParams, KtoParams
from plumbline.tasks.params.grpo import GrpoParams
from plumbline.tasks.params.ppo import PpoParams
from plumbline.tasks.params.section import Section

Score = Callable[[Sequence[Sequence[Message]], Sequence[str]], Sequence[float | None]]
"""Scores responses to prompts, higher is better; only the order of two responses to one prompt counts. None: a response
that is longer, in the tokens of the scorer, than it takes."""


@dataclass(frozen=True, slots=True)
class FinetuneInputs:
    """The inputs of every method besides its params.

    `start` is the folder of the policy that training starts from, `reference` that of π_ref; both are only read, and
    they are one folder except in a later stage of a stack. `folder` is the draft of the policy; `work` survives a kill.

    `judge` is the held-out judge that chooses the best checkpoint; `judge_digest` names it, so that a run is never
    resumed under another one; `judge_length` is the most tokens of prompt and response that it takes (None: as many
    as the model). `reward` is what PPO maximises and GRPO may add, `ranker` ranks GRPO's candidates and `gains` turns
    its judgements into numbers, `reward_model` is the folder that a critic starts from. `temperatures` are drawn from,
    an update at a time, by methods that sample. `unpaired` are single judged responses, which KTO learns from besides
    the pairs. `refused_threshold` is the largest share of formatted records that the chat template may refuse.
    """

    start: Path
    reference: Path
    train: Sequence[CuratedPair]
    validation: Sequence[CuratedPair]
    judge: Score | None
    seed: int
    threads: int
    folder: Path
    work: Path
    progress: Progress = silent
    trust_remote_code: bool = False
    judge_digest: str | None = None
    judge_length: int | None = None
    reward: Reward | None = None
    ranker: Judge | None = None
    gains: GainFunction | None = None
    reward_model: Path | None = None
    temperatures: Sequence[float] = ()
    unpaired: Sequence[UnpairedResponse] = ()
    refused_threshold: float = 0.0


@dataclass(frozen=True, slots=True)
class Needs:
    """Needs of a method besides preference pairs and π_ref, under the params that it is given."""

    mixture: bool = False  # the reward mixture, which it maximises
    ranker: bool = False  # the judge that ranks candidates
    unpaired: bool = False  # single judged responses
    vllm: bool = False  # an installed vLLM, which samples


def _nothing_more(params: Section) -> Needs:
    return Needs()


def _single_responses(params: KtoParams) -> Needs:
    return Needs(unpaired=True)


def _ranked_candidates(params: GrpoParams) -> Needs:
    return Needs(ranker=True, mixture=params.reward_weight > 0, vllm=params.use_vllm)


def _rewarded_completions(params: PpoParams) -> Needs:
    return Needs(mixture=True, vllm=params.use_vllm)


@dataclass(frozen=True, slots=True)
class Method:
    """One method: its key in `finetune`, what it needs, and the module that does it.

    The module has `run(inputs, params)`, which checks its inputs first, and `check_params(params)`. It is imported when
    the method runs: it needs torch and TRL, which a command line should not wait for.
    """

    name: str
    module: str
    needs: Callable[[Any], Needs] = _nothing_more

    def section(self, params: FinetuneParams) -> Section:
        """The method's own section of `finetune`."""
        section: Section = getattr(params, self.name)
        return section

    def run(self, inputs: FinetuneInputs, params: FinetuneParams) -> dict[str, Any]:
        """Train the policy into `inputs.folder` and return facts for the manifest."""
        facts: dict[str, Any] = import_module(self.module).run(inputs, self.section(params))
        return facts

    def check(self, params: FinetuneParams) -> None:
        """Raise `ParamsError` for arguments that the method's library does not know or refuses."""
        import_module(self.module).check_params(self.section(params))


METHODS: dict[str, Method] = {
    "sft": Method("sft", "plumbline.tasks.training.finetuning.sft"),
    "dpo": Method("dpo", "plumbline.tasks.training.finetuning.dpo"),
    "kto": Method("kto", "plumbline.tasks.training.finetuning.kto", _single_responses),
    "orpo": Method("orpo", "plumbline.tasks.training.finetuning.orpo"),
    "grpo": Method("grpo", "plumbline.tasks.training.finetuning.grpo.run", _ranked_candidates),
    "ppo": Method("ppo", "plumbline.tasks.training.finetuning.ppo.run", _rewarded_completions),
}


def needs_of(params: FinetuneParams) -> Needs:
    """The needs of all methods of a run."""
    found = [METHODS[name].needs(METHODS[name].section(params)) for name in params.methods]
    return Needs(**{each.name: any(getattr(needs, each.name) for needs in found) for each in fields(Needs)})
