"""Fine-tuning methods on workspaces of the sample world: gold win rate over π_ref, KL, and what it cost.

Each method is the stage body `finetune` with the workspace's params, in this process, one after the other; PPO after
another method takes a share of its episodes, so that a stack costs about what one method does. The gold
reward, which no training sees, then judges independent draws of the policy and of π_ref on the test prompts, so nothing
is shared between the two answers to a prompt. Intervals are 95 % paired bootstraps over prompts.

Several workspaces, made with seeds of their own, are pooled at the end: the win rate of each method over all their
prompts, and a stack's lead over each of its methods alone, on the same prompts against the same answers of π_ref.

    plumbline init w17 --sample-world && plumbline retrain -C w17
    plumbline init w11 --sample-world && plumbline retrain -C w11 --set seed=11
    python -m benchmarks.methods --workspace w17 w11 [--methods dpo grpo ppo dpo,ppo] [--set KEY=VALUE ...] [--json]
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from plumbline.data_contracts.records import Message
    from plumbline.tasks.params.finetuning import FinetuneParams
    from plumbline.tasks.params.whole import Params

PROMPTS = 2304
METHODS = ("dpo", "grpo", "ppo", "dpo,ppo")


def finetune_section(params: Params, methods: Sequence[str]) -> FinetuneParams:
    """The section with these methods; PPO in a stack takes the share of its episodes that `plumbline compare` gives."""
    section = params.finetune
    if len(methods) > 1:
        updates = round(params.compare.dpo_ppo_share * section.ppo.total_episodes / section.ppo.episodes_per_update)
        episodes = max(1, updates) * section.ppo.episodes_per_update
        section = section.model_copy(update={"ppo": section.ppo.model_copy(update={"total_episodes": episodes})})
    return section.model_copy(update={"methods": tuple(methods)})


def train(workspace: Path, params: Params, methods: Sequence[str], folder: Path) -> tuple[Path, dict[str, Any]]:
    """Run the stage body into `folder/policy`; the policy, and its facts with the CPU and wall seconds it took."""
    from plumbline.tasks.pipeline.stage import StageContext, declared, fill
    from plumbline.tasks.training.finetune_policy import STAGE, finetune_policy

    policy = folder / "policy"
    policy.mkdir(parents=True)
    params = params.model_copy(update={"finetune": finetune_section(params, methods)})
    deps = {name: workspace / fill(path, params) for name, path in STAGE.deps.items()}
    context = StageContext(workspace, policy, folder / "work", deps)
    context.work.mkdir()
    cpu, wall = time.process_time(), time.perf_counter()
    facts = finetune_policy(context, **declared(STAGE, params))
    took = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}
    return policy, facts | took


def test_prompts(workspace: Path) -> list[tuple[Message, ...]]:
    """The first distinct prompts of the test split."""
    from plumbline.data_contracts.records import CuratedPair, load_jsonl

    pairs = load_jsonl(workspace / "data/curated/test.jsonl", CuratedPair)
    return list(dict.fromkeys(pair.prompt for pair in pairs))[:PROMPTS]


def answers(folder: Path, prompts: Sequence[Any], seed: int) -> tuple[Any, Any, list[Any]]:
    """Model, tokenizer, and one completion a prompt at temperature 1."""
    from plumbline.tasks.models.loading import load_policy, load_tokenizer
    from plumbline.tasks.models.sampling import sample

    model, tokenizer = load_policy(folder), load_tokenizer(folder)
    drawn = sample(model, tokenizer, prompts, max_new_tokens=48, temperature=1.0, top_p=1.0, seed=seed, batch_size=256)
    return model, tokenizer, drawn


def measure(policy: Path, reference: Path, prompts: Sequence[Any], seed: int) -> tuple[np.ndarray, dict[str, Any]]:
    """Outcome of each prompt (1 won, ½ tied, 0 lost); win rate with interval, gold, KL in nats per token, length."""
    from plumbline.tasks.data.sample_world.gold import gold_reward
    from plumbline.tasks.models.chat import encode_prompts
    from plumbline.tasks.models.divergence import sequence_divergences

    tuned, tokenizer, mine = answers(policy, prompts, seed)
    frozen, _, theirs = answers(reference, prompts, seed + 1)
    gold = np.array(
        [[gold_reward(p, each.text) for p, each in zip(prompts, side, strict=True)] for side in (mine, theirs)]
    )
    outcomes = (gold[0] > gold[1]) + 0.5 * (gold[0] == gold[1])
    sides = [(head, each.token_ids) for head, each in zip(encode_prompts(tokenizer, prompts), mine, strict=True)]
    apart = sequence_divergences(tuned, frozen, sides, batch_size=256)
    return outcomes, {
        "prompts": len(prompts),
        "gold_win_rate": interval(outcomes),
        "ties": float((gold[0] == gold[1]).mean()),
        "gold": float(gold[0].mean()),
        "gold_reference": float(gold[1].mean()),
        "kl_nats_per_token": float(apart.kl.sum() / apart.tokens.sum()),
        "response_tokens": sum(len(each.token_ids) for each in mine) / len(mine),
    }


def interval(values: np.ndarray) -> dict[str, float]:
    """Mean of values with its interval."""
    from plumbline.tasks.statistics import paired_bootstrap

    value, low, high = paired_bootstrap(values, 0.95, 2000, 0)
    return {"value": value, "low": low, "high": high}


def pooled(outcomes: Mapping[str, Sequence[np.ndarray]]) -> dict[str, Any]:
    """Over the prompts of all workspaces: win rates, and the lead of each stack over its methods alone."""
    together = {stack: np.concatenate(parts) for stack, parts in outcomes.items()}
    return {
        "gold_win_rate": {stack: interval(values) for stack, values in together.items()},
        "lead": {
            f"{stack} over {alone}": interval(values - together[alone])
            for stack, values in together.items()
            for alone in stack.split(",")
            if alone != stack and alone in together
        },
    }


def run(workspace: Path, settings: Sequence[str], stacks: Sequence[str]) -> Iterator[tuple[str, np.ndarray, Any]]:
    """Stack, outcomes and figures of each stack on one workspace."""
    from plumbline.tasks.params.layers import load_params

    params, _ = load_params(workspace, [], settings)
    prompts = test_prompts(workspace)
    for stack in stacks:
        with tempfile.TemporaryDirectory() as folder:
            policy, facts = train(workspace, params, stack.split(","), Path(folder))
            outcomes, found = measure(policy, workspace / "models/reference", prompts, params.seed)
        yield stack, outcomes, found | {"seed": params.seed} | {name: facts[name] for name in ("cpu_s", "wall_s")}


def shown(rate: Mapping[str, float]) -> str:
    """A figure with its interval, as text."""
    return f"{rate['value']:.3f} [{rate['low']:.3f}, {rate['high']:.3f}]"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, nargs="+", required=True, help="With a trained reward model.")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="Stacks, methods joined by commas.")
    parser.add_argument("--set", nargs="*", default=[], dest="settings", help="Params, KEY=VALUE.")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    tell: Callable[[str], None] = (lambda _: None) if options.json else functools.partial(print, flush=True)
    results: dict[str, dict[str, Any]] = {}
    outcomes: dict[str, list[np.ndarray]] = {stack: [] for stack in options.methods}
    for workspace in options.workspace:
        for stack, won, found in run(workspace.resolve(), options.settings, options.methods):
            results.setdefault(workspace.name, {})[stack] = found
            outcomes[stack].append(won)
            tell(
                f"seed {found['seed']:<4} {stack:10} gold win rate {shown(found['gold_win_rate'])}  "
                f"gold {found['gold_reference']:.3f} -> {found['gold']:.3f}  KL {found['kl_nats_per_token']:.3f}  "
                f"{found['cpu_s']:.0f} CPU s, {found['wall_s']:.0f} s"
            )
    together = pooled(outcomes)
    for kind, figures in together.items():
        for name, figure in figures.items():
            tell(f"all {kind:14} {name:18} {shown(figure)}")
    if options.json:
        json.dump({"results": results, "pooled": together}, sys.stdout, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
