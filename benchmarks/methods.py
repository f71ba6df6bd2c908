"""Fine-tuning methods on one workspace of the sample world: gold win rate over π_ref, KL, and what it cost.

Each method is the stage body `finetune` with the workspace's params, in this process, one after the other. The gold
reward, which no training sees, then judges independent draws of the policy and of π_ref on the test prompts, so nothing
is shared between the two answers to a prompt. Intervals are 95 % paired bootstraps over prompts.

    plumbline init w && plumbline retrain -C w
    python -m benchmarks.methods --workspace w [--methods dpo grpo ppo dpo,ppo] [--set KEY=VALUE ...] [--json]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data_contracts.records import Message
    from flows.params import Params

PROMPTS = 2304
METHODS = ("dpo", "grpo", "ppo", "dpo,ppo")


def train(workspace: Path, params: Params, methods: Sequence[str], folder: Path) -> tuple[Path, dict[str, Any]]:
    """Run the stage body into `folder/policy`; the policy, and its facts with the CPU and wall seconds it took."""
    from tasks.finetune_policy import STAGE, finetune_policy
    from tasks.stage import StageContext, declared, fill

    policy = folder / "policy"
    policy.mkdir(parents=True)
    section = params.finetune.model_copy(update={"methods": tuple(methods)})
    params = params.model_copy(update={"finetune": section})
    deps = {name: workspace / fill(path, params) for name, path in STAGE.deps.items()}
    context = StageContext(workspace, policy, folder / "work", deps)
    context.work.mkdir()
    cpu, wall = time.process_time(), time.perf_counter()
    facts = finetune_policy(context, **declared(STAGE, params))
    took = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}
    return policy, facts | took


def test_prompts(workspace: Path) -> list[tuple[Message, ...]]:
    """The first distinct prompts of the test split."""
    from data_contracts.records import CuratedPair, load_jsonl

    pairs = load_jsonl(workspace / "data/curated/test.jsonl", CuratedPair)
    return list(dict.fromkeys(pair.prompt for pair in pairs))[:PROMPTS]


def answers(folder: Path, prompts: Sequence[Any], seed: int) -> tuple[Any, Any, list[Any]]:
    """Model, tokenizer, and one completion a prompt at temperature 1."""
    from tasks.models.loading import load_policy, load_tokenizer
    from tasks.models.sampling import sample

    model, tokenizer = load_policy(folder), load_tokenizer(folder)
    drawn = sample(model, tokenizer, prompts, max_new_tokens=48, temperature=1.0, top_p=1.0, seed=seed, batch_size=256)
    return model, tokenizer, drawn


def measure(policy: Path, reference: Path, prompts: Sequence[Any], seed: int) -> dict[str, Any]:
    """Gold win rate with interval, gold rewards, KL in nats per token, response tokens."""
    import numpy as np

    from tasks.models.chat import encode_prompts
    from tasks.models.divergence import sequence_divergences
    from tasks.sample_world.gold import gold_reward
    from tasks.statistics import paired_bootstrap

    tuned, tokenizer, mine = answers(policy, prompts, seed)
    frozen, _, theirs = answers(reference, prompts, seed + 1)
    gold = np.array(
        [[gold_reward(p, each.text) for p, each in zip(prompts, side, strict=True)] for side in (mine, theirs)]
    )
    outcomes = (gold[0] > gold[1]) + 0.5 * (gold[0] == gold[1])
    value, low, high = paired_bootstrap(outcomes, 0.95, 2000, seed)
    sides = [(head, each.token_ids) for head, each in zip(encode_prompts(tokenizer, prompts), mine, strict=True)]
    apart = sequence_divergences(tuned, frozen, sides, batch_size=256)
    return {
        "prompts": len(prompts),
        "gold_win_rate": {"value": value, "low": low, "high": high},
        "ties": float((gold[0] == gold[1]).mean()),
        "gold": float(gold[0].mean()),
        "gold_reference": float(gold[1].mean()),
        "kl_nats_per_token": float(apart.kl.sum() / apart.tokens.sum()),
        "response_tokens": sum(len(each.token_ids) for each in mine) / len(mine),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, required=True, help="A workspace whose reward model is trained.")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="Stacks, methods joined by commas.")
    parser.add_argument("--set", nargs="*", default=[], dest="settings", help="Params, KEY=VALUE.")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    from flows.params import load_params

    workspace = options.workspace.resolve()
    params, _ = load_params(workspace, [], options.settings)
    prompts = test_prompts(workspace)
    results = {}
    for stack in options.methods:
        with tempfile.TemporaryDirectory() as folder:
            policy, facts = train(workspace, params, stack.split(","), Path(folder))
            found = measure(policy, workspace / "models/reference", prompts, params.seed)
        results[stack] = found | {name: facts[name] for name in ("cpu_s", "wall_s")}
        if not options.json:
            rate = found["gold_win_rate"]
            print(
                f"{stack:10} gold win rate {rate['value']:.3f} [{rate['low']:.3f}, {rate['high']:.3f}]  "
                f"gold {found['gold_reference']:.3f} -> {found['gold']:.3f}  KL {found['kl_nats_per_token']:.3f}  "
                f"{facts['cpu_s']:.0f} CPU s, {facts['wall_s']:.0f} s",
                flush=True,
            )
    if options.json:
        json.dump({"seed": params.seed, "results": results}, sys.stdout, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
