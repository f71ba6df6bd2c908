"""Group relative policy optimisation (Shao et al. 2024) in one file, on Plumbline's own building blocks.

    python examples/grpo_from_scratch.py [FOLDER]

A policy answers each prompt several times, a judge ranks the candidates of a prompt, and the policy moves towards the
better ones of each group. There is no reward model and no critic: the group is the baseline.

1. feedback       read the raw rows, set defects aside, drop duplicates, split by cluster of prompts
2. models         π_ref; the policy π, a copy of it; a judge, measured against people on held-out pairs
   then, an update at a time:
3. rollout        π answers each of G prompts K times
4. judge          the order of each group, turned into gains that know how noisy the judge is
5. advantages     A_k = (gain_k - mean of its group) / standard deviation
6. learn          max(-A r, -A clip(r, 1 ± ε)) with r = π / π_old, plus β · k3, an estimate of KL(π ‖ π_ref)
7. KL control     is π near π_ref: β for the next rollout
8. measure        on held-out prompts: win rate against π_ref by the known truth

It runs on the sample world in less than a minute of one core. What the library does beside (TRL's loss and its
relatives, LLM judges, resampling, vLLM) is in docs/methods/grpo.md.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from random import Random

import numpy as np
import torch

from plumbline.data_contracts.records import Message, PreferencePair, load_conversations
from plumbline.tasks.data.curation.curate import curate
from plumbline.tasks.data.feedback import human_pairs
from plumbline.tasks.data.sample_world.annotators import judge as prefers
from plumbline.tasks.data.sample_world.generate import DEMONSTRATIONS, FEEDBACK, generate
from plumbline.tasks.data.sample_world.gold import gold_reward
from plumbline.tasks.models.chat import encode_prompts
from plumbline.tasks.models.checkpoints import is_whole, seal
from plumbline.tasks.models.judging import Judgement, Prompt, Verdicts
from plumbline.tasks.models.loading import context_length, load_policy, load_tokenizer, seed_everything
from plumbline.tasks.models.logps import batch_logps, token_logps
from plumbline.tasks.models.sampling import sample
from plumbline.tasks.models.tiny import train_base
from plumbline.tasks.params.curation import CurationParams
from plumbline.tasks.params.gains import GainParams
from plumbline.tasks.params.method_sections import ValidationParams
from plumbline.tasks.params.on_policy import KlParams
from plumbline.tasks.params.sample_world import SampleWorldParams
from plumbline.tasks.params.tiny_model import TinyModelParams
from plumbline.tasks.training.finetuning.arena import open_arena
from plumbline.tasks.training.finetuning.grpo.groups import advantages
from plumbline.tasks.training.finetuning.on_policy.kl_control import KlController, k3
from plumbline.tasks.training.finetuning.ppo.losses import policy_loss
from plumbline.tasks.training.rewards.gains import build_gains
from plumbline.tasks.training.rewards.judges.pairwise import from_wins
from plumbline.tasks.training.rewards.judges.reliability import calibrate

SEED = 7
PAIRS, CONVERSATIONS = 2_000, 3_000
UPDATES, GROUPS, CANDIDATES = 24, 8, 8
PASSES = 2  # over a rollout
CLIP_RANGE = 0.2
LEARNING_RATE = 7e-4  # for 0.2 million weights; 1e-6 for real models
MAX_NEW_TOKENS = 48
EVALUATE_EVERY = 8  # updates


class Annotator:
    """A judge (`tasks.models.judging.Judge`) that compares two candidates at a time and errs as a person does."""

    name, digest, noise = "annotator", "ann-05", None

    def __init__(self) -> None:
        self.rng = Random(SEED)

    def judge(self, prompts: Sequence[Prompt], groups: Sequence[Sequence[str]]) -> Verdicts:
        """Every pair of candidates of a group, compared once."""
        return Verdicts([self._one(prompt, group) for prompt, group in zip(prompts, groups, strict=True)], {})

    def _one(self, prompt: Prompt, group: Sequence[str]) -> Judgement:
        worth = [gold_reward(prompt, text) for text in group]
        wins = np.full((len(group), len(group)), 0.5)  # P(row beats column)
        for one, other in combinations(range(len(group)), 2):
            wins[one, other] = prefers(worth[one], worth[other], "ann-05", 1.0, self.rng)
            wins[other, one] = 1 - wins[one, other]
        return from_wins(wins)


def main(folder: Path) -> None:
    """Train and print a line an evaluation."""
    seed_everything(SEED, threads=1)

    # 1. feedback: dirty rows in, a curated set out
    world = folder / "world"
    generate(SampleWorldParams(pairs=PAIRS, demonstrations=CONVERSATIONS), SEED, world)
    curated = curate(read_pairs(world / FEEDBACK), CurationParams(), SEED)

    # 2. π_ref, the policy as a copy of it, and a judge that agrees with people
    reference_folder = folder / "reference"
    if not is_whole(reference_folder):
        reference_folder.mkdir(exist_ok=True)
        train_base(
            load_conversations(world / DEMONSTRATIONS), TinyModelParams(num_train_epochs=1), SEED, 1, reference_folder
        )
        seal(reference_folder)
    tokenizer = load_tokenizer(reference_folder)
    reference, policy = load_policy(reference_folder).eval(), load_policy(reference_folder)
    context = context_length(policy.config, tokenizer)
    prompts = [pair.prompt for pair in curated.train]
    held_out = [*curated.validation, *curated.test]
    arena = open_arena(
        reference,
        tokenizer,
        held_out,
        truth,
        ValidationParams(prompts=len(held_out), max_new_tokens=48),
        batch_size=256,
        context=context,
        seed=SEED,
    )
    judge = Annotator()
    report = calibrate(judge, curated.validation, len(curated.validation), SEED)
    gains = build_gains(GainParams(kind="bradley_terry"), report["noise"]["value"])
    print(f"the judge agrees with people: κ {report['kappa']:.2f}, noise {report['noise']['value']:.2f}")
    controller = KlController(KlParams(target=0.15), beta=0.15)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=LEARNING_RATE, eps=1e-5, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / (UPDATES * PASSES))
    order = np.random.default_rng(SEED).permutation(len(prompts)).tolist()

    for update in range(UPDATES):
        # 3. rollout: the candidates of a prompt stand together
        asked = [prompts[row] for row in order[update * GROUPS : (update + 1) * GROUPS]]
        repeated = [prompt for prompt in asked for _ in range(CANDIDATES)]
        completions = sample(
            policy,
            tokenizer,
            repeated,
            max_new_tokens=MAX_NEW_TOKENS,
            temperature=1.0,
            top_p=1.0,
            seed=SEED + update,
            batch_size=GROUPS * CANDIDATES,
        )
        texts = [each.text for each in completions]
        drawn = list(zip(encode_prompts(tokenizer, repeated), [each.token_ids for each in completions], strict=True))
        old = torch.tensor([logp for each in completions for logp in each.logps])  # (M,) nats, all tokens in a row
        fixed = torch.cat(token_logps(reference, drawn, max_length=context, batch_size=GROUPS * CANDIDATES))  # (M,)

        # 4. judge
        verdicts = judge.judge(asked, [texts[row : row + CANDIDATES] for row in range(0, len(texts), CANDIDATES)])
        gained = gains(verdicts.judgements, CANDIDATES).values  # (G, K)

        # 5. advantages (section 4.1.2), one for all tokens of a completion
        advantage = torch.tensor(advantages(gained, "batch").reshape(-1), dtype=torch.float32)  # (G * K,)
        advantage = advantage.repeat_interleave(torch.tensor([len(each.token_ids) for each in completions]))  # (M,)

        # 6. learn: eq. 3 with the mean over all tokens (DAPO, Yu et al. 2025); k3 is eq. 4
        beta = controller.beta
        policy.train()
        for _ in range(PASSES):
            logps = torch.cat(batch_logps(policy, drawn))  # (M,), with a gradient
            surrogate = policy_loss(logps, old, advantage, clip_range=CLIP_RANGE).sum
            loss = (surrogate + beta * k3(fixed - logps).sum()) / len(old)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimizer.step()
            schedule.step()

        # 7. KL(π ‖ π_ref) of the rollout, the mean of log π - log π_ref over the tokens that π drew
        kl = float((old - fixed).mean())
        controller.update(kl, len(completions))

        # 8. measure
        if update % EVALUATE_EVERY == 0 or update + 1 == UPDATES:
            worth = float(np.mean(truth(repeated, texts)))
            print(
                f"update {update + 1:3d}   true reward {worth:+.3f}   β {beta:.3f}   KL {kl:.3f} nats per token   "
                f"win rate against π_ref {arena.meet(policy).win_rate:.3f} (n {len(arena.prompts)})"
            )


def read_pairs(file: Path) -> list[PreferencePair]:
    """The preference pairs of a file of feedback; rows that are none are left out."""
    return [row.outcome for row in human_pairs.read(file, file.name) if isinstance(row.outcome, PreferencePair)]


def truth(prompts: Sequence[Sequence[Message]], responses: Sequence[str]) -> list[float]:
    """The judge of the win rate: what the sample world knows, and no training reads."""
    return [gold_reward(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
