"""Our DPO against TRL's DPOTrainer run bare: CPU seconds on the same pairs, model and settings, in one process.

`python -m benchmarks.dpo_overhead --json`. Ours adds cached reference log-probabilities, evaluation of
validation pairs and samples, sealed checkpoints and the curve; the bare run has none of these. The
ratio is given with our validation on and off.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SEED = 17


def build_inputs(folder: Path, count: int) -> tuple[Path, list[Any]]:
    """A random model of the sample world's size with a tokenizer of its own, and clean pairs of that world."""
    import orjson

    from plumbline.data_contracts.records import CuratedPair, Message, Origin, load_conversations
    from plumbline.tasks.data.sample_world.generate import generate
    from plumbline.tasks.models.loading import save_model, seed_everything
    from plumbline.tasks.models.tiny import build_model, train_tokenizer
    from plumbline.tasks.params.sample_world import DefectRates, SampleWorldParams
    from plumbline.tasks.params.tiny_model import TinyModelParams

    none = DefectRates(**dict.fromkeys(DefectRates.model_fields, 0.0))
    world = folder / "world"
    world.mkdir()
    generate(SampleWorldParams(pairs=count, demonstrations=2000, defects=none), SEED, world)
    lines = (world / "feedback" / "human_pairs.jsonl").read_bytes().splitlines()
    pairs = []
    for number, row in enumerate(map(orjson.loads, lines), start=1):
        pairs.append(
            CuratedPair(
                id=row["id"],
                prompt=tuple(Message(**turn) for turn in row["prompt"]),
                chosen=row["chosen"][0]["content"],
                rejected=row["rejected"][0]["content"],
                source="human_pairs",
                origin=Origin(file="benchmark", line=number),
                cluster=row["id"],
            )
        )
    seed_everything(SEED, 1)
    tokenizer = train_tokenizer(load_conversations(world / "demonstrations.jsonl"), TinyModelParams())
    model = folder / "reference"
    model.mkdir()
    save_model(build_model(tokenizer, TinyModelParams()), tokenizer, model)
    return model, pairs


def time_ours(reference: Path, pairs: list[Any], folder: Path, *, validate: bool) -> float:
    """CPU seconds of `tasks.training.finetuning.dpo.run`."""
    from benchmarks.sample_world import world_params
    from plumbline.tasks.training.finetuning import dpo
    from plumbline.tasks.training.finetuning.methods import FinetuneInputs

    params = world_params().finetune.dpo
    if not validate:
        params = params.model_copy(update={"eval_steps": 100_000, "metric_for_best_model": "preference_accuracy"})
    held_out = pairs[: 256 if validate else 1]
    (folder / "draft").mkdir(parents=True)
    inputs = FinetuneInputs(
        start=reference,
        reference=reference,
        train=pairs,
        validation=held_out,
        judge=lambda prompts, responses: [float(len(text)) for text in responses],
        seed=SEED,
        threads=1,
        folder=folder / "draft",
        work=folder / "work",
    )
    start = time.process_time()
    dpo.run(inputs, params)
    return time.process_time() - start


def time_bare(reference: Path, pairs: list[Any], folder: Path) -> float:
    """CPU seconds of TRL's trainer with the same loss, batch and schedule, and nothing around it."""
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import DPOConfig, DPOTrainer

    from benchmarks.sample_world import world_params
    from plumbline.tasks.models.loading import load_policy, load_tokenizer, seed_everything

    params = world_params().finetune.dpo
    seed_everything(SEED, 1)
    rows = [
        {
            "prompt": [turn.model_dump() for turn in pair.prompt],
            "chosen": [{"role": "assistant", "content": pair.chosen}],
            "rejected": [{"role": "assistant", "content": pair.rejected}],
        }
        for pair in pairs
    ]
    config = DPOConfig(
        output_dir=str(folder),
        beta=params.beta,
        loss_type=["sigmoid", "sft"],
        loss_weights=[1.0, params.sft_weight],
        learning_rate=params.learning_rate,
        num_train_epochs=params.num_train_epochs,
        per_device_train_batch_size=params.per_device_train_batch_size,
        seed=SEED,
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    start = time.process_time()
    trainer = DPOTrainer(
        load_policy(reference),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=load_tokenizer(reference),
    )
    trainer.remove_callback(PrinterCallback)  # stdout is for the result
    trainer.train()
    return time.process_time() - start


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark and print its result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--pairs", type=int, default=1600)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        reference, pairs = build_inputs(folder, args.pairs)
        time_bare(reference, pairs[:64], folder / "warm")  # imports and first-call costs count for neither
        bare = time_bare(reference, pairs, folder / "bare")
        plain = time_ours(reference, pairs, folder / "plain", validate=False)
        full = time_ours(reference, pairs, folder / "full", validate=True)
    result = {
        "benchmark": "dpo_overhead",
        "pairs": len(pairs),
        "bare_trl_cpu_s": round(bare, 2),
        "plumbline_cpu_s": round(plain, 2),
        "plumbline_with_validation_cpu_s": round(full, 2),
        "ratio": round(plain / bare, 3),
        "ratio_with_validation": round(full / bare, 3),
    }
    print(json.dumps(result) if args.json else "\n".join(f"{name}: {value}" for name, value in result.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
