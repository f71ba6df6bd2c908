"""PPO as a fine-tuning method: π_ref, prompts, a reward and a critic in, policy out.

Prompts are those of the training pairs, each once; their responses are not looked at. The reward is normalised once on
π_ref's own completions. The best checkpoint is the one that wins most often before the held-out judge, which is not the
reward that is trained on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
from datasets import Dataset

from plumbline.data_contracts.errors import ParamsError
from plumbline.tasks.models.chat import as_dicts
from plumbline.tasks.models.checkpoints import weights_digest
from plumbline.tasks.models.judging import Prompt, Reward
from plumbline.tasks.models.loading import load_tokenizer
from plumbline.tasks.models.trainer_args import must_name_cpu, same_named
from plumbline.tasks.params.ppo import PpoParams
from plumbline.tasks.training.finetuning.adapters import lora_config
from plumbline.tasks.training.finetuning.methods import FinetuneInputs
from plumbline.tasks.training.finetuning.on_policy.vllm import check_vllm
from plumbline.tasks.training.finetuning.ppo.checkpointing import STATE
from plumbline.tasks.training.finetuning.ppo.config import PPOConfig
from plumbline.tasks.training.finetuning.ppo.model import load_critic
from plumbline.tasks.training.finetuning.ppo.trainer import PPOTrainer
from plumbline.tasks.training.finetuning.run import open_run

WHERE = "finetune.ppo"
WATCHED = ("win_rate",)
"""Validation metric that early stopping looks at."""

KEPT_CHECKPOINTS = 3
"""The last, the one before it should the last be damaged, and the best."""

SCHEDULE = ("episodes", "beta", "kl_per_token", "reward", "score", "response_tokens")
"""Figures of each logged row that facts repeat: the schedule as it was run."""


def check_params(params: PpoParams) -> None:
    """Raise `ParamsError` for arguments that transformers refuses, and for a sampler not installed."""
    if params.use_vllm:
        check_vllm()
    _config(params, seed=0, folder=Path("unused"))


def run(inputs: FinetuneInputs, params: PpoParams) -> dict[str, Any]:
    """Train the policy, write it into `inputs.folder` with its curve, and return facts for the manifest.

    Raises `ParamsError` before any work when params do not fit together, `ModelError` for a reward model with another
    tokenizer, `RewardError` from the reward, and `StageError` when no prompt fits, every response is empty, the KL runs
    away, the training diverges, or the disk is full.
    """
    # 1. refuse early
    check_params(params)
    reward = _reward(inputs, params)

    # 2. policy, critic, prompts
    opened = open_run("ppo", inputs, params, "accelerate")
    critic_folder = _critic_folder(inputs, params)
    critic = load_critic(
        critic_folder,
        policy_tokenizer=opened.tokenizer,
        critic_tokenizer=load_tokenizer(critic_folder, trust_remote_code=inputs.trust_remote_code),
        seed=inputs.seed,
        from_policy=params.critic_init == "reference",
        trust_remote_code=inputs.trust_remote_code,
    )
    critic_weights = weights_digest(critic_folder)
    prompts = list(dict.fromkeys(pair.prompt for pair in inputs.train))
    runs_in = opened.folder(
        train=_digest_of_prompts(prompts),
        validation=_digest_of_prompts(list(dict.fromkeys(pair.prompt for pair in inputs.validation))),
        critic=critic_weights,
        reward=reward.digest,
        temperatures=list(inputs.temperatures),
    )

    # 3. π_ref, and how it answers validation prompts
    config = _config(params, inputs.seed, runs_in)
    arena = opened.arena(opened.reference(config.device), inputs.validation, adapter=opened.holds_reference)

    # 4. train, evaluate, keep the best, write
    trainer = PPOTrainer(
        model=opened.policy,
        ref_model=arena.reference,  # it serves the rollouts too; None: the policy with its adapter off
        value_model=critic,
        reward=reward,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": [as_dicts(prompt) for prompt in prompts]}),
        processing_class=opened.tokenizer,
        callbacks=opened.callbacks(WATCHED),
        peft_config=lora_config(params.lora),
        evaluate_with=lambda model: arena.meet(model).metrics(),
        temperatures=inputs.temperatures,
    )
    ended = opened.train_and_write(trainer, trainer.model.policy, runs_in, params.metric_for_best_model)
    # of the last checkpoint, because a run that had ended before it was killed takes no further step
    learned = orjson.loads((runs_in / f"checkpoint-{ended.state.global_step}" / STATE).read_bytes())
    return ended.facts | {
        "critic_weights": critic_weights,
        "reward": {"digest": reward.digest, "state": learned["reward"]},
        "prompts": {"train": len(trainer.prompts.ids), "validation": len(arena.prompts)},
        "too_long": {"train": trainer.prompts.too_long},
        # the β at which KL and reward were in balance at the end: what an implied reward is read with
        "implied_beta": learned["kl"]["beta"],
        "tokens": _tokens(trainer, learned["counters"], params.num_ppo_epochs),
        "episodes": learned["counters"]["episodes"],
        "response_tokens": learned["counters"]["response_tokens"],
        "best": ended.best_with_kl(),
        "findings": learned["monitor"]["findings"],
        "stopped": learned["stopped"] or ended.facts["stopped"],
        "schedule": [{name: row[name] for name in ("step", *SCHEDULE)} for row in ended.rows if "beta" in row],
    }


def _tokens(trainer: PPOTrainer, counters: Mapping[str, int], passes: int) -> dict[str, int]:
    """Tokens seen and generated (`tasks.training.finetuning.tokens`) of the episodes that were counted."""
    rows = [row for update in trainer.plan for row in update.tolist()][: counters["episodes"]]
    prompt_tokens = sum(len(trainer.prompts.ids[row]) for row in rows)
    generated = counters["response_tokens"]
    return {"seen": passes * (prompt_tokens + generated), "generated": generated}


def _reward(inputs: FinetuneInputs, params: PpoParams) -> Reward:
    """The reward; refuses inputs in which it, the judge or the critic is missing."""
    if inputs.reward is None:
        raise ParamsError(f"{WHERE} needs a reward to maximise, and there is none. Train a reward model first.")
    if inputs.judge is None:
        raise ParamsError(
            f"{WHERE}.metric_for_best_model is {params.metric_for_best_model}, which needs a held-out judge, and "
            "there is none."
        )
    _critic_folder(inputs, params)
    return inputs.reward


def _critic_folder(inputs: FinetuneInputs, params: PpoParams) -> Path:
    if params.critic_init == "reference":
        return inputs.reference
    if inputs.reward_model is None:
        raise ParamsError(
            f"{WHERE}.critic_init is reward, which needs a reward model, and there is none. Set {WHERE}.critic_init: "
            "reference, or train a reward model first."
        )
    return inputs.reward_model


def _config(params: PpoParams, seed: int, folder: Path) -> PPOConfig:
    """`PPOConfig` from params. Raises `ParamsError` for arguments that transformers refuses."""
    arguments = same_named(PPOConfig, params) | {
        "output_dir": str(folder),
        "seed": seed,
        "data_seed": seed,
        "use_cpu": must_name_cpu(params.bf16),
        "activation_checkpointing": params.gradient_checkpointing,
        "vllm": params.vllm if params.use_vllm else None,
        # in updates; the trainer's own intervals, in steps, follow
        "log_every": params.logging_steps,
        "eval_every": params.eval_steps,
        "eval_strategy": "steps",
        "save_strategy": "steps",
        "save_total_limit": KEPT_CHECKPOINTS,
        "load_best_model_at_end": True,
        "greater_is_better": True,
        "metric_for_best_model": f"eval_{params.metric_for_best_model}",
        "restore_callback_states_from_checkpoint": True,
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        "report_to": "none",
    }
    try:
        return PPOConfig(**(arguments | params.further_arguments))
    except (ValueError, TypeError) as error:
        raise ParamsError(f"{WHERE}: transformers refuses these arguments: {error}") from error


def _digest_of_prompts(prompts: Sequence[Prompt]) -> str:
    return hashlib.sha256(orjson.dumps([as_dicts(prompt) for prompt in prompts])).hexdigest()
