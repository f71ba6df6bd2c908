"""GRPO with TRL: π_ref in, policy out, on the order in which a judge puts the candidates of each prompt.

The objective of a token (Shao et al. 2024, eq. 3) is min(wA, clip(w, 1 ± ε)A) - β·k3, with w the probability ratio to
the policy that sampled, A the advantage of its completion (`groups`), and k3 the estimator of KL(π ‖ π_ref) whose
gradient TRL takes; the KL that is reported and steers β is the mean of log π - log π_ref over sampled tokens (k1).

Not covered: tools and environments, images, rewards of single tokens, a reference that moves.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset
from trl import GRPOConfig

from plumbline.data_contracts.errors import ParamsError, StageError
from plumbline.tasks.models.callbacks import Patience, stop_reason, usual_callbacks
from plumbline.tasks.models.chat import as_dicts, encode_prompts
from plumbline.tasks.models.checkpoints import newest_whole, run_folder, weights_digest
from plumbline.tasks.models.curve import curve_rows, evaluations_of, write_curve
from plumbline.tasks.models.judging import Answers, GainFunction, Judge, Prompt
from plumbline.tasks.models.loading import context_length, load_policy, load_tokenizer, seed_everything
from plumbline.tasks.models.sampling import sample
from plumbline.tasks.models.trainer_args import trainer_config
from plumbline.tasks.models.training import library_versions, train
from plumbline.tasks.params.grpo import GrpoParams
from plumbline.tasks.params.method_sections import ValidationParams
from plumbline.tasks.training.finetuning.adapters import lora_config, save_policy
from plumbline.tasks.training.finetuning.arena import Arena, is_beyond, open_arena
from plumbline.tasks.training.finetuning.grpo.monitoring import WatchForHacking
from plumbline.tasks.training.finetuning.grpo.rollouts import JudgedRollouts
from plumbline.tasks.training.finetuning.grpo.trainer import ROLLOUT, SELECTION, JudgedTrainer, KeepState
from plumbline.tasks.training.finetuning.methods import FinetuneInputs
from plumbline.tasks.training.finetuning.offline import refuse_other_tokenizer
from plumbline.tasks.training.finetuning.on_policy.kl_control import KlController

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerState

WHERE = "finetune.grpo"

_CALIBRATION_PROMPTS = 256
"""Prompts that π_ref answers to fix the scale of the reward's terms; a standard deviation is then known to 5 %."""

_FROM_TRL = {
    "step": "step",
    "loss": "loss",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "entropy": "entropy",
    "clip_ratio/region_mean": "clip_share",
}
"""TRL's own figures in the curve. Its others are of advantages, which are 0 on average by construction."""


def check_params(params: GrpoParams) -> None:
    """Raise `ParamsError` for TRL arguments that are unknown (with the nearest valid name) or refused by TRL."""
    _config(params, seed=0, folder=Path("unused"))


def run(inputs: FinetuneInputs, params: GrpoParams) -> dict[str, Any]:
    """Train the policy, write it into `inputs.folder` with its curve, and return facts for the manifest.

    `implied_beta` is None: the optimum of GRPO's objective is π_ref·exp(gain / β) too, but a gain is a rank among the
    candidates of a prompt, which has no Bradley-Terry unit, so β·log(π / π_ref) gives no probability of a preference.
    Raises `ParamsError` before any work when params or inputs do not fit together; `StageError` when no prompt fits the
    context, every completion is empty, KL runs away, the training diverges, or the disk is full; `JudgeError` and
    `RewardError` as judge and reward raise them.
    """
    # 1. refuse early
    check_params(params)
    ranker, gains = _refuse_early(inputs, params)

    # 2. the policy, and the prompts that leave room for an answer
    seed_everything(inputs.seed, inputs.threads)
    tokenizer = load_tokenizer(inputs.start, trust_remote_code=inputs.trust_remote_code)
    if inputs.start != inputs.reference:
        refuse_other_tokenizer(inputs, tokenizer)
    policy = load_policy(inputs.start, trust_remote_code=inputs.trust_remote_code)
    prompts, too_long = _fitting_prompts(inputs, params, policy, tokenizer)
    digests = {"start": weights_digest(inputs.start), "reference": weights_digest(inputs.reference)}
    runs_in = run_folder(inputs.work, _depends_on(inputs, params, digests, prompts))
    config = _config(params, inputs.seed, runs_in)
    policy.to(config.device)

    # 3. π_ref answers: validation prompts for the arena, training prompts for the scale of the reward
    reference = policy
    if inputs.start != inputs.reference:
        reference = load_policy(inputs.reference, trust_remote_code=inputs.trust_remote_code).to(config.device)
    arena = _open_arena(inputs, params, reference, tokenizer)
    rollouts = JudgedRollouts(
        tokenizer=tokenizer,
        pool=prompts,
        judge=ranker,
        gains=gains,
        reward=inputs.reward if params.reward_weight else None,
        params=params,
        temperatures=inputs.temperatures,
        seed=inputs.seed,
    )
    _calibrate(rollouts, reference, prompts)
    del reference  # TRL loads its own

    # 4. train, evaluate, keep the best
    controller = KlController(params.kl)
    trainer = _trainer(inputs, params, policy, config, rollouts, controller, arena)
    checkpoint = newest_whole(runs_in)
    if checkpoint is not None:
        trainer.restore(checkpoint)
    trainable = sum(weights.numel() for weights in trainer.model.parameters() if weights.requires_grad)
    state = train(trainer, runs_in)

    # 5. write
    rows = _curve(state.log_history)
    if trainer.is_world_process_zero():
        save_policy(trainer.model, tokenizer, inputs.folder)
        write_curve(inputs.folder, rows)
    return {
        "method": "grpo",
        "settings": params.model_dump(mode="json"),
        "seed": inputs.seed,
        "libraries": library_versions("peft"),
        "start_weights": digests["start"],
        "reference_weights": digests["reference"],
        "judge": {"name": ranker.name, "digest": ranker.digest, "noise": ranker.noise, "gains": gains.digest},
        "implied_beta": None,
        "prompts": {"train": len(prompts)},
        "too_long": {"train": too_long},
        "tokens": dict(rollouts.tokens),
        "totals": dict(sorted(rollouts.totals.items())),
        "trained_parameters": trainable,
        **_outcome(state, params, rows),
    }


def _refuse_early(inputs: FinetuneInputs, params: GrpoParams) -> tuple[Judge, GainFunction]:
    if inputs.ranker is None or inputs.gains is None:
        missing = "judge to rank candidates" if inputs.ranker is None else "gain function for the judge's ranks"
        raise ParamsError(f"{WHERE} needs a {missing}, and there is none. Configure a judge, or choose another method.")
    if inputs.judge is None:
        raise ParamsError(
            f"{WHERE} chooses its best checkpoint by the win rate of a held-out judge, and there is none. Train a "
            "reward model first."
        )
    if params.reward_weight and inputs.reward is None:
        raise ParamsError(
            f"{WHERE}.reward_weight is {params.reward_weight:g}, but there is no reward. Configure reward terms, "
            "or set it to 0."
        )
    if params.lora is not None and weights_digest(inputs.start) != weights_digest(inputs.reference):
        raise ParamsError(
            f"{WHERE}.lora takes the policy with its adapter off as the reference, but this stage starts from another "
            "policy than its reference. Set finetune.stage_reference: previous, or lora: null."
        )
    if params.use_vllm and inputs.temperatures:
        raise ParamsError(
            f"{WHERE}.use_vllm samples at one temperature, found {len(inputs.temperatures)} to draw from. Give none, "
            "or set use_vllm: false."
        )
    return inputs.ranker, inputs.gains


def _config(params: GrpoParams, seed: int, folder: Path) -> GRPOConfig:
    return trainer_config(
        GRPOConfig,
        WHERE,
        params,
        output_dir=str(folder),
        seed=seed,
        data_seed=seed,
        # the dataset holds the prompts of all epochs in their order (`_order`): TRL's sampler would go on from the
        # first epoch's order where a run resumes in a later one
        num_train_epochs=1,
        shuffle_dataset=False,
        num_generations=params.candidates,
        num_generations_eval=1,  # TRL checks that it divides the evaluation batch, which has no groups here
        steps_per_generation=params.gradient_accumulation * params.steps_per_rollout,
        num_iterations=params.passes,
        max_completion_length=params.max_new_tokens,
        temperature=params.temperature,
        top_p=params.top_p,
        use_vllm=params.use_vllm,
        loss_type=params.loss_type,
        epsilon=params.clip_range,
        entropy_coef=params.entropy_bonus,
        beta=params.kl.beta,
        scale_rewards="none",
        disable_dropout=True,
        metric_for_best_model=f"eval_{SELECTION}",
        # goes into the saved config.json; the trainer passes use_cache=False to each forward itself
        use_cache=True,
    )


def _fitting_prompts(
    inputs: FinetuneInputs, params: GrpoParams, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[Prompt], int]:
    """Distinct training prompts with room for `max_new_tokens`, and how many have none."""
    limits = [params.max_length, context_length(policy.config, tokenizer)]
    if params.reward_weight and inputs.reward is not None and inputs.reward.max_length is not None:
        limits.append(inputs.reward.max_length - 1)  # an end token behind a completion that did not reach its own
    room = min(limits) - params.max_new_tokens
    distinct: list[Prompt] = list(dict.fromkeys(pair.prompt for pair in inputs.train))
    fitting = [
        prompt for prompt, head in zip(distinct, encode_prompts(tokenizer, distinct), strict=True) if len(head) <= room
    ]
    if not fitting:
        raise StageError(
            f"Expected training prompts with room for {params.max_new_tokens} new tokens within {min(limits)}, found "
            f"none among {len(distinct)}. Lower {WHERE}.max_new_tokens, or raise {WHERE}.max_length up to the context."
        )
    return fitting, len(distinct) - len(fitting)


def _depends_on(
    inputs: FinetuneInputs, params: GrpoParams, digests: Mapping[str, str], prompts: Sequence[Prompt]
) -> dict[str, Any]:
    assert inputs.ranker is not None and inputs.gains is not None
    return {
        "method": "grpo",
        "params": params.model_dump(mode="json"),
        "seed": inputs.seed,
        "threads": inputs.threads,
        **digests,
        "train": [as_dicts(prompt) for prompt in prompts],
        "validation": [as_dicts(pair.prompt) for pair in inputs.validation],
        "judge": [inputs.judge_digest, inputs.judge_length],
        "ranker": [inputs.ranker.digest, inputs.ranker.noise],
        "gains": inputs.gains.digest,
        "reward": inputs.reward.digest if inputs.reward and params.reward_weight else None,
        "temperatures": list(inputs.temperatures),
        "libraries": library_versions("peft"),
    }


def _open_arena(
    inputs: FinetuneInputs, params: GrpoParams, reference: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Arena:
    assert inputs.judge is not None
    return open_arena(
        reference,
        tokenizer,
        inputs.validation,
        inputs.judge,
        ValidationParams(**params.validation.model_dump()),
        batch_size=params.eval_batch_size,
        context=context_length(reference.config, tokenizer),
        seed=inputs.seed,
        judge_length=inputs.judge_length,
        # with an adapter it is switched off; without one TRL's reference serves, unless β = 0 leaves TRL without
        adapter=params.lora is not None or params.kl.beta > 0,
        progress=inputs.progress,
    )


def _calibrate(rollouts: JudgedRollouts, reference: PreTrainedModel, prompts: Sequence[Prompt]) -> None:
    """Let the reward measure its terms on answers of π_ref; a resumed run does it again, with the same answers."""
    if rollouts.reward is None:
        return
    some = list(prompts[:_CALIBRATION_PROMPTS])
    completions = sample(
        reference,
        rollouts.tokenizer,
        some,
        max_new_tokens=rollouts.params.max_new_tokens,
        temperature=rollouts.params.temperature,
        top_p=rollouts.params.top_p,
        seed=rollouts.seed,
        batch_size=rollouts.params.eval_batch_size,
    )
    rollouts.reward.calibrate(Answers.of(some, completions))


def _trainer(
    inputs: FinetuneInputs,
    params: GrpoParams,
    policy: PreTrainedModel,
    config: GRPOConfig,
    rollouts: JudgedRollouts,
    controller: KlController,
    arena: Arena,
) -> JudgedTrainer:
    # TRL loads the reference from the folder that the policy's config names
    policy.config._name_or_path = str(inputs.reference)
    prompts = _order(rollouts.pool, params, inputs.seed, config.world_size)
    stopping = params.early_stopping
    patience = [Patience(stopping.patience, stopping.min_delta, ("win_rate",))] if stopping else []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="You are using 'rollout_func'", category=UserWarning)  # trl is pinned
        trainer = JudgedTrainer(
            rollouts=rollouts,
            controller=controller,
            arena=arena,
            steps_a_rollout=params.steps_a_rollout,
            best_within_kl=params.best_within_kl,
            model=policy,
            args=config,
            processing_class=rollouts.tokenizer,
            train_dataset=Dataset.from_dict({"prompt": [as_dicts(prompt) for prompt in prompts]}),
            # transformers wants one; what is evaluated is the arena
            eval_dataset=Dataset.from_dict({"prompt": [as_dicts(arena.prompts[0])]}),
            peft_config=lora_config(params.lora),
            callbacks=[
                *patience,
                WatchForHacking(params.monitors.model_dump(mode="json")),
                KeepState(controller, rollouts),
                *usual_callbacks(inputs.progress),
            ],
        )
    if trainer.ref_model is not None:
        trainer.arena = dataclasses.replace(arena, reference=trainer.ref_model)
    return trainer


def _order(pool: Sequence[Prompt], params: GrpoParams, seed: int, processes: int) -> list[Prompt]:
    """The prompts of all rollouts in their order: one permutation an epoch, whole rollouts, at least one."""
    a_rollout = params.completions_a_rollout * processes // params.candidates
    count = max(1, round(params.epochs * len(pool) / a_rollout)) * a_rollout
    order: list[int] = []
    while len(order) < count:
        epoch = len(order) // len(pool)
        order += np.random.default_rng((seed, epoch)).permutation(len(pool)).tolist()
    return [pool[row] for row in order[:count]]


def _curve(log_history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of training.jsonl: a few of TRL's figures, those of the rollouts, and the evaluations."""
    entries: list[dict[str, Any]] = []
    for entry in log_history:
        if "train_runtime" in entry:  # the summary of a whole run
            continue
        ours = {name.removeprefix(ROLLOUT): value for name, value in entry.items() if name.startswith(ROLLOUT)}
        entries.append(
            {_FROM_TRL[name]: value for name, value in entry.items() if name in _FROM_TRL}
            | ours
            | {name: value for name, value in entry.items() if name.startswith("eval_")}
        )
    return curve_rows(entries)


def _outcome(state: TrainerState, params: GrpoParams, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    evaluations = evaluations_of(rows, "win_rate")
    best = next(each for each in evaluations if each["step"] == state.best_global_step)
    watched = state.stateful_callbacks[WatchForHacking.__name__]["attributes"]["kept"]
    return {
        "steps": {"planned": state.max_steps, "run": evaluations[-1]["step"]},
        "best": {
            "step": state.best_global_step,
            "metric": "win_rate",
            "value": best["win_rate"],
            "kl_per_token": best["kl_per_token"],
            "within_kl": not is_beyond(best["kl_per_token"], params.best_within_kl),
        },
        "stopped": stop_reason(state.stateful_callbacks) or "all steps done",
        "final_loss": rows[-1]["loss"],
        "findings": watched["findings"],
        "evaluations": evaluations,
    }
