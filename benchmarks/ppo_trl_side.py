"""The half of `benchmarks.ppo_vs_trl` that runs TRL 1.12's PPO, inside TRL's own environment.

`python ppo_trl_side.py JOB.json` reads one job, trains, saves the policy into the job's `output` folder and writes
`result.json` there. It imports nothing of Plumbline.

How the job's hyper-parameters become TRL's (trl/experimental/ppo/ppo_trainer.py, 1.12.0):

- `PPOTrainer` accumulates gradients over `gradient_accumulation_steps` micro-batches *whatever* `num_mini_batches` is,
  so a step on each minibatch needs `gradient_accumulation_steps=1` and `per_device_train_batch_size` = all episodes of
  an update, of which `num_mini_batches` are cut;
- rollouts are generated and scored in batches of `local_rollout_forward_batch_size`: all episodes of an update at once,
  its fastest choice here;
- the learning rate falls linearly, a step an update; gradients are not clipped (it never calls `clip_grad_norm_`);
- minibatches are drawn by `np.random.permutation` without a seed of its own: numpy is seeded here;
- bf16 and gradient checkpointing, both on by default, cost time on a CPU: off, as on our side;
- no sample generations, checkpoints or reports while it trains.

Phases: `update` is forward, backward and optimiser step; the arithmetic of the losses stands between them, in `rest`.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from phase_clock import PhaseClock


def main(job_path: str) -> int:
    """Run one job."""
    job = json.loads(Path(job_path).read_text())
    os.environ["HF_HUB_OFFLINE"] = "1"

    import numpy
    import torch
    import transformers
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    torch.set_num_threads(job["threads"])
    transformers.set_seed(job["seed"])  # python, numpy (the permutation of minibatches) and torch
    tokenizer = AutoTokenizer.from_pretrained(job["policy"], padding_side="left")
    policy, reference = (AutoModelForCausalLM.from_pretrained(job["policy"], dtype=torch.float32) for _ in range(2))
    reward = AutoModelForSequenceClassification.from_pretrained(job["reward"], dtype=torch.float32, num_labels=1)
    critic = AutoModelForSequenceClassification.from_pretrained(job["critic"], dtype=torch.float32, num_labels=1)
    args = PPOConfig(
        output_dir=job["output"],
        learning_rate=job["lr"],
        adam_epsilon=job["adam_epsilon"],
        lr_scheduler_type="linear",
        warmup_steps=0,
        weight_decay=0.0,
        total_episodes=job["episodes"],
        per_device_train_batch_size=job["episodes_per_update"],
        gradient_accumulation_steps=1,
        num_mini_batches=job["num_mini_batches"],
        num_ppo_epochs=job["num_ppo_epochs"],
        local_rollout_forward_batch_size=job["episodes_per_update"],
        response_length=job["max_new_tokens"],
        temperature=job["temperature"],
        stop_token="eos",
        missing_eos_penalty=job["missing_eos_penalty"],
        kl_coef=job["beta"],
        kl_estimator="k1",
        cliprange=job["cliprange"],
        cliprange_value=job["cliprange_value"],
        vf_coef=job["vf_coef"],
        gamma=job["gamma"],
        lam=job["lam"],
        whiten_rewards=job["whiten_rewards"],
        num_sample_generations=0,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        seed=job["seed"],
    )
    rows = Dataset.from_dict({"input_ids": job["prompts"]})
    clock = PhaseClock()
    ppo_trainer.batch_generation = clock.wrap("rollout", ppo_trainer.batch_generation)
    ppo_trainer.get_reward = clock.wrap("scoring", ppo_trainer.get_reward)
    ppo_trainer.forward = clock.wrap(lambda: "update" if torch.is_grad_enabled() else "scoring", ppo_trainer.forward)
    trainer = PPOTrainer(
        args=args,
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=critic,
        train_dataset=rows,
        eval_dataset=rows.select(range(1)),
    )
    ppo_trainer.gc = SimpleNamespace(collect=clock.wrap("gc.collect", gc.collect))
    trainer.accelerator.backward = clock.wrap("update", trainer.accelerator.backward)
    trainer.optimizer.step = clock.wrap("update", trainer.optimizer.step)
    numpy.random.seed(job["seed"] % 2**32)
    cpu, wall = time.process_time(), time.perf_counter()
    trainer.train()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    policy.save_pretrained(job["output"])
    tokenizer.save_pretrained(job["output"])
    result = {
        "versions": {"trl": trl.__version__, "transformers": transformers.__version__, "torch": torch.__version__},
        "cpu_seconds": cpu,
        "wall_seconds": wall,
        "episodes": trainer.state.episode,
        "updates": trainer.state.global_step,
        "phases_cpu_seconds": clock.booked(cpu),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    Path(job["output"], "result.json").write_text(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
