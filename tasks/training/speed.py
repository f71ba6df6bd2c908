"""Minutes of a run: tokens that each stage reads or writes, times the seconds that one takes on this machine.

A model that fits into memory is measured: a forward and backward pass over some of the pairs, a forward pass, and some
sampled tokens. For a larger one the arithmetic is counted, 6 operations a parameter and token for training and 2 for
reading (Kaplan et al. 2020), at half the rate of a matrix product here. Neither knows of early stopping, of
evaluations while training or of what else the machine does, so an estimate is good to a factor of two.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plumbline.tasks.models.pairs import TokenPair
from plumbline.tasks.params.lengths import settled
from plumbline.tasks.params.whole import Params

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

STARTUP_S = 10.0  # imports and loading of a stage that trains
_TRAINING_BYTES = 20  # a parameter: float32 weights, gradients, AdamW's moments, and room for activations
_LARGEST_MEASURED = 300_000_000  # parameters: a pass over a few hundred tokens takes seconds on one core
_MEASURED_TOKENS = 1024
_MEASURED_ROWS = 8
_SAMPLED, _SAMPLED_ROWS = 16, 64
_SIDE = 1024  # of the matrices whose product is timed
_PRODUCT_S = 0.3
_REACHED = 0.5  # share of a matrix product's rate that a transformer reaches


@dataclass(frozen=True, slots=True)
class Rates:
    """Seconds a token: in training (forward and backward), in reading (forward), in sampling; and how it is known."""

    train: float
    read: float
    sample: float
    how: str


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of a split's fitting pairs, each pair's two sequences, and those of prompt and chosen response alone."""

    pairs: int
    prompts: int
    whole: int
    chosen: int
    prompt_tokens: int

    @classmethod
    def of(cls, pairs: Sequence[TokenPair], prompts: Sequence[int]) -> Tokens:
        """Of tokenised pairs, and of the lengths of the distinct prompts."""
        chosen = sum(len(pair.prompt_ids) + len(pair.chosen_ids) for pair in pairs)
        return cls(len(pairs), len(prompts), sum(pair.total for pair in pairs), chosen, sum(prompts))


def measure_rates(
    folder: Path, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[TokenPair], parameters: int, params: Params
) -> Rates:
    """The rates of the model in `folder` on this machine, its GPU where there is one."""
    import torch

    torch.set_num_threads(params.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if parameters > _LARGEST_MEASURED or _TRAINING_BYTES * parameters > _free_memory(device):
        return _counted(parameters, device)
    from plumbline.tasks.models.loading import load_policy

    model = load_policy(folder, trust_remote_code=params.reference.trust_remote_code).to(device)
    return _measured(model, tokenizer, pairs)


def minutes(params: Params, rates: Rates, splits: dict[str, Tokens]) -> dict[str, float]:
    """Minutes of each stage that reads a model, by its name."""
    train, test = splits["train"], splits["test"]
    sft, reward, evaluation = params.reference.sft, params.reward, params.evaluation
    sampled = settled(evaluation.max_new_tokens)
    share = 1.0 if sft.max_examples is None else min(1.0, sft.max_examples / max(train.pairs, 1))
    seconds = {
        "reference": sft.num_train_epochs * share * train.chosen * rates.train
        if sft.enabled and sft.data == "curated"
        else 0.0,
        "reward": reward.num_train_epochs * train.whole * rates.train + test.whole * rates.read,
        "finetune": sum(_of_method(name, params, rates, train) for name in params.finetune.methods),
        "evaluate": 2 * test.whole * rates.read
        + 2 * min(test.prompts, evaluation.max_prompts) * sampled * (rates.sample + 2 * rates.read),
    }
    return {stage: (STARTUP_S + taken) / 60 for stage, taken in seconds.items()}


def _of_method(name: str, params: Params, rates: Rates, train: Tokens) -> float:
    """Seconds of one method. What samples: completions of the longest length, read by π_ref and by the judge."""
    finetune = params.finetune
    prompt = train.prompt_tokens / max(train.prompts, 1)
    if name == "ppo":
        ppo = finetune.ppo
        sampled = settled(ppo.max_completion_length)
        length = prompt + sampled
        passes = 2 * ppo.num_ppo_epochs * rates.train + 4 * rates.read  # policy and critic; both, π_ref and the reward
        return ppo.total_episodes * (sampled * rates.sample + length * passes)
    if name == "grpo":
        grpo = finetune.grpo
        completions = grpo.num_train_epochs * train.prompts * grpo.num_generations
        sampled = settled(grpo.max_completion_length)
        length = prompt + sampled
        return completions * (sampled * rates.sample + length * (grpo.num_iterations * rates.train + 3 * rates.read))
    if name == "sft":
        return finetune.sft.num_train_epochs * train.chosen * rates.train
    if name == "orpo":
        return finetune.orpo.num_train_epochs * train.whole * rates.train
    own = finetune.kto if name == "kto" else finetune.dpo
    return own.num_train_epochs * train.whole * rates.train + train.whole * rates.read  # π_ref reads every pair once


def _measured(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[TokenPair]) -> Rates:
    import torch

    from plumbline.tasks.models.logps import pad_right
    from plumbline.tasks.models.sampling import sample_ids

    rows = _rows(pairs)
    ids, mask = (each.to(model.device) for each in pad_right(rows, 0))
    heads = [rows[place % len(rows)][:_SAMPLED] for place in range(_SAMPLED_ROWS)]
    draws = torch.rand((_SAMPLED_ROWS, _SAMPLED), generator=torch.Generator().manual_seed(0))
    model.train()

    def step() -> None:
        model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss.backward()
        model.zero_grad()

    def read() -> None:
        with torch.inference_mode():
            model(input_ids=ids, attention_mask=mask)

    def sample() -> None:
        sample_ids(model, tokenizer, heads, draws, stops=[], temperature=1.0, top_p=1.0, batch_size=_SAMPLED_ROWS)

    count = int(mask.sum())
    step()  # the first one allocates
    taken = [_seconds(action, model.device) for action in (step, read, sample)]
    return Rates(taken[0] / count, taken[1] / count, taken[2] / (_SAMPLED * _SAMPLED_ROWS), "measured with this model")


def _rows(pairs: Sequence[TokenPair]) -> list[list[int]]:
    """Some sequences of the pairs, up to a bound of tokens, so that the measurement takes seconds."""
    rows: list[list[int]] = []
    for pair in pairs[:_MEASURED_ROWS]:
        row = [*pair.prompt_ids, *pair.chosen_ids]
        rows.append(row[: max(_MEASURED_TOKENS - sum(map(len, rows)), 1)])
        if sum(map(len, rows)) >= _MEASURED_TOKENS:
            break
    return rows


def _counted(parameters: int, device: torch.device) -> Rates:
    import torch

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    matrix = torch.ones((_SIDE, _SIDE), dtype=dtype, device=device)
    matrix @ matrix
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < _PRODUCT_S:
        matrix @ matrix
        done += 1
    _wait(device)
    rate = 2 * _SIDE**3 * done / (time.perf_counter() - start) * _REACHED
    read = 2 * parameters / rate
    return Rates(3 * read, read, read, f"counted, at {rate / 1e9:.0f} billion operations a second")


def _seconds(action: Callable[[], Any], device: torch.device) -> float:
    start = time.perf_counter()
    action()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()


def _free_memory(device: torch.device) -> int:
    import psutil
    import torch

    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else int(psutil.virtual_memory().available)
