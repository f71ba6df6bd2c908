"""Proximal policy optimisation (Schulman et al. 2017) of a language model in one file, on Plumbline's building blocks.

    python examples/ppo_from_scratch.py [FOLDER]

A policy answers prompts, a reward model that learned from people scores the completions, and the policy moves towards
what scores well, near the policy that it came from:

1. feedback       read the raw rows, set defects aside, drop duplicates, split by cluster of prompts
2. models         π_ref; a reward model on the pairs; the policy π, a copy of π_ref; a critic V on the reward model
   then, an update at a time:
3. rollout        π answers prompts; reward model, π_ref and critic say what they think of the completions
4. KL control     is π near π_ref: β for the next rollout
5. rewards        of token t: -β (log π - log π_ref), and the score on the last token
6. advantages     A_t by generalised advantage estimation, whitened over the rollout
7. learn          some passes: max(-A r, -A clip(r, 1 ± ε)) with r = π / π_old, and the clipped squared error of V
8. measure        on held-out prompts: win rate against π_ref by the known truth, which the reward never saw

It runs on the sample world in less than a minute of one core. What the library does beside (checkpoints, several
processes, LoRA, vLLM) is in docs/methods/ppo.md.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from plumbline.data_contracts.progress import silent
from plumbline.data_contracts.records import Message, PreferencePair, load_conversations
from plumbline.tasks.data.curation.curate import curate
from plumbline.tasks.data.feedback import human_pairs
from plumbline.tasks.data.sample_world.generate import DEMONSTRATIONS, FEEDBACK, generate
from plumbline.tasks.data.sample_world.gold import gold_reward
from plumbline.tasks.models.chat import encode_prompts
from plumbline.tasks.models.checkpoints import is_whole, seal
from plumbline.tasks.models.completions import located
from plumbline.tasks.models.judging import Completions
from plumbline.tasks.models.loading import context_length, load_policy, load_tokenizer, seed_everything
from plumbline.tasks.models.logps import token_logps
from plumbline.tasks.models.sampling import sample
from plumbline.tasks.models.tiny import train_base
from plumbline.tasks.params.curation import CurationParams
from plumbline.tasks.params.method_sections import ValidationParams
from plumbline.tasks.params.mixture import MixtureParams
from plumbline.tasks.params.on_policy import KlParams, ShapingParams
from plumbline.tasks.params.reward import RewardParams
from plumbline.tasks.params.sample_world import SampleWorldParams
from plumbline.tasks.params.tiny_model import TinyModelParams
from plumbline.tasks.training.finetuning.arena import open_arena
from plumbline.tasks.training.finetuning.on_policy.kl_control import KlController, check_kl_sign
from plumbline.tasks.training.finetuning.ppo.advantages import gae, whiten
from plumbline.tasks.training.finetuning.ppo.experience import Episodes, Experience, joined, minibatch_rows, padded
from plumbline.tasks.training.finetuning.ppo.losses import policy_loss, value_loss
from plumbline.tasks.training.finetuning.ppo.model import ActorCritic, load_critic
from plumbline.tasks.training.finetuning.ppo.rewards import shape_rewards
from plumbline.tasks.training.finetuning.ppo.rollouts import plan_updates
from plumbline.tasks.training.rewards.bradley_terry import train_reward
from plumbline.tasks.training.rewards.mixture import build_mixture
from plumbline.tasks.training.rewards.scoring import RewardModel

SEED = 7
PAIRS, CONVERSATIONS = 2_000, 3_000
UPDATES, EPISODES = 24, 64  # an update's completions
PASSES = 2  # over a rollout
CLIP_RANGE, VALUE_CLIP_RANGE, VALUE_WEIGHT = 0.2, 0.2, 0.5
GAMMA, LAMBDA = 1.0, 0.95
POLICY_RATE, CRITIC_RATE = 7e-4, 1.5e-3  # for 0.2 million weights; 1e-6 and 1e-5 for real models
MAX_NEW_TOKENS = 48
EVALUATE_EVERY = 8  # updates


def main(folder: Path) -> None:
    """Train and print a line an evaluation."""
    seed_everything(SEED, threads=1)

    # 1. feedback: dirty rows in, a curated set out
    world = folder / "world"
    generate(SampleWorldParams(pairs=PAIRS, demonstrations=CONVERSATIONS), SEED, world)
    curated = curate(read_pairs(world / FEEDBACK), CurationParams(), SEED)

    # 2. π_ref, reward model, policy, critic
    reference_folder, reward_folder = folder / "reference", folder / "reward"
    if not is_whole(reference_folder):
        reference_folder.mkdir(exist_ok=True)
        train_base(
            load_conversations(world / DEMONSTRATIONS), TinyModelParams(num_train_epochs=1), SEED, 1, reference_folder
        )
        seal(reference_folder)
    train_reward(
        reference_folder,
        curated.train,
        curated.validation,
        RewardParams(learning_rate=1e-3, per_device_train_batch_size=32, max_length=256, gradient_checkpointing=False),
        SEED,
        1,
        reward_folder,
        folder / "work",
        silent,
    )
    tokenizer = load_tokenizer(reference_folder)
    reference, policy = load_policy(reference_folder).eval(), load_policy(reference_folder)
    critic = load_critic(
        reward_folder, policy_tokenizer=tokenizer, critic_tokenizer=load_tokenizer(reward_folder), seed=SEED
    )
    model = ActorCritic(policy, critic)
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
    # a reward model has no origin and no unit: its scale is that of π_ref's own completions
    reward = build_mixture(MixtureParams(), RewardModel.load(reward_folder))
    reward.calibrate(Completions.of(arena.prompts, arena.reference_completions))
    controller = KlController(KlParams(target=0.15), beta=0.04)
    optimizer = torch.optim.AdamW(
        [
            {"params": policy.parameters(), "lr": POLICY_RATE},
            {"params": critic.parameters(), "lr": CRITIC_RATE},
        ],
        eps=1e-5,
        weight_decay=0.0,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / (UPDATES * PASSES))
    generator = torch.Generator().manual_seed(SEED)
    sizes = [len(head) for head in encode_prompts(tokenizer, prompts)]
    plan = plan_updates(sizes, episodes=UPDATES * EPISODES, rows=EPISODES, tokens=None, least=1, seed=SEED)

    for update, chosen in enumerate(plan):
        # 3. rollout
        asked = [prompts[row] for row in chosen]
        heads = encode_prompts(tokenizer, asked)
        completions = sample(
            policy,
            tokenizer,
            asked,
            max_new_tokens=MAX_NEW_TOKENS,
            temperature=1.0,
            top_p=1.0,
            seed=SEED + update,
            batch_size=EPISODES,
        )
        tails = [each.token_ids for each in completions]
        ids, prompt_lengths, lengths, mask = joined(heads, tails)  # (N, L), (N,), (N,), (N, T)
        said = token_logps(reference, list(zip(heads, tails, strict=True)), max_length=context, batch_size=EPISODES)
        with torch.no_grad():
            values = model(**located(ids, prompt_lengths, lengths, mask), temperature=1.0, policy=False).values  # (M,)
        episodes = Episodes(
            prompts=heads,
            completions=completions,
            scored=reward.score(Completions.of(asked, completions)),
            logps=padded([each.logps for each in completions], mask),
            reference_logps=padded([row.tolist() for row in said], mask),
            values=torch.zeros(mask.shape).masked_scatter(mask, values),
            mask=mask,
            temperature=1.0,
        )

        # 4. KL(π ‖ π_ref), the mean of log π - log π_ref over the tokens that π drew
        kl, error = episodes.kl_per_token()
        check_kl_sign(kl, error)
        beta = controller.beta
        controller.update(kl, EPISODES)

        # 5. a reward for each token (Ziegler et al. 2019, section 2.2)
        scores = torch.as_tensor(episodes.scored.total, dtype=torch.float32)
        shaped = shape_rewards(
            scores,
            episodes.logps,
            episodes.reference_logps,
            mask,
            episodes.finished,
            beta=beta,
            params=ShapingParams(),
        )

        # 6. advantages and returns (Schulman et al. 2016, eqs. 11, 12 and 16)
        advantages, returns = gae(shaped.rewards, episodes.values, mask, gamma=GAMMA, lam=LAMBDA)
        experience = Experience(
            ids,
            prompt_lengths,
            lengths,
            mask,
            episodes.logps,
            episodes.values,
            whiten(advantages, mask),
            returns,
            temperature=1.0,
        )

        # 7. learn: each pass over the rollout is an optimiser step
        for _ in range(PASSES):
            for rows, _parts in minibatch_rows(lengths, 1, generator, process=0, processes=1, parts=1):
                batch = experience.micro_batch(rows)
                old = {name: batch.pop(name) for name in ("logps", "values", "advantages", "returns")}
                now = model(**batch, temperature=1.0, entropies=False)
                surrogate = policy_loss(now.logps, old["logps"], old["advantages"], clip_range=CLIP_RANGE)  # eq. 7
                regression = value_loss(now.values, old["values"], old["returns"], clip_range=VALUE_CLIP_RANGE)
                loss = (surrogate.sum + VALUE_WEIGHT * regression.sum) / experience.tokens(rows)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                for network in (policy, critic):
                    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
                schedule.step()

        # 8. measure
        if update % EVALUATE_EVERY == 0 or update + 1 == UPDATES:
            meeting = arena.meet(policy)
            print(
                f"update {update + 1:3d}   reward {float(scores.mean()):+.3f}   β {beta:.3f}   KL {kl:.3f} nats per "
                f"token   win rate against π_ref {meeting.win_rate:.3f} (n {len(arena.prompts)})"
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
