"""Rollouts: which prompts an update answers, the policy's answers, and what reward, reference and critic say of them.

Everything is a function of (seed, update): a position in the data is the number of the update, so a resumed run asks
the same prompts with the same draws, and a share of the rows on each process gives what one process would give.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object

from plumbline.data_contracts.errors import ParamsError, StageError
from plumbline.data_contracts.records import Message
from plumbline.tasks.models.chat import encode_prompts
from plumbline.tasks.models.completions import Layout, completion_logits, located
from plumbline.tasks.models.distributions import target_logps
from plumbline.tasks.models.fast_linear import use_fast_linears
from plumbline.tasks.models.fast_norm import use_fast_norms
from plumbline.tasks.models.judging import Completions, Reward, Scored
from plumbline.tasks.models.logps import length_sorted_batches
from plumbline.tasks.models.sampling import Completion, sample_ids, stop_token_ids
from plumbline.tasks.training.finetuning.ppo.experience import Episodes, joined, padded
from plumbline.tasks.training.finetuning.ppo.model import ActorCritic, response_values

if TYPE_CHECKING:
    from accelerate import Accelerator
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from plumbline.tasks.training.finetuning.ppo.config import PPOConfig

ORDER, DRAWS, MINIBATCHES, TEMPERATURE, CALIBRATION = range(5)
"""Streams of random numbers, kept apart so that one more draw in one of them leaves the others as they are."""


def seed_of(seed: int, update: int, stream: int) -> int:
    """A seed for one stream of one update, 63 bits, without relation to those of other updates."""
    high, low = np.random.SeedSequence([seed, update, stream]).generate_state(2)
    return (int(high) << 31) ^ int(low)


def generator_of(seed: int, update: int, stream: int) -> torch.Generator:
    """The random numbers of one stream of one update."""
    return torch.Generator().manual_seed(seed_of(seed, update, stream))


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompts as messages (for rewards) and as token ids (for the policy); `too_long` were set aside."""

    messages: Sequence[Sequence[Message]]
    ids: Sequence[list[int]]
    too_long: int
    conversational: bool


def read_prompts(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, longest: int) -> Prompts:
    """The `prompt` column in TRL's conversational (lists of role and content) or standard format (strings).

    A string is tokenised as it is, special tokens included, without a chat template; to a reward it is one message of
    the user. Prompts of more than `longest` tokens are set aside and counted. Raises `StageError` when none is left.
    """
    if "prompt" not in dataset.column_names:
        raise ParamsError(
            f"Expected a dataset with a column `prompt`, found {dataset.column_names}. Rename the column that holds "
            "them."
        )
    raw = list(dataset["prompt"])
    if not raw:
        raise StageError("Expected prompts to sample from, found none. Check the training split.")
    conversational = not isinstance(raw[0], str)
    if conversational:
        messages = [tuple(Message(role=each["role"], content=each["content"]) for each in prompt) for prompt in raw]
        ids = encode_prompts(tokenizer, messages)
    else:
        messages = [(Message(role="user", content=prompt),) for prompt in raw]
        ids = [list(row) for row in tokenizer(raw, return_attention_mask=False)["input_ids"]]
    kept = [row for row, each in enumerate(ids) if 0 < len(each) <= longest]
    if not kept:
        raise StageError(
            f"Expected prompts of 1 to {longest} tokens (the context of policy, critic and reward less "
            f"max_completion_length), found none among {len(ids)}. Lower max_completion_length, or take models "
            "with a longer context."
        )
    return Prompts([messages[row] for row in kept], [ids[row] for row in kept], len(ids) - len(kept), conversational)


def plan_updates(
    lengths: Sequence[int], *, episodes: int, rows: int, tokens: int | None, least: int, seed: int
) -> list[np.ndarray]:
    """Prompt numbers of each update, in passes over all prompts, each in a random order of its own.

    An update takes the next `rows` prompts, or fewer where more would exceed `tokens` prompt tokens. The last update is
    whole, so up to one update more than `episodes` may be sampled. Raises `ParamsError` when fewer than `least` rows,
    one for each micro-batch, fit into `tokens`.
    """
    stream = _passes(len(lengths), seed)
    updates: list[np.ndarray] = []
    planned = 0
    upcoming = next(stream)
    while planned < episodes:
        taken: list[int] = []
        used = 0
        while len(taken) < rows and (tokens is None or used + lengths[upcoming] <= tokens):
            taken.append(upcoming)
            used += lengths[upcoming]
            upcoming = next(stream)
        if len(taken) < least:
            raise ParamsError(
                f"prompt_tokens_per_update ({tokens}) leaves {len(taken)} prompts to update {len(updates)}, fewer than "
                f"its {least} micro-batches. Raise it to {least * max(lengths)} at least, or lower num_mini_batches, "
                "or raise per_device_train_batch_size."
            )
        updates.append(np.array(taken))
        planned += len(taken)
    return updates


def _passes(count: int, seed: int) -> Iterator[int]:
    number = 0
    while True:
        yield from np.random.default_rng(seed_of(seed, number, ORDER)).permutation(count).tolist()
        number += 1


Sampler = Callable[[Sequence[int], int, float], list[Completion]]
"""Completions of the policy for prompts (by number) of an update, at a temperature."""


class RolloutMaker:
    """Makes the episodes of an update; on several processes each samples and scores a share, and all get the whole."""

    def __init__(
        self,
        model: ActorCritic,
        reference: PreTrainedModel | None,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Prompts,
        reward: Reward,
        args: PPOConfig,
        accelerator: Accelerator,
        temperatures: Sequence[float] = (),
    ) -> None:
        """`reference` None: the policy with its adapter off. `temperatures`: one is drawn an update."""
        self.model = model
        self.reference = reference
        if reference is not None:
            use_fast_linears(reference)
            use_fast_norms(reference)
        self.tokenizer = tokenizer
        self.prompts = prompts
        self.reward = reward
        self.args = args
        self.accelerator = accelerator
        self.temperatures = temperatures
        self.stops = stop_ids(model.policy, tokenizer)
        self.vllm: Any = None

    def make(self, update: int, rows: Sequence[int]) -> Episodes:
        """Sample and score the prompts `rows`. Raises `RewardError` from the reward, on every process."""
        temperature = self.temperature(update)
        mine = rows[self.accelerator.process_index :: self.accelerator.num_processes]
        # 1. sample, in eval mode and at training's precision
        self.model.eval()
        with self.accelerator.autocast(), torch.no_grad():
            completions = self._sample(self.model.policy, update, rows, temperature)
            # 2. what π_ref and the critic say of each token
            reference_logps, values, critic_pass = self._score_tokens(mine, completions, temperature)
        # 3. everything to every process, in the order of `rows`
        shares = self._gathered((completions, reference_logps, values))
        order = _interleaved([len(share[0]) for share in shares])
        everyone = [[each for share in shares for each in share[part]] for part in range(3)]
        completions, reference_logps, values = ([part[place] for place in order] for part in everyone)
        # 4. the reward
        scored = self._on_main(lambda: self.reward.score(self._answers(rows, completions)))
        *_, mask = joined([()] * len(rows), [each.token_ids for each in completions])
        return Episodes(
            prompts=[self.prompts.ids[row] for row in rows],
            completions=completions,
            scored=scored,
            logps=padded([each.logps for each in completions], mask),
            reference_logps=padded(reference_logps, mask),
            values=padded(values, mask),
            mask=mask,
            temperature=temperature,
            critic_pass=critic_pass,
        )

    def calibrate(self, count: int) -> None:
        """Let the reward see π_ref's own completions of the first `count` prompts of a random order, once."""
        order = np.random.default_rng(seed_of(self.args.seed, 0, CALIBRATION)).permutation(len(self.prompts.ids))
        rows = order[:count].tolist()
        mine_only = self.accelerator.num_processes == 1 or self.accelerator.is_main_process
        self.model.eval()

        def calibrate() -> dict[str, Any]:
            with self.accelerator.autocast(), torch.no_grad(), self.as_reference() as reference:
                completions = self._sample_own(
                    reference, rows, self._draws(0, CALIBRATION, len(rows)), self.args.temperature
                )
            self.reward.calibrate(self._answers(rows, completions))
            return self.reward.state()

        state = self._on_main(calibrate)
        if not mine_only:
            self.reward.restore(state)

    def temperature(self, update: int) -> float:
        """The temperature of sampling, reference and losses in an update."""
        if not self.temperatures:
            return self.args.temperature
        chosen = np.random.default_rng(seed_of(self.args.seed, update, TEMPERATURE)).integers(len(self.temperatures))
        return float(self.temperatures[int(chosen)])

    @contextmanager
    def as_reference(self) -> Iterator[PreTrainedModel]:
        """π_ref: the frozen model, or the policy with its adapter switched off."""
        if self.reference is not None:
            yield self.reference
            return
        with self.model.policy.disable_adapter():
            yield self.model.policy

    def _draws(self, update: int, stream: int, count: int) -> torch.Tensor:
        return torch.rand(
            (count, self.args.max_completion_length), generator=generator_of(self.args.seed, update, stream)
        )

    def _sample(
        self, policy: PreTrainedModel, update: int, rows: Sequence[int], temperature: float
    ) -> list[Completion]:
        """Completions of this process's share of `rows`."""
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        if self.vllm is not None:
            prompts = [self.prompts.messages[row] for row in rows[process::processes]]
            seed = seed_of(self.args.seed, update, DRAWS) % 2**31
            completions: list[Completion] = self.vllm.sample(
                prompts, seed=seed, batch_size=self.args.per_device_eval_batch_size
            )
            return completions
        draws = self._draws(update, DRAWS, len(rows))
        return self._sample_own(policy, rows[process::processes], draws[process::processes], temperature)

    def _sample_own(
        self, model: PreTrainedModel, rows: Sequence[int], draws: torch.Tensor, temperature: float
    ) -> list[Completion]:
        return sample_ids(
            model,
            self.tokenizer,
            [self.prompts.ids[row] for row in rows],
            draws,
            stops=self.stops,
            temperature=temperature,
            top_p=self.args.top_p,
            batch_size=self.args.per_device_eval_batch_size,
        )

    def _score_tokens(
        self, rows: Sequence[int], completions: Sequence[Completion], temperature: float
    ) -> tuple[list[list[float]], list[list[float]], torch.Tensor | None]:
        """Log π_ref (nats) and value of each token of each completion; the values again with their graph, if kept."""
        ids, heads, lengths, mask = joined(
            [self.prompts.ids[row] for row in rows], [each.token_ids for each in completions]
        )
        logps, values = torch.zeros(mask.shape), torch.zeros(mask.shape)
        keeps = self.args.keeps_critic_pass
        with self.as_reference() as reference:
            for batch in length_sorted_batches(lengths.tolist(), self.args.per_device_eval_batch_size):
                place = located(ids[batch], heads[batch], lengths[batch], mask[batch])
                place = {name: tensor.to(self.accelerator.device) for name, tensor in place.items()}
                targets = place.pop("targets")
                layout = Layout.of(**place, packed=self.model.packed)
                logits = completion_logits(reference, layout, direct=self.model.direct)
                logits = logits.float() if temperature == 1 else logits.float() / temperature
                found = target_logps(logits, targets)
                logps[batch] = torch.zeros(len(batch), mask.shape[1]).masked_scatter(mask[batch], found.cpu())
                with torch.set_grad_enabled(keeps):
                    found = response_values(self.model.critic, layout)
                    values[batch] = torch.zeros(len(batch), mask.shape[1]).masked_scatter(mask[batch], found.cpu())
        tails = (lengths - heads).tolist()
        said = [[row[:tail] for row, tail in zip(part.tolist(), tails, strict=True)] for part in (logps, values)]
        return said[0], said[1], values if keeps else None

    def _answers(self, rows: Sequence[int], completions: Sequence[Completion]) -> Completions:
        return Completions.of([self.prompts.messages[row] for row in rows], completions)

    def _gathered(self, share: Any) -> list[Any]:
        return [share] if self.accelerator.num_processes == 1 else gather_object([share])

    def _on_main(self, work: Callable[[], Any]) -> Any:
        """Do work on the main process only and hand its result, or its error, to all.

        One process, because a reward with a running normalisation, a cache or a budget must see one stream of answers.
        """
        return on_main(self.accelerator, work)


def on_main(accelerator: Accelerator, work: Callable[[], Any]) -> Any:
    """Do work on the main process and return its result on every process, or raise its error on every process."""
    if accelerator.num_processes == 1:
        return work()
    outcome: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            outcome[0] = work()
        # whatever it was, the other processes must receive it, or they wait without end
        except Exception as error:
            outcome[1] = error
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def stop_ids(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that end a completion; without a chat template those of eos alone."""
    if tokenizer.chat_template is not None:
        return stop_token_ids(policy, tokenizer)
    given = policy.config.get_text_config().eos_token_id
    return sorted({tokenizer.eos_token_id, *(given if isinstance(given, list) else [given])} - {None})


def _interleaved(counts: Sequence[int]) -> list[int]:
    """Places, in a concatenation of shares rows[r::n] of these sizes, of the rows in their order."""
    starts = np.cumsum([0, *counts[:-1]])
    return [int(starts[row % len(counts)]) + row // len(counts) for row in range(sum(counts))]


def rollout_metrics(episodes: Episodes, scored: Scored) -> dict[str, float]:
    """Figures of a rollout: reward in total and by term, fallbacks, length, how responses end."""
    texts = [each.text for each in episodes.completions]
    metrics = {
        "reward": float(np.mean(scored.total)),
        "response_tokens": episodes.tokens / len(texts),
        "eos_rate": sum(each.finished for each in episodes.completions) / len(texts),
        "empty_rate": sum(not text for text in texts) / len(texts),
    }
    for name, term in scored.terms.items():
        metrics[f"reward/{name}"] = _mean(term.raw)
        metrics[f"reward/{name}/normalised"] = _mean(term.normalised)
    return metrics | {f"fallback/{name}": float(count) for name, count in sorted(scored.fallbacks.items())}


def _mean(values: np.ndarray) -> float:
    """Mean of the values that there are; of none, 0."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else 0.0
