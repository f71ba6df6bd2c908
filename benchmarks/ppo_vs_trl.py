"""Our PPO against TRL 1.12.0's `trl.experimental.ppo`, the last release that had it: speed, memory, gold reward.

`python -m benchmarks.ppo_vs_trl --workspace DEMO --json`, where DEMO is the folder of a finished `make demo`.

1. Both sides get the same models (`ppo_models`), the same prompts, each once, and the same hyper-parameters
   (`HYPER_PARAMETERS`; `ppo_trl_side` says how they become TRL's), and run in processes of their own, one at a time.
2. TRL runs in an environment of its own: `--trl-env`, or one that is made under `--cache` with `TRL_PINS`.
3. Runs alternate (ours, theirs, theirs, ours, ...), and a ratio is that of two neighbours with the same seed. Process
   CPU seconds suffer less from busy neighbours than wall seconds do; both are given. Imports and loading do not count.
4. Beside the ratio stand two that leave something out: TRL's without its `gc.collect()` (its own choice, but no part of
   PPO), and with `--plain-linears` ours with the linear layers of torch (`ours_plain`, a third run a seed), because
   `tasks.models.fast_linear` gains on AMD processors from Zen 5 on alone.
5. Gold is the sample world's own reward of completions on held-out test prompts, which neither side trains on. It is
   compared at equal episodes; `gold_gain` is ours less TRL's, seed by seed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

TRL_PINS = ("torch==2.13.0", "trl==1.12.0", "transformers==5.23.*", "datasets==5.2.*")
HYPER_PARAMETERS: dict[str, Any] = {
    "adam_epsilon": 1e-5,
    "episodes_per_update": 64,
    "num_mini_batches": 1,  # TRL's default
    "num_ppo_epochs": 4,  # TRL's default
    "max_new_tokens": 48,
    "temperature": 1.0,
    "missing_eos_penalty": 1.0,
    "beta": 0.05,  # TRL's default, as all below
    "cliprange": 0.2,
    "cliprange_value": 0.2,
    "vf_coef": 0.1,
    "gamma": 1.0,
    "lam": 0.95,
    "whiten_rewards": False,
}
LEARNING_RATES = {"0.15M": 1e-3, "2M": 3e-4, "8M": 1e-4}
"""At 0.15M, of 3e-4 and 1e-3 the one by which TRL's PPO reached the higher gold reward in 1,920 episodes."""

EPISODES = {"0.15M": 5760, "2M": 960, "8M": 320}
"""Episodes of a run, multiples of 64, minutes each for TRL. Gold at 0.15M still differs by up to 0.1 from seed to seed,
on both sides: `--seeds 10` tells more than the default."""

HERE = Path(__file__).resolve().parent


def trl_python(environment: Path | None, cache: Path) -> Path:
    """The interpreter of TRL's environment, which is made (venv and pip) when there is none."""
    folder = environment or cache / "trl-1.12.0"
    python = folder / "bin" / "python"
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *TRL_PINS], check=True)
    return python


def load_prompts(workspace: Path, split: str, count: int) -> list[list[dict[str, str]]]:
    """The first `count` distinct prompts of a split of the workspace, as messages."""
    import orjson

    found: dict[bytes, list[dict[str, str]]] = {}
    for line in (workspace / "data" / "curated" / f"{split}.jsonl").read_bytes().splitlines():
        prompt = [{"role": turn["role"], "content": turn["content"]} for turn in orjson.loads(line)["prompt"]]
        found.setdefault(orjson.dumps(prompt), prompt)
    if len(found) < count:
        raise SystemExit(f"Expected {count} distinct prompts in split {split} of {workspace}, found {len(found)}.")
    return list(found.values())[:count]


def encode(policy: str, prompts: list[list[dict[str, str]]]) -> list[list[int]]:
    """Prompts as token ids, the same for both sides."""
    from plumbline.data_contracts.records import Message
    from plumbline.tasks.models.chat import encode_prompts
    from plumbline.tasks.models.loading import load_tokenizer

    return encode_prompts(load_tokenizer(policy), [tuple(Message(**turn) for turn in prompt) for prompt in prompts])


def run_side(side: str, python: Path, job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run one side in a process of its own and return what it measured."""
    output = folder / side
    output.mkdir(parents=True)
    job = {**job, "output": str(output), "plain_linears": side == "ours_plain"}
    (folder / f"{side}.json").write_text(json.dumps(job))
    threads = {"OMP_NUM_THREADS": str(job["threads"]), "OMP_WAIT_POLICY": "passive"}
    module = ["-m", "benchmarks.ppo_our_side"] if side.startswith("ours") else [str(HERE / "ppo_trl_side.py")]
    command = [str(python), *module, str(folder / f"{side}.json")]
    done = subprocess.run(
        command, cwd=HERE.parent, env=os.environ | threads, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads((output / "result.json").read_text())
    return result


def measure_gold(policy: str | Path, prompts: list[list[dict[str, str]]]) -> float:
    """Mean gold reward of a policy on held-out prompts, one completion each, drawn with the same numbers."""
    from plumbline.data_contracts.records import Message
    from plumbline.tasks.data.sample_world.gold import gold_reward
    from plumbline.tasks.models.loading import load_policy, load_tokenizer
    from plumbline.tasks.models.sampling import sample

    asked = [tuple(Message(**turn) for turn in prompt) for prompt in prompts]
    completions = sample(
        load_policy(policy),
        load_tokenizer(policy),
        asked,
        max_new_tokens=HYPER_PARAMETERS["max_new_tokens"],
        temperature=1.0,
        top_p=1.0,
        seed=0,
        batch_size=256,
    )
    return statistics.mean(gold_reward(prompt, found.text) for prompt, found in zip(asked, completions, strict=True))


def compare(size: str, args: argparse.Namespace, python: Path, scratch: Path) -> dict[str, Any]:
    """Run both sides at one size for every seed and sum up."""
    from benchmarks.ppo_models import prepare

    models = prepare(size, args.workspace, args.cache, args.threads)
    episodes = args.episodes or EPISODES[size]
    messages = load_prompts(args.workspace, "train", episodes)
    job = {**HYPER_PARAMETERS, **models, "lr": LEARNING_RATES[size], "episodes": episodes, "threads": args.threads}
    job |= {"messages": messages, "prompts": encode(models["policy"], messages)}
    held_out = load_prompts(args.workspace, "test", args.gold_prompts)
    runs: list[dict[str, Any]] = []
    order = ["ours", "trl", *(["ours_plain"] if args.plain_linears else [])]
    for seed in range(1, args.seeds + 1):
        run: dict[str, Any] = {"seed": seed}
        for side in order if seed % 2 else reversed(order):
            folder = scratch / size / str(seed)
            interpreter = python if side == "trl" else Path(sys.executable)
            run[side] = run_side(side, interpreter, {**job, "seed": seed}, folder)
            if side != "ours_plain":
                run[side]["gold"] = measure_gold(folder / side, held_out)
        runs.append(run)
    reference = measure_gold(models["policy"], held_out)
    return {"size": size, "episodes": episodes, "lr": job["lr"], "gold_reference": reference} | summarise(runs)


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians and ranges over seeds; a ratio is that of the two runs with one seed."""
    sides: dict[str, Any] = {}
    for side in ("ours", "trl"):
        results = [run[side] for run in runs]
        first = results[0]
        sides[side] = {
            "episodes_per_cpu_second": _spread([one["episodes"] / one["cpu_seconds"] for one in results]),
            "episodes_per_wall_second": _spread([one["episodes"] / one["wall_seconds"] for one in results]),
            "cpu_seconds_per_update": _spread([one["cpu_seconds"] / one["updates"] for one in results]),
            "peak_mib": _spread([one["peak_mib"] for one in results]),
            "cpu_ms_per_episode_by_phase": {
                phase: statistics.median(1e3 * one["phases_cpu_seconds"][phase] / one["episodes"] for one in results)
                for phase in first["phases_cpu_seconds"]
            },
            "gold": _spread([one["gold"] for one in results]),
            "versions": first["versions"],
        }
    ours = [run["ours"] for run in runs]
    collected = [run["trl"]["phases_cpu_seconds"].get("gc.collect", 0.0) for run in runs]
    trl = [run["trl"]["cpu_seconds"] for run in runs]
    plain = [run["ours_plain"]["cpu_seconds"] for run in runs if "ours_plain" in run]
    without_gc = [whole - part for whole, part in zip(trl, collected, strict=True)]
    floors = [1e3 * sum(one["floor"]["cpu_seconds"].values()) / one["episodes"] for one in ours]
    return {
        **sides,
        "gold_gain": _spread([run["ours"]["gold"] - run["trl"]["gold"] for run in runs]),
        "ratio_cpu": _spread([run["trl"]["cpu_seconds"] / run["ours"]["cpu_seconds"] for run in runs]),
        "trl_gc_share": _spread([part / whole for part, whole in zip(collected, trl, strict=True)]),
        "ratio_cpu_without_gc": _ratio(without_gc, [one["cpu_seconds"] for one in ours]),
        "ratio_cpu_plain_linears": _ratio(trl, plain) if plain else None,
        "ratio_cpu_plain_linears_without_gc": _ratio(without_gc, plain) if plain else None,
        "ratio_wall": _spread([run["trl"]["wall_seconds"] / run["ours"]["wall_seconds"] for run in runs]),
        "ratio_peak_memory": _spread([run["trl"]["peak_mib"] / run["ours"]["peak_mib"] for run in runs]),
        "floor_cpu_ms_per_episode": _spread(floors),
        "floor_by_phase": {
            phase: statistics.median(1e3 * one["floor"]["cpu_seconds"][phase] / one["episodes"] for one in ours)
            for phase in ours[0]["floor"]["cpu_seconds"]
        },
        "gemm_gflops_per_second": _spread([one["floor"]["gemm_flops_per_second"] / 1e9 for one in ours]),
        "response_tokens_per_episode": _spread([one["response_tokens"] / one["episodes"] for one in ours]),
        "runs": runs,
    }


def _ratio(theirs: list[float], ours: list[float]) -> dict[str, float]:
    return _spread([one / other for one, other in zip(theirs, ours, strict=True)])


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def _range(spread: dict[str, float]) -> str:
    return f"{spread['median']:.2f}x ({spread['low']:.2f}..{spread['high']:.2f})"


def show(result: dict[str, Any]) -> str:
    """One size as a few lines of text."""

    def row(title: str, key: str, pattern: str) -> str:
        cells = [
            f"{pattern.format(spread['median'])} ({pattern.format(spread['low'])}..{pattern.format(spread['high'])})"
            for spread in (result["ours"][key], result["trl"][key])
        ]
        return f"  {title:32} ours {cells[0]:28} TRL {cells[1]}"

    ratio, floor = result["ratio_cpu"], result["floor_cpu_ms_per_episode"]["median"]
    ours = result["ours"]["cpu_ms_per_episode_by_phase"]
    total = sum(ours.values())
    partial = {
        "without TRL's gc.collect": result["ratio_cpu_without_gc"],
        "with torch's linear layers": result["ratio_cpu_plain_linears"],
        "with neither": result["ratio_cpu_plain_linears_without_gc"],
    }
    lines = [
        f"{result['size']}: {_range(ratio)} by CPU seconds, "
        f"{result['ratio_wall']['median']:.2f}x by wall; {result['episodes']} episodes a run",
        f"  gc.collect takes {100 * result['trl_gc_share']['median']:.0f} % of TRL's CPU seconds; ratio "
        + ", ".join(f"{name} {_range(spread)}" for name, spread in partial.items() if spread is not None),
        row("episodes a CPU second", "episodes_per_cpu_second", "{:.1f}"),
        row("episodes a wall second", "episodes_per_wall_second", "{:.1f}"),
        row("CPU seconds an update", "cpu_seconds_per_update", "{:.3f}"),
        row("peak memory, MiB", "peak_mib", "{:.0f}"),
        row("gold reward", "gold", "{:.3f}") + f" ; π_ref {result['gold_reference']:.3f}",
        "  CPU ms an episode, ours: " + ", ".join(f"{phase} {value:.2f}" for phase, value in ours.items()),
        "  CPU ms an episode, TRL:  "
        + ", ".join(f"{phase} {value:.2f}" for phase, value in result["trl"]["cpu_ms_per_episode_by_phase"].items()),
        f"  floor {floor:.2f} ms an episode at {result['gemm_gflops_per_second']['median']:.0f} GFLOP/s: ours takes "
        f"{total / floor:.2f} times as long",
    ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark and print its result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="0.15M only, one seed, 256 episodes")
    parser.add_argument("--workspace", type=Path, required=True, help="folder of a finished demo")
    parser.add_argument("--trl-env", type=Path, help="virtual environment with TRL 1.12.0; made when there is none")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "plumbline-ppo-benchmark")
    parser.add_argument("--sizes", nargs="+", default=["0.15M", "2M", "8M"], choices=["0.15M", "2M", "8M"])
    parser.add_argument("--plain-linears", action="store_true", help="a third run a seed: ours with torch's linears")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--episodes", type=int, help="of a run, a multiple of 64; by default by size (EPISODES)")
    parser.add_argument("--gold-prompts", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    if args.quick:
        args.sizes, args.seeds, args.episodes, args.gold_prompts = ["0.15M"], 1, 256, 256
    import torch

    torch.set_num_threads(args.threads)
    args.cache.mkdir(parents=True, exist_ok=True)
    python = trl_python(args.trl_env, args.cache)
    results = []
    with tempfile.TemporaryDirectory(prefix="ppo-vs-trl-") as scratch:
        for size in args.sizes:
            results.append(compare(size, args, python, Path(scratch)))
            if not args.json:
                print(show(results[-1]), flush=True)
    if args.json:
        report = {"benchmark": "ppo_vs_trl", "threads": args.threads, "hyper_parameters": HYPER_PARAMETERS}
        print(json.dumps({**report, "results": results}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
