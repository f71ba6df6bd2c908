"""Direct preference optimisation (Rafailov et al. 2023) in one file, on Plumbline's own building blocks.

    python examples/dpo_from_scratch.py [FOLDER]

A policy learns from pairs alone: a prompt x with a response y_w that people preferred and one y_l that they did not.
There is no sampling while it learns, no reward model and no value function:

1. feedback       read the raw rows, set defects aside, drop duplicates, split by cluster of prompts
2. π_ref          a tiny model of the same world; the policy π starts as a copy, π_ref is never changed
3. log π_ref      of every response, once
4. learn          L = -E log sigmoid(β log π/π_ref (y_w|x) - β log π/π_ref (y_l|x)) - weight · mean log π(y_w)
5. measure        on held-out prompts: preference accuracy, win rate against π_ref by the known truth, KL

It runs on the sample world in less than a minute of one core and keeps nothing but π_ref in FOLDER. What the library
does beside (checkpoints, early stopping, LoRA, other losses) is in docs/methods/dpo.md.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from plumbline.data_contracts.records import Message, PreferencePair, load_conversations
from plumbline.tasks.data.curation.curate import curate
from plumbline.tasks.data.feedback import human_pairs
from plumbline.tasks.data.sample_world.generate import DEMONSTRATIONS, FEEDBACK, generate
from plumbline.tasks.data.sample_world.gold import gold_reward
from plumbline.tasks.models.checkpoints import is_whole, seal
from plumbline.tasks.models.length_groups import LengthGroups
from plumbline.tasks.models.loading import context_length, load_policy, load_tokenizer, seed_everything
from plumbline.tasks.models.logps import batch_logps, token_logps
from plumbline.tasks.models.pairs import TokenPair, tokenise_pairs
from plumbline.tasks.models.tiny import train_base
from plumbline.tasks.params.curation import CurationParams
from plumbline.tasks.params.method_sections import ValidationParams
from plumbline.tasks.params.sample_world import SampleWorldParams
from plumbline.tasks.params.tiny_model import TinyModelParams
from plumbline.tasks.training.finetuning.arena import open_arena
from plumbline.tasks.training.finetuning.validation import Validation

SEED = 7
PAIRS, CONVERSATIONS = 2_000, 3_000
BETA = 0.25  # strength of the tie to π_ref
SFT_WEIGHT = 0.2  # of the likelihood of y_w, which keeps the policy near what people wrote
LEARNING_RATE = 6e-4  # for 0.2 million weights; 5e-7 to 5e-6 for real models
BATCH, EPOCHS = 16, 1
EVALUATE_EVERY = 25  # optimiser steps


def main(folder: Path) -> None:
    """Train and print a line an evaluation."""
    seed_everything(SEED, threads=1)

    # 1. feedback: dirty rows in, a curated set out
    world = folder / "world"
    generate(SampleWorldParams(pairs=PAIRS, demonstrations=CONVERSATIONS), SEED, world)
    curated = curate(read_pairs(world / FEEDBACK), CurationParams(), SEED)

    # 2. π_ref, and the policy as a copy of it
    reference_folder = folder / "reference"
    if not is_whole(reference_folder):
        reference_folder.mkdir(exist_ok=True)
        train_base(
            load_conversations(world / DEMONSTRATIONS), TinyModelParams(num_train_epochs=1), SEED, 1, reference_folder
        )
        seal(reference_folder)
    tokenizer = load_tokenizer(reference_folder)
    reference, policy = load_policy(reference_folder).eval(), load_policy(reference_folder).train()
    context = context_length(policy.config, tokenizer)

    # 3. the pairs as tokens, and log π_ref (N, 2) of both responses, nats a response
    pairs = tokenise_pairs(curated.train, tokenizer, context).tokens
    held_out = tokenise_pairs([*curated.validation, *curated.test], tokenizer, context)
    reference_logps, held_out_logps = (
        torch.stack([row.sum() for row in token_logps(reference, sides(part), max_length=context, batch_size=64)])
        for part in (pairs, held_out.tokens)
    )
    reference_logps, held_out_logps = reference_logps.view(-1, 2), held_out_logps.view(-1, 2)
    arena = open_arena(
        reference,
        tokenizer,
        held_out.pairs,
        truth,
        ValidationParams(prompts=len(held_out.pairs), max_new_tokens=48),
        batch_size=256,
        context=context,
        seed=SEED,
    )
    validation = Validation(held_out, held_out_logps, BETA, context, 64, arena)
    show(0, validation.measure(policy), len(held_out.pairs))

    # 4. learn
    optimizer = torch.optim.AdamW(policy.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    order = LengthGroups([pair.longest for pair in pairs], BATCH, SEED)
    steps = EPOCHS * len(pairs) // BATCH
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    rows = [row for epoch in range(EPOCHS) for row in epoch_of(order, epoch)]
    for step in range(steps):
        batch = rows[step * BATCH : (step + 1) * BATCH]
        logps = batch_logps(policy, sides([pairs[row] for row in batch]))  # 2·B rows, (tokens,) each
        # eqs. 5 and 7: the implicit reward of a response is r = β (log π - log π_ref)
        rewards = BETA * (torch.stack([row.sum() for row in logps]).view(-1, 2) - reference_logps[batch])  # (B, 2)
        preference = -torch.nn.functional.logsigmoid(rewards[:, 0] - rewards[:, 1]).mean()
        likelihood = torch.cat(logps[0::2]).mean()  # of the tokens of y_w
        loss = preference - SFT_WEIGHT * likelihood
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        # 5. measure
        if (step + 1) % EVALUATE_EVERY == 0 or step + 1 == steps:
            show(step + 1, validation.measure(policy), len(held_out.pairs))


def read_pairs(file: Path) -> list[PreferencePair]:
    """The preference pairs of a file of feedback; rows that are none are left out."""
    return [row.outcome for row in human_pairs.read(file, file.name) if isinstance(row.outcome, PreferencePair)]


def sides(pairs: Sequence[TokenPair]) -> list[tuple[list[int], list[int]]]:
    """Prompt and response of each pair, y_w and y_l in turn."""
    return [(pair.prompt_ids, ids) for pair in pairs for ids in (pair.chosen_ids, pair.rejected_ids)]


def truth(prompts: Sequence[Sequence[Message]], responses: Sequence[str]) -> list[float]:
    """The judge of the win rate: what the sample world knows, and no training reads."""
    return [gold_reward(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]


def epoch_of(order: LengthGroups, epoch: int) -> list[int]:
    """Row numbers of an epoch, batches of similar length in a random order."""
    order.set_epoch(epoch)
    return list(order)


def show(step: int, measured: dict[str, float], prompts: int) -> None:
    """Print a line."""
    print(
        f"step {step:4d}   preference accuracy {measured['preference_accuracy']:.3f}   "
        f"win rate against π_ref {measured['win_rate']:.3f} (n {prompts})   "
        f"KL {measured['kl_per_token']:.3f} nats per token"
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
