"""Rollouts for GRPO: K candidates a prompt, judged as a group, as TRL's `rollout_func` wants them.

1. Candidates come from Plumbline's sampler, or from the vLLM that TRL keeps in step with the policy.
2. The judge orders each group, `gains` turns its judgements into numbers, and the reward mixture, if there is one,
   is added. A group without a usable judgement gets no gradient: it is counted, never guessed.
3. Groups in which all candidates gain the same are counted, and replaced by other prompts if params say so (dynamic
   sampling; Yu et al. 2025, DAPO, section 3.2).
4. Rewards become advantages (`groups`).

Prompts, draws and temperature of a rollout are functions of the seed and its number alone, so a resumed run repeats
them. What a checkpoint has to keep besides is the counts, and what the reward's normalisation has learned. Counts are
of all groups that were judged, replaced ones included; figures are of those that are learned from.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from plumbline.data_contracts.errors import JudgeError, StageError
from plumbline.data_contracts.records import Message
from plumbline.tasks.models.chat import encode_prompts
from plumbline.tasks.models.judging import Completions, Floats, GainFunction, Judge, Prompt, Reward, settle
from plumbline.tasks.models.sampling import Completion, sample_ids, stop_token_ids
from plumbline.tasks.params.grpo import GrpoParams
from plumbline.tasks.params.lengths import settled
from plumbline.tasks.training.finetuning.grpo.groups import advantages, unjudged, without_spread

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from plumbline.tasks.training.finetuning.grpo.groups import Reduce

logger = logging.getLogger(__name__)

ADVANTAGE = "advantage"
"""Name of the field that carries advantages from the rollout through TRL to its reward function."""

REWARD = "reward"
"""Figure of the reward mixture's total; those of its terms are `reward/<term>`."""


class SamplingTrainer(Protocol):
    """The part of the trainer that a rollout needs."""

    model: PreTrainedModel
    vllm_generation: Any

    @property
    def rollout_number(self) -> int: ...  # noqa: D102
    @property
    def process_index(self) -> int: ...  # noqa: D102
    def set_temperature(self, temperature: float) -> None: ...  # noqa: D102
    def autocast(self) -> Any: ...  # noqa: D102
    def sum_over_processes(self, sums: Floats) -> Floats: ...  # noqa: D102


@dataclass(slots=True)
class _Groups:
    """G groups of K candidates: `completions` is flat, group after group; `rewards` (G, K), NaN where not judged.

    `mixture` holds what the reward mixture said, a name an array (G, K): `reward`, its total, and `reward/<term>`, raw
    values, NaN where the term gave none. It is empty without a mixture.
    """

    prompts: list[Prompt]
    completions: list[Completion]
    rewards: Floats
    mixture: dict[str, Floats]

    def replace(self, rows: Sequence[int], others: _Groups) -> None:
        """Put the groups of `others` into `rows`."""
        size = self.rewards.shape[1]
        for place, row in enumerate(rows):
            self.prompts[row] = others.prompts[place]
            self.completions[row * size : (row + 1) * size] = others.completions[place * size : (place + 1) * size]
        self.rewards[rows] = others.rewards
        for name, values in others.mixture.items():
            self.mixture[name][rows] = values


class JudgedRollouts:
    """Samples and judges; TRL calls it once a rollout, with this process's prompts, each K times in a row."""

    def __init__(
        self,
        *,
        tokenizer: PreTrainedTokenizerBase,
        pool: Sequence[Prompt],
        judge: Judge,
        gains: GainFunction,
        reward: Reward | None,
        params: GrpoParams,
        temperatures: Sequence[float],
        seed: int,
    ) -> None:
        self.tokenizer = tokenizer
        self.pool = pool
        self.judge = judge
        self.gains = gains
        self.reward = reward
        self.params = params
        self.temperatures = tuple(temperatures) or (params.temperature,)
        self.seed = seed
        self.totals: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter(
            seen=0, generated=0
        )  # of all processes, see `tasks.training.finetuning.tokens`
        self.figures: dict[str, float] = {}
        self._sampled = 0  # tokens of the rollout at hand, replaced groups included

    def __call__(self, prompts: Sequence[Sequence[Mapping[str, str]]], trainer: SamplingTrainer) -> dict[str, Any]:
        """Prompt ids, completion ids, log-probabilities and advantages, a row a candidate.

        The rows may answer other prompts than were given, where groups without spread were replaced. Raises
        `JudgeError` when the judge answers another number of groups, and `StageError` when every completion is empty.
        """
        number, process = trainer.rollout_number, trainer.process_index
        draw = np.random.default_rng((self.seed, number, process))
        trainer.set_temperature(self._temperature(number))
        self.figures = {}
        self._sampled = 0
        # 1. and 2.: candidates, judged
        given: list[Prompt] = [
            tuple(Message(**turn) for turn in prompt) for prompt in prompts[:: self.params.num_generations]
        ]
        groups = self._judged(trainer, given, draw)
        # 3. replace what teaches nothing
        flat = without_spread(groups.rewards)
        self._count("zero_variance", int(flat.sum()))
        for _ in range(self.params.resample_zero_variance):
            rows = np.flatnonzero(flat).tolist()
            if not rows:
                break
            others = [self.pool[each] for each in draw.integers(len(self.pool), size=len(rows))]
            groups.replace(rows, self._judged(trainer, others, draw))
            flat = without_spread(groups.rewards)
            self._count("resampled", len(rows))
        # 4. advantages
        self._describe(groups, flat)
        trained = self._rows(groups, trainer.sum_over_processes)
        self._count_tokens(trained, trainer.sum_over_processes)
        return trained

    def win_rate(self, prompts: Sequence[Prompt], answers: Sequence[str], others: Sequence[str]) -> float:
        """Mean P(an answer beats the other one) by the judge that trains, over the prompts it judges; of none, ½."""
        groups = list(zip(answers, others, strict=True))
        verdicts = self.judge.judge(prompts, groups)
        settle(verdicts.counts)
        won = [each.wins[0, 1] for each in verdicts.judgements if each is not None]
        return float(np.mean(won)) if won else 0.5

    def state(self) -> dict[str, Any]:
        """The state for a checkpoint, JSON-able."""
        reward = self.reward.state() if self.reward else None
        return {"totals": dict(self.totals), "tokens": dict(self.tokens), "reward": reward}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state()`."""
        self.totals = Counter(state["totals"])
        self.tokens = Counter(state["tokens"])
        if self.reward is not None:
            self.reward.restore(state["reward"])

    def _temperature(self, number: int) -> float:
        """The rollout's own temperature; the same on every process, so drawn without its number."""
        draw = np.random.default_rng((self.seed, number, len(self.temperatures), 1))
        return float(self.temperatures[draw.integers(len(self.temperatures))])

    def _judged(self, trainer: SamplingTrainer, prompts: list[Prompt], draw: np.random.Generator) -> _Groups:
        size = self.params.num_generations
        completions = self._sample(trainer, prompts, draw)
        self._sampled += sum(len(each.token_ids) for each in completions)
        texts = [each.text for each in completions]
        verdicts = self.judge.judge(prompts, [texts[start : start + size] for start in range(0, len(texts), size)])
        if len(verdicts.judgements) != len(prompts):
            raise JudgeError(
                f"Expected a judgement (or None) for each of {len(prompts)} groups from the judge {self.judge.name}, "
                f"found {len(verdicts.judgements)}."
            )
        gains = self.gains(verdicts.judgements, size)
        rewards = np.array(gains.values, dtype=np.float64)
        self._refuse_odd_gains(rewards, [each is None for each in verdicts.judgements])
        for source, counts in (("judge", settle(verdicts.counts)), ("gains", gains.counts)):
            for name, value in counts.items():
                self._count(f"{source}/{name}", value)
        self._count("groups", len(prompts))
        self._count("unjudged", int(unjudged(rewards).sum()))
        mixture = {name: values.reshape(rewards.shape) for name, values in self._mixture(prompts, completions).items()}
        if mixture:
            rewards += self.params.reward_weight * mixture[REWARD]
        return _Groups(prompts, completions, rewards, mixture)

    def _refuse_odd_gains(self, values: Floats, missing: Sequence[bool]) -> None:
        expected = (len(missing), self.params.num_generations)
        known = ~np.asarray(missing, dtype=bool)
        if values.shape != expected or not np.isfinite(values[known]).all() or not np.isnan(values[~known]).all():
            raise StageError(
                f"Expected gains of shape {expected}, finite in the {int(known.sum())} groups that were judged and NaN "
                f"in the others, found shape {values.shape} with {int((~np.isfinite(values)).sum())} not finite. It is "
                "a defect of the gain function."
            )

    def _mixture(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> dict[str, Floats]:
        """Total and terms (G * K,) of the reward mixture, by the names of the figures that they become."""
        if self.reward is None:
            return {}
        scored = self.reward.score(
            Completions.of([prompt for prompt in prompts for _ in range(self.params.num_generations)], completions)
        )
        for name, count in scored.fallbacks.items():
            self._count(f"reward fallback/{name}", count)
        # copies: groups are replaced in place
        terms = {f"{REWARD}/{name}": np.array(term.raw, dtype=np.float64) for name, term in scored.terms.items()}
        return {REWARD: np.array(scored.total, dtype=np.float64)} | terms

    def _sample(self, trainer: SamplingTrainer, prompts: list[Prompt], draw: np.random.Generator) -> list[Completion]:
        """K completions a prompt."""
        heads = [head for head in encode_prompts(self.tokenizer, prompts) for _ in range(self.params.num_generations)]
        if self.params.use_vllm:
            return self._sample_vllm(trainer, heads)
        # a row's draws are its own, so that neither batch size nor neighbours change a completion
        draws = torch.as_tensor(draw.random((len(heads), settled(self.params.max_completion_length)), dtype=np.float32))
        with trainer.autocast():
            return sample_ids(
                trainer.model,
                self.tokenizer,
                heads,
                draws,
                stops=stop_token_ids(trainer.model, self.tokenizer),
                temperature=self._temperature(trainer.rollout_number),
                top_p=self.params.top_p,
                batch_size=self.params.per_device_eval_batch_size,
            )

    def _sample_vllm(self, trainer: SamplingTrainer, heads: list[list[int]]) -> list[Completion]:
        """TRL pushed the policy's weights to vLLM before it called the rollout; vLLM draws by a seed of its own."""
        _, ids, logps, _ = trainer.vllm_generation.generate(
            prompts=heads, images=None, num_generations=self.params.num_generations
        )
        stops = set(stop_token_ids(trainer.model, self.tokenizer))
        completions = []
        for tokens, rows in zip(ids, logps, strict=True):
            finished = tokens[-1] in stops
            text = self.tokenizer.decode(tokens[:-1] if finished else tokens, skip_special_tokens=True)
            # the first of the log-probabilities of a position is the sampled token's
            completions.append(Completion(text.strip(), tuple(tokens), tuple(row[0] for row in rows), finished))
        return completions

    def _describe(self, groups: _Groups, flat: Any) -> None:
        texts = [each.text for each in groups.completions]
        empty, finished = sum(not text for text in texts), sum(each.finished for each in groups.completions)
        judged = groups.rewards[~unjudged(groups.rewards)]
        self._count("completions", len(texts))
        self._count("empty", empty)
        self._count("unfinished", len(texts) - finished)
        self.figures |= {
            "gain_spread": float(judged.std(axis=1, ddof=1).mean()) if judged.size else 0.0,
            "zero_variance_share": float(np.mean(flat)),
            "finished": finished / len(texts),
            "response_tokens": sum(len(each.token_ids) for each in groups.completions) / len(texts),
            # the mean of -log π over samples of π estimates its entropy, nats per token at the sampling temperature
            "sampled_entropy": -float(np.mean([logp for each in groups.completions for logp in each.logps])),
        }
        for name, values in groups.mixture.items():
            self.figures[name] = float(np.nanmean(values)) if not np.isnan(values).all() else 0.0
        if empty == len(texts):
            raise StageError(
                f"Every one of {len(texts)} completions of a rollout is empty: the policy ends its answers before a "
                "word. Check the chat template and what π_ref was trained on, or lower the learning rate."
            )
        if not finished:
            logger.warning(
                "no completion of this rollout (%d) reached its end token within max_completion_length=%d; the policy "
                "cannot learn to end its answers",
                len(texts),
                self.params.max_completion_length,
            )
        if not judged.size:
            logger.warning("the judge gave no usable answer on any group of this rollout: no gradient")

    def _rows(self, groups: _Groups, reduce: Reduce) -> dict[str, Any]:
        heads = encode_prompts(self.tokenizer, groups.prompts)
        return {
            "prompt_ids": [head for head in heads for _ in range(self.params.num_generations)],
            "completion_ids": [list(each.token_ids) for each in groups.completions],
            "logprobs": [list(each.logps) for each in groups.completions],
            ADVANTAGE: advantages(groups.rewards, self.params.scale_rewards, reduce).reshape(-1).tolist(),
        }

    def _count_tokens(self, rows: Mapping[str, Sequence[Sequence[int]]], reduce: Reduce) -> None:
        length = sum(len(ids) for name in ("prompt_ids", "completion_ids") for ids in rows[name])
        seen, generated = reduce(np.array([length * self.params.num_iterations, self._sampled], dtype=np.float64))
        self.tokens.update(seen=int(seen), generated=int(generated))

    def _count(self, name: str, value: float) -> None:
        """Add to the totals of the run and to the figures of this rollout."""
        self.totals[name] += value  # type: ignore[assignment]
        self.figures[name] = self.figures.get(name, 0.0) + value
