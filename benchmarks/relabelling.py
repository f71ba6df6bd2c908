"""Gain of looking again at 200 pairs: reward models before it, after the clinic's choice, and after one at random.

On the sample world, whose truth is known. A quarter of the labels of four of its eight annotators are flipped. A reward
model learns from the labels as they are, and the clinic names 200 training pairs with its help. Their labels are
replaced by the gold ones, or those of 200 random training pairs are, and a reward model learns anew from each. Every
model starts from the same base and is measured on the gold order of the test pairs.

    python -m benchmarks.relabelling [--seeds 1 2 3] [--pairs 3000] [--looked 200] [--json]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import orjson

from benchmarks.sample_world import world_params
from plumbline.data_contracts.progress import silent
from plumbline.data_contracts.records import CuratedPair, load_conversations
from plumbline.tasks.data.clinic.examine import examine
from plumbline.tasks.data.curation.curate import Curated, curate
from plumbline.tasks.data.feedback.votes import VotesRead, read_votes
from plumbline.tasks.data.sample_world.generate import DEMONSTRATIONS, FEEDBACK, generate
from plumbline.tasks.data.sample_world.gold import gold_reward
from plumbline.tasks.params.sample_world import DefectRates
from plumbline.tasks.params.whole import Params

NOISY = ("ann-01", "ann-03", "ann-05", "ann-07")
FLIPPED = 0.25
DEMONSTRATED = 12_000
_NONE = DefectRates(**dict.fromkeys(DefectRates.model_fields, 0.0))


def make_world(params: Params, pairs: int, seed: int, folder: Path) -> VotesRead:
    """A world without defects, a quarter of the labels of the noisy annotators flipped."""
    world = params.sample_world.model_copy(update={"pairs": pairs, "demonstrations": DEMONSTRATED, "defects": _NONE})
    generate(world, seed, folder)
    rng, path = Random(f"{seed}/flips"), folder / FEEDBACK
    rows = [orjson.loads(line) for line in path.read_bytes().splitlines()]
    for row in rows:
        if row["annotator"] in NOISY and rng.random() < FLIPPED:
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    path.write_bytes(b"\n".join(map(orjson.dumps, rows)) + b"\n")
    return read_votes([("human_pairs", FEEDBACK, path)], params.feedback)


def right(pair: CuratedPair) -> bool | None:
    """True if the label is in the gold order; None if the gold reward knows no order."""
    chosen, rejected = gold_reward(pair.prompt, pair.chosen), gold_reward(pair.prompt, pair.rejected)
    return None if chosen == rejected else chosen > rejected


def relabelled(pairs: Sequence[CuratedPair], looked: frozenset[str]) -> list[CuratedPair]:
    """The pairs, those that were looked at in the gold order."""
    return [
        pair.model_copy(update={"chosen": pair.rejected, "rejected": pair.chosen})
        if pair.id in looked and right(pair) is False
        else pair
        for pair in pairs
    ]


class Models:
    """Reward models from one base, each measured on the gold order of the test pairs."""

    def __init__(self, params: Params, curated: Curated, base: Path, folder: Path, seed: int) -> None:
        self._params, self._curated, self._base, self._folder, self._seed = params, curated, base, folder, seed

    def train(self, name: str, train: Sequence[CuratedPair]) -> Path:
        """Train on these pairs; returns the model's folder."""
        from plumbline.tasks.training.rewards.held_out import RewardTraining, Splits, train_and_audit

        folder, work = self._folder / name, self._folder / f"{name}-work"
        folder.mkdir()
        run = RewardTraining(self._base, folder, work, seed=self._seed, threads=1, progress=silent)
        splits = Splits(train, [], self._curated.validation, self._curated.test)
        train_and_audit(run, splits, self._params.reward.model_copy(update={"held_out_share": 0.0}))
        return folder

    def accuracy(self, folder: Path) -> dict[str, Any]:
        """The share of test pairs in whose gold order the model puts them."""
        from plumbline.tasks.training.rewards.scoring import RewardModel

        model = RewardModel.load(folder)
        pairs = [pair for pair in self._curated.test if right(pair) is not None]
        prompts = [pair.prompt for pair in pairs]
        chosen = model.score(prompts, [pair.chosen for pair in pairs])
        rejected = model.score(prompts, [pair.rejected for pair in pairs])
        hits = [(one > two) == right(pair) for pair, one, two in zip(pairs, chosen, rejected, strict=True)]
        return {"gold_accuracy": sum(hits) / len(hits), "n": len(hits)}


def measure(seed: int, pairs: int, looked: int) -> dict[str, Any]:
    """Gold accuracy of the reward models of one seed, and how many wrong labels each choice found."""
    from plumbline.tasks.models.tiny import train_base
    from plumbline.tasks.training.rewards.scoring import RewardModel

    params = world_params()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        read = make_world(params, pairs, seed, folder / "world")
        curated = curate(read.pairs, params.curation, seed)
        base = folder / "base"
        base.mkdir()
        train_base(load_conversations(folder / "world" / DEMONSTRATIONS), params.tiny_model, seed, 1, base, silent)
        models = Models(params, curated, base, folder, seed)
        before = models.train("before", curated.train)
        score = RewardModel.load(before).score_fitting
        examined = examine(read, curated, params.curation.matching, seed, most=len(read.pairs), score=score)
        trained = {pair.id for pair in curated.train}
        ranked = [name for row in examined.reasons for name in row["ids"] if name in trained]
        chosen = {
            "clinic": frozenset(ranked[:looked]),
            "random": frozenset(Random(f"{seed}/looked").sample(sorted(trained), looked)),
            "all": frozenset(trained),
        }
        wrong = {pair.id for pair in curated.train if right(pair) is False}
        figures: dict[str, Any] = {
            "seed": seed,
            "train": len(trained),
            "wrong": len(wrong),
            "before": models.accuracy(before),
        }
        for name, ids in chosen.items():
            after = models.train(name, relabelled(curated.train, ids))
            figures[name] = {**models.accuracy(after), "looked": len(ids), "found": len(ids & wrong)}
        return figures


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over the seeds: gold accuracy, and its gain over the model before."""
    return {
        name: {
            "gold_accuracy": sum(row[name]["gold_accuracy"] for row in rows) / len(rows),
            "gain": sum(row[name]["gold_accuracy"] - row["before"]["gold_accuracy"] for row in rows) / len(rows),
        }
        for name in ("before", "random", "clinic", "all")
    }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--pairs", type=int, default=3000)
    parser.add_argument("--looked", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    rows = [measure(seed, asked.pairs, asked.looked) for seed in asked.seeds]
    found = {"seeds": rows, "mean": summary(rows)}
    if asked.json:
        print(json.dumps(found))
        return
    for row in [*rows, {"seed": "mean", **found["mean"]}]:
        shares = "  ".join(f"{name} {row[name]['gold_accuracy']:.3f}" for name in found["mean"])
        caught = "".join(
            f"  {name} found {row[name]['found']}" for name in ("clinic", "random") if "found" in row[name]
        )
        print(f"seed {row['seed']}: {shares}{caught}")


if __name__ == "__main__":
    main()
