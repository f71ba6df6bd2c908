"""PPO as a fine-tuning method: π_ref, prompts, a reward and a critic in, policy out.

Prompts are those of the training pairs, each once; their responses are not looked at. The reward is normalised once on
π_ref's own completions. The best checkpoint is the one that wins most often before the held-out judge, which is not the
reward that is trained on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from datasets import Dataset

from plumbline.data_contracts.errors import ParamsError
from plumbline.tasks.models.callbacks import Patience, stop_reason, usual_callbacks
from plumbline.tasks.models.chat import as_dicts
from plumbline.tasks.models.checkpoints import run_folder, weights_digest
from plumbline.tasks.models.curve import curve_rows, evaluations_of, write_curve
from plumbline.tasks.models.judging import Prompt, Reward
from plumbline.tasks.models.loading import context_length, load_policy, load_tokenizer, seed_everything
from plumbline.tasks.models.trainer_args import check_trainer_args, must_name_cpu
from plumbline.tasks.models.training import library_versions, train
from plumbline.tasks.params.ppo import ARGUMENTS, PpoParams
from plumbline.tasks.training.finetuning.adapters import lora_config, save_policy
from plumbline.tasks.training.finetuning.arena import Arena, is_beyond, open_arena
from plumbline.tasks.training.finetuning.methods import FinetuneInputs, Score
from plumbline.tasks.training.finetuning.on_policy.vllm import check_vllm
from plumbline.tasks.training.finetuning.ppo.checkpointing import STATE
from plumbline.tasks.training.finetuning.ppo.config import PPOConfig
from plumbline.tasks.training.finetuning.ppo.model import load_critic
from plumbline.tasks.training.finetuning.ppo.trainer import PPOTrainer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerState

WHERE = "finetune.ppo"
WATCHED = ("win_rate",)
"""Validation metric that early stopping looks at."""

KEPT_CHECKPOINTS = 3
"""The last, the one before it should the last be damaged, and the best."""

SCHEDULE = ("episodes", "beta", "kl_per_token", "reward", "score", "response_tokens")
"""Figures of each logged row that facts repeat: the schedule as it was run."""


def check_params(params: PpoParams) -> None:
    """Raise `ParamsError` for arguments that transformers does not know or refuses, and for a sampler not installed."""
    if params.sampler == "vllm":
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
    reward, judge = _needed(inputs, params)

    # 2. policy, critic, prompts
    seed_everything(inputs.seed, inputs.threads)
    tokenizer = load_tokenizer(inputs.start, trust_remote_code=inputs.trust_remote_code)
    policy = load_policy(inputs.start, trust_remote_code=inputs.trust_remote_code)
    critic = _critic(inputs, params, tokenizer)
    prompts = list(dict.fromkeys(pair.prompt for pair in inputs.train))
    digests = {
        "start": weights_digest(inputs.start),
        "reference": weights_digest(inputs.reference),
        "critic": weights_digest(_critic_folder(inputs, params)),
    }
    runs_in = run_folder(inputs.work, _depends_on(inputs, params, digests, prompts, reward))

    # 3. π_ref, and how it answers validation prompts
    config = _config(params, inputs.seed, runs_in)
    arena, reference = _arena(inputs, params, policy.to(config.device), tokenizer, judge, digests)

    # 4. train, evaluate, keep the best
    trainer = PPOTrainer(
        model=policy,
        ref_model=reference,
        value_model=critic,
        reward=reward,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": [as_dicts(prompt) for prompt in prompts]}),
        processing_class=tokenizer,
        callbacks=_callbacks(inputs, params),
        peft_config=lora_config(params.lora),
        evaluate_with=lambda model: arena.meet(model).metrics(),
        temperatures=inputs.temperatures,
    )
    trainable = sum(weights.numel() for weights in trainer.model.policy.parameters() if weights.requires_grad)
    state = train(trainer, runs_in)

    # 5. write
    rows = curve_rows(state.log_history)
    if trainer.is_world_process_zero():
        save_policy(trainer.model.policy, tokenizer, inputs.folder)
        write_curve(inputs.folder, rows)
    # of the last checkpoint, because a run that had ended before it was killed takes no further step
    learned = orjson.loads((runs_in / f"checkpoint-{state.global_step}" / STATE).read_bytes())
    return {
        "method": "ppo",
        "settings": params.model_dump(mode="json"),
        "seed": inputs.seed,
        "libraries": _libraries(),
        "start_weights": digests["start"],
        "reference_weights": digests["reference"],
        "critic_weights": digests["critic"],
        "reward": {"digest": reward.digest, "state": learned["reward"]},
        "prompts": {"train": len(trainer.prompts.ids), "validation": len(arena.prompts)},
        "too_long": {"train": trainer.prompts.too_long},
        "trained_parameters": trainable,
        # the β at which KL and reward were in balance at the end: what an implied reward is read with
        "implied_beta": learned["kl"]["beta"],
        "tokens": _tokens(trainer, learned["counters"], params.ppo_epochs),
        "episodes": learned["counters"]["episodes"],
        "response_tokens": learned["counters"]["response_tokens"],
        "findings": learned["monitor"]["findings"],
        **_outcome(state, params, rows, learned["stopped"]),
    }


def _tokens(trainer: PPOTrainer, counters: Mapping[str, int], passes: int) -> dict[str, int]:
    """Tokens seen and generated (`tasks.training.finetuning.tokens`) of the episodes that were counted."""
    rows = [row for update in trainer.plan for row in update.tolist()][: counters["episodes"]]
    prompt_tokens = sum(len(trainer.prompts.ids[row]) for row in rows)
    generated = counters["response_tokens"]
    return {"seen": passes * (prompt_tokens + generated), "generated": generated}


def _needed(inputs: FinetuneInputs, params: PpoParams) -> tuple[Reward, Score]:
    if inputs.reward is None:
        raise ParamsError(f"{WHERE} needs a reward to maximise, and there is none. Train a reward model first.")
    if inputs.judge is None:
        raise ParamsError(f"{WHERE}.best_by is {params.best_by}, which needs a held-out judge, and there is none.")
    _critic_folder(inputs, params)
    return inputs.reward, inputs.judge


def _critic_folder(inputs: FinetuneInputs, params: PpoParams) -> Path:
    if params.critic_init == "reference":
        return inputs.reference
    if inputs.reward_model is None:
        raise ParamsError(
            f"{WHERE}.critic_init is reward, which needs a reward model, and there is none. Set {WHERE}.critic_init: "
            "reference, or train a reward model first."
        )
    return inputs.reward_model


def _critic(inputs: FinetuneInputs, params: PpoParams, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    folder = _critic_folder(inputs, params)
    return load_critic(
        folder,
        policy_tokenizer=tokenizer,
        critic_tokenizer=load_tokenizer(folder, trust_remote_code=inputs.trust_remote_code),
        seed=inputs.seed,
        from_policy=params.critic_init == "reference",
        trust_remote_code=inputs.trust_remote_code,
    )


def _arena(
    inputs: FinetuneInputs,
    params: PpoParams,
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    judge: Score,
    digests: Mapping[str, str],
) -> tuple[Arena, PreTrainedModel | None]:
    """The arena, and its frozen π_ref, which serves the rollouts too; None: the policy with its adapter off."""
    stacked = digests["start"] != digests["reference"]
    reference = policy
    if stacked:
        reference = load_policy(inputs.reference, trust_remote_code=inputs.trust_remote_code).to(policy.device)
    arena = open_arena(
        reference,
        tokenizer,
        inputs.validation,
        judge,
        params.validation,
        batch_size=params.eval_batch_size,
        context=context_length(policy.config, tokenizer),
        seed=inputs.seed,
        judge_length=inputs.judge_length,
        adapter=params.lora is not None and not stacked,
        progress=inputs.progress,
    )
    return arena, arena.reference


def _config(params: PpoParams, seed: int, folder: Path) -> PPOConfig:
    """`PPOConfig` from params. Raises `ParamsError` for arguments that transformers does not know or refuses."""
    check_trainer_args(PPOConfig, params.trainer_args, f"{WHERE}.trainer_args")
    arguments = {argument: getattr(params, key) for argument, key in ARGUMENTS.items()}
    arguments["use_cpu"] = must_name_cpu(params.bf16)
    try:
        return PPOConfig(
            output_dir=str(folder),
            seed=seed,
            data_seed=seed,
            vllm=params.vllm if params.sampler == "vllm" else None,
            eval_strategy="steps",
            save_strategy="steps",
            save_total_limit=KEPT_CHECKPOINTS,
            load_best_model_at_end=True,
            greater_is_better=True,
            metric_for_best_model=f"eval_{params.best_by}",
            restore_callback_states_from_checkpoint=True,
            logging_nan_inf_filter=False,
            disable_tqdm=True,
            report_to="none",
            **(arguments | params.trainer_args),
        )
    except (ValueError, TypeError) as error:
        raise ParamsError(f"{WHERE}: transformers refuses these arguments: {error}") from error


def _depends_on(
    inputs: FinetuneInputs,
    params: PpoParams,
    digests: Mapping[str, str],
    prompts: Sequence[Prompt],
    reward: Reward,
) -> dict[str, Any]:
    validation = dict.fromkeys(pair.prompt for pair in inputs.validation)
    return {
        "method": "ppo",
        "params": params.model_dump(mode="json"),
        "seed": inputs.seed,
        "threads": inputs.threads,
        "weights": dict(digests),
        "train": _digest_of_prompts(prompts),
        "validation": _digest_of_prompts(list(validation)),
        "reward": reward.digest,
        "judge": [inputs.judge_digest, inputs.judge_length],
        "temperatures": list(inputs.temperatures),
        "libraries": _libraries(),
    }


def _digest_of_prompts(prompts: Sequence[Prompt]) -> str:
    return hashlib.sha256(orjson.dumps([as_dicts(prompt) for prompt in prompts])).hexdigest()


def _libraries() -> dict[str, str]:
    return library_versions("accelerate", "peft")


def _callbacks(inputs: FinetuneInputs, params: PpoParams) -> list[Any]:
    stopping = params.early_stopping
    patience = [Patience(stopping.patience, stopping.min_delta, WATCHED)] if stopping else []
    return [*patience, *usual_callbacks(inputs.progress)]


def _outcome(
    state: TrainerState, params: PpoParams, rows: Sequence[Mapping[str, Any]], stopped: str | None
) -> dict[str, Any]:
    evaluations = evaluations_of(rows, "win_rate")
    best = next(row for row in evaluations if row["step"] == state.best_global_step)
    return {
        "steps": {"planned": state.max_steps, "run": evaluations[-1]["step"]},
        "best": {
            "step": state.best_global_step,
            "metric": params.best_by,
            "value": best[params.best_by],
            "kl_per_token": best["kl_per_token"],
            "within_kl": not is_beyond(best["kl_per_token"], params.best_within_kl),
        },
        "stopped": stopped or stop_reason(state.stateful_callbacks) or "all steps done",
        "final_loss": rows[-1]["loss"],
        "evaluations": evaluations,
        "schedule": [{name: row[name] for name in ("step", *SCHEDULE)} for row in rows if "beta" in row],
    }
