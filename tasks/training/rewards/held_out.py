"""Held-out data of a reward model: its audit on held-out pairs, and a second model that no policy is trained by.

A policy that is optimised against a reward model finds that model's errors, so the win rate that the same model reports
rises with them (Gao et al. 2023). The held-out judge is a second reward model of the same kind, from other pairs and
another seed. What it does not take away: both start from the same weights and learn from the same people, so errors
that these cause they share.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

from plumbline.data_contracts.artifact import write_json
from plumbline.data_contracts.errors import StageError
from plumbline.data_contracts.progress import Progress
from plumbline.data_contracts.records import CuratedPair
from plumbline.tasks.models.chat import split_by_context
from plumbline.tasks.params.reward import RewardParams
from plumbline.tasks.training.rewards.audit import audit_reward, score_pairs
from plumbline.tasks.training.rewards.bradley_terry import train_reward
from plumbline.tasks.training.rewards.layout import FACTS, HELD_OUT
from plumbline.tasks.training.rewards.scoring import RewardModel

AUDIT = "audit.json"
"""Beside each model: its audit on the test split."""

JudgeName = Literal["held_out", "reward_model"]
"""The judge that reports win rates: a reward model that no policy is trained by, or the one that is the reward."""

_SEEDS = 2**31
"""Seeds are below it (`Params.seed`)."""


@dataclass(frozen=True, slots=True)
class Splits:
    """Training pairs of the reward model and of the held-out judge, and what both are evaluated and audited on."""

    training: Sequence[CuratedPair]
    held_out: Sequence[CuratedPair]
    validation: Sequence[CuratedPair]
    test: Sequence[CuratedPair]


@dataclass(frozen=True, slots=True)
class RewardTraining:
    """The start of one reward model, and the folders of it and its checkpoints."""

    init: Path
    folder: Path
    work: Path
    seed: int
    threads: int
    progress: Progress
    trust_remote_code: bool = False

    def held_out(self) -> RewardTraining:
        """The run of the held-out judge: folders inside, and the next seed."""
        return dataclasses.replace(
            self,
            folder=self.folder / HELD_OUT,
            work=self.work / HELD_OUT,
            seed=(self.seed + 1) % _SEEDS,
            progress=_named(self.progress, "held-out judge"),
        )


def train_and_audit(run: RewardTraining, splits: Splits, params: RewardParams) -> dict[str, Any]:
    """Train the reward model and, where `splits` holds pairs for one, the held-out judge; audit each; return facts.

    Each resumes from checkpoints of its own. Facts of the judge, if there is one, stand under `held_out`. Raises
    what `bradley_terry.train_reward` raises.
    """
    facts = _train_one(run, splits.training, splits, params)
    if not splits.held_out:
        return facts
    judge = run.held_out()
    judge.folder.mkdir(exist_ok=True)
    return {**facts, HELD_OUT: _train_one(judge, splits.held_out, splits, params)}


def split_off(pairs: Sequence[CuratedPair], share: float, seed: int) -> tuple[list[CuratedPair], list[CuratedPair]]:
    """The pairs of the reward model and those of the held-out judge, each in the order given.

    Whole clusters go to the judge, in the order of a hash seeded by `seed`, as long as they fit into `share` of the
    pairs: neither content nor the order of the pairs matters. Raises `StageError` when no cluster fits.
    """
    if share == 0:
        return list(pairs), []
    sizes = Counter(pair.cluster for pair in pairs)
    room = share * len(pairs)
    taken: set[str] = set()
    for cluster in sorted(sizes, key=lambda name: (_draw(name, seed), name)):
        if sizes[cluster] <= room:
            taken.add(cluster)
            room -= sizes[cluster]
    if not taken:
        raise StageError(
            f"reward.held_out_share is {share:g}: expected whole clusters within {share * len(pairs):.1f} of "
            f"{len(pairs)} training pairs for the held-out judge, found none among {len(sizes)}. Raise the share, add "
            "pairs with other prompts, or set it to 0."
        )
    rest = [pair for pair in pairs if pair.cluster not in taken]
    return rest, [pair for pair in pairs if pair.cluster in taken]


def choose_judge(reward: Path) -> tuple[JudgeName, Path]:
    """Choose the judge beside the reward model in `reward`, and its folder: the held-out judge if there is one.

    Weights and audit are in that folder.
    """
    held_out = reward / HELD_OUT
    return ("held_out", held_out) if (held_out / FACTS).is_file() else ("reward_model", reward)


def audit_held_out(
    folder: Path, pairs: Sequence[CuratedPair], params: RewardParams, *, trust_remote_code: bool = False
) -> dict[str, Any]:
    """Score held-out pairs and audit the scores; pairs beyond the model's length are counted as `too_long`."""
    model = RewardModel.load(folder, batch_size=params.per_device_eval_batch_size, trust_remote_code=trust_remote_code)
    kept, too_long = split_by_context(pairs, model.tokenizer, model.max_length)
    prompts = [pair.prompt for pair in kept]
    chosen, rejected = [pair.chosen for pair in kept], [pair.rejected for pair in kept]
    rewards = model.score(prompts, chosen), model.score(prompts, rejected)
    scored = score_pairs(*rewards, chosen, rejected, [pair.cluster for pair in kept])
    return {**audit_reward(scored, params.audit), "too_long": len(too_long)}


def _train_one(
    run: RewardTraining, training: Sequence[CuratedPair], splits: Splits, params: RewardParams
) -> dict[str, Any]:
    facts = train_reward(
        run.init,
        training,
        splits.validation,
        params,
        run.seed,
        run.threads,
        run.folder,
        run.work,
        run.progress,
        trust_remote_code=run.trust_remote_code,
    )
    audit = audit_held_out(run.folder, splits.test, params, trust_remote_code=run.trust_remote_code)
    write_json(run.folder / AUDIT, audit)
    return {**facts, "audit": {name: audit[name] for name in ("passed", "reasons", "accuracy", "too_long")}}


def _draw(cluster: str, seed: int) -> bytes:
    return blake2b(f"held out {seed}:{cluster}".encode(), digest_size=8).digest()


def _named(progress: Progress, name: str) -> Progress:
    def watch(done: int, total: int, note: str) -> None:
        progress(done, total, f"{name}: {note}" if note else name)

    return watch
