"""The half of `benchmarks.ppo_vs_trl` that runs Plumbline's PPO: `python -m benchmarks.ppo_our_side JOB.json`.

The counterpart of `ppo_trl_side`, which says how TRL's settings correspond. Ours here: gradients are not clipped and
β is fixed, as in TRL; a missing end token lowers the score; the reward is the bare reward model, without normalisation;
the learning rate falls once an update, where ours falls at every optimiser step: over five updates an eighth less.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.phase_clock import PhaseClock


def make_trainer(job: dict[str, Any]) -> Any:
    """Plumbline's `PPOTrainer` for a job."""
    from datasets import Dataset
    from torch.optim.lr_scheduler import LambdaLR

    from plumbline.tasks.models import fast_linear
    from plumbline.tasks.models.loading import load_policy, load_reward, load_tokenizer, seed_everything
    from plumbline.tasks.params.mixture import MixtureParams, RewardModelTermParams
    from plumbline.tasks.params.on_policy import KlParams, ShapingParams
    from plumbline.tasks.training.finetuning.ppo.config import PPOConfig
    from plumbline.tasks.training.finetuning.ppo.trainer import PPOTrainer
    from plumbline.tasks.training.rewards.mixture import build_mixture
    from plumbline.tasks.training.rewards.scoring import RewardModel

    seed_everything(job["seed"], job["threads"])
    if job["plain_linears"]:
        fast_linear.onednn_is_faster = lambda: False  # type: ignore[assignment]
    tokenizer = load_tokenizer(job["policy"])
    reward_model = RewardModel.load(Path(job["reward"]), batch_size=job["episodes_per_update"])
    term = RewardModelTermParams(kind="reward_model", normalise="none", clip=None)
    args = PPOConfig(
        output_dir=job["output"],
        learning_rate=job["lr"],
        adam_epsilon=job["adam_epsilon"],
        lr_scheduler_type="linear",
        warmup_steps=0,
        weight_decay=0.0,
        max_grad_norm=0.0,
        total_episodes=job["episodes"],
        episodes_per_update=job["episodes_per_update"],
        per_device_train_batch_size=job["episodes_per_update"] // job["num_mini_batches"],
        per_device_eval_batch_size=job["episodes_per_update"],
        num_mini_batches=job["num_mini_batches"],
        num_ppo_epochs=job["num_ppo_epochs"],
        max_completion_length=job["max_new_tokens"],
        temperature=job["temperature"],
        cliprange=job["cliprange"],
        cliprange_value=job["cliprange_value"],
        vf_coef=job["vf_coef"],
        gamma=job["gamma"],
        lam=job["lam"],
        calibration_prompts=0,
        beta=job["beta"],
        kl=KlParams(mode="fixed", stop_at=None),
        shaping=ShapingParams(
            clip=None,
            missing_eos="subtract",
            missing_eos_penalty=job["missing_eos_penalty"],
            whiten_rewards=job["whiten_rewards"],
        ),
        bf16=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        seed=job["seed"],
    )
    trainer = PPOTrainer(
        model=load_policy(job["policy"]),
        ref_model=load_policy(job["policy"]),
        value_model=load_reward(job["critic"]),
        reward=build_mixture(MixtureParams(terms=(term,)), reward_model),
        args=args,
        train_dataset=Dataset.from_dict({"prompt": job["messages"]}),
        processing_class=tokenizer,
    )
    optimizer = trainer.create_optimizer()
    updates = job["episodes"] // job["episodes_per_update"]
    trainer.lr_scheduler = LambdaLR(optimizer, lambda step: 1 - step // args.steps_per_update / updates)
    return trainer


def watch(trainer: Any) -> tuple[PhaseClock, list[tuple[int, int]]]:
    """Book sampling, scoring and updates of a trainer to phases; note lengths (prompt, response) of each episode."""
    from accelerate.optimizer import AcceleratedOptimizer

    clock = PhaseClock()
    maker = trainer.rollouts
    maker._sample = clock.wrap("rollout", maker._sample)
    maker._score_tokens = clock.wrap("scoring", maker._score_tokens)
    maker.reward.score = clock.wrap("scoring", maker.reward.score)
    trainer.training_step = clock.wrap("update", trainer.training_step)
    AcceleratedOptimizer.step = clock.wrap("update", AcceleratedOptimizer.step)
    lengths: list[tuple[int, int]] = []
    make = maker.make

    def noted(*args: Any) -> Any:
        episodes = make(*args)
        for prompt, completion in zip(episodes.prompts, episodes.completions, strict=True):
            lengths.append((len(prompt), len(completion.token_ids)))
        return episodes

    maker.make = noted
    return clock, lengths


def floor(job: dict[str, Any], config: Any, lengths: list[tuple[int, int]]) -> dict[str, Any]:
    """Operations by phase without padding, and the rate of matrix products in this process."""
    from benchmarks.ppo_floor import episode_flops, gemm_rate

    micro_batches = len(lengths) * job["num_mini_batches"] / job["episodes_per_update"]
    tokens = round(sum(map(sum, lengths)) / micro_batches)
    response_tokens = round(sum(response for _, response in lengths) / micro_batches)
    flops = episode_flops(config, lengths, job["num_ppo_epochs"])
    rate = gemm_rate(config, tokens, response_tokens)
    seconds = {phase: count / rate for phase, count in flops.items()}
    return {"flops": flops, "gemm_flops_per_second": rate, "cpu_seconds": seconds}


def main(job_path: str) -> int:
    """Run one job."""
    job = json.loads(Path(job_path).read_text())
    import torch
    import transformers

    trainer = make_trainer(job)
    clock, lengths = watch(trainer)
    cpu, wall = time.process_time(), time.perf_counter()
    trainer.train()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    policy = trainer.model.policy
    policy.save_pretrained(job["output"])
    trainer.processing_class.save_pretrained(job["output"])
    result = {
        "versions": {"transformers": transformers.__version__, "torch": torch.__version__},
        "cpu_seconds": cpu,
        "wall_seconds": wall,
        "episodes": trainer.counters["episodes"],
        "response_tokens": trainer.counters["response_tokens"],
        "updates": trainer.state.global_step // trainer.args.steps_per_update,
        "phases_cpu_seconds": clock.booked(cpu),
        "floor": None,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    # measured last, so that peak memory is that of the training
    result["floor"] = floor(job, policy.config, lengths)
    Path(job["output"], "result.json").write_text(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
