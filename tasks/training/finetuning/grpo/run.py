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
from plumbline.tasks.models.chat import as_dicts, encode_prompts
from plumbline.tasks.models.checkpoints import newest_whole, weights_digest
from plumbline.tasks.models.curve import curve_rows
from plumbline.tasks.models.judging import Completions, GainFunction, Judge, Prompt
from plumbline.tasks.models.sampling import sample
from plumbline.tasks.models.trainer_args import trainer_config
from plumbline.tasks.params.grpo import GrpoParams
from plumbline.tasks.params.lengths import settled
from plumbline.tasks.training.finetuning.adapters import lora_config
from plumbline.tasks.training.finetuning.arena import Arena
from plumbline.tasks.training.finetuning.grpo.monitoring import WatchForHacking
from plumbline.tasks.training.finetuning.grpo.rollouts import JudgedRollouts
from plumbline.tasks.training.finetuning.grpo.trainer import ROLLOUT, SELECTION, JudgedTrainer, KeepState
from plumbline.tasks.training.finetuning.methods import FinetuneInputs
from plumbline.tasks.training.finetuning.on_policy.kl_control import KlController
from plumbline.tasks.training.finetuning.run import TrainingRun, open_run

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WHERE = "finetune.grpo"

BEST_BY = "win_rate"
"""Validation metric that chooses the best checkpoint, and that early stopping looks at."""

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
    """Raise `ParamsError` for arguments that TRL refuses."""
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

    # 2. the policy, and the prompts that leave room for a completion
    opened = open_run("grpo", inputs, params)
    prompts, too_long = _fitting_prompts(opened, params)
    runs_in = opened.folder(**_depends_on(inputs, params, prompts))
    config = _config(params, inputs.seed, runs_in)

    # 3. π_ref answers: validation prompts for the arena, training prompts for the scale of the reward
    reference = opened.reference(config.device)
    # with an adapter it is switched off; without one TRL's reference serves, unless β = 0 leaves TRL without
    arena = opened.arena(reference, inputs.validation, adapter=params.lora is not None or params.beta > 0)
    rollouts = JudgedRollouts(
        tokenizer=opened.tokenizer,
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

    # 4. train, evaluate, keep the best, write
    trainer = _trainer(opened, params, config, rollouts, arena)
    checkpoint = newest_whole(runs_in)
    if checkpoint is not None:
        trainer.restore(checkpoint)
    ended = opened.train_and_write(trainer, trainer.model, runs_in, BEST_BY, rows_of=_curve)
    watched = ended.state.stateful_callbacks[WatchForHacking.__name__]["attributes"]["kept"]
    return ended.facts | {
        "judge": {"name": ranker.name, "digest": ranker.digest, "noise": ranker.noise, "gains": gains.digest},
        "implied_beta": None,
        "prompts": {"train": len(prompts)},
        "too_long": {"train": too_long},
        "tokens": dict(rollouts.tokens),
        "totals": dict(sorted(rollouts.totals.items())),
        "best": ended.best_with_kl(),
        "findings": watched["findings"],
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
        folder,
        seed,
        # the dataset holds the prompts of all epochs in their order (`_order`): TRL's sampler would go on from the
        # first epoch's order where a run resumes in a later one
        num_train_epochs=1,
        shuffle_dataset=False,
        num_generations_eval=1,  # TRL checks that it divides the evaluation batch, which has no groups here
        steps_per_generation=params.passes_a_rollout,
        scale_rewards="none",
        disable_dropout=True,
        metric_for_best_model=f"eval_{SELECTION}",
        # goes into the saved config.json; the trainer passes use_cache=False to each forward itself
        use_cache=True,
    )


def _fitting_prompts(opened: TrainingRun, params: GrpoParams) -> tuple[list[Prompt], int]:
    """Distinct training prompts with room for `max_completion_length`, and how many have none."""
    inputs = opened.inputs
    limits = [params.max_length, opened.context]
    if params.reward_weight and inputs.reward is not None and inputs.reward.max_length is not None:
        limits.append(inputs.reward.max_length - 1)  # an end token behind a completion that did not reach its own
    room = min(limits) - settled(params.max_completion_length)
    distinct: list[Prompt] = list(dict.fromkeys(pair.prompt for pair in inputs.train))
    heads = encode_prompts(opened.tokenizer, distinct)
    fitting = [prompt for prompt, head in zip(distinct, heads, strict=True) if len(head) <= room]
    if not fitting:
        raise StageError(
            f"Expected training prompts with room for {params.max_completion_length} new tokens within {min(limits)}, "
            f"found none among {len(distinct)}. Lower {WHERE}.max_completion_length, or raise {WHERE}.max_length up to "
            "the context."
        )
    return fitting, len(distinct) - len(fitting)


def _depends_on(inputs: FinetuneInputs, params: GrpoParams, prompts: Sequence[Prompt]) -> dict[str, Any]:
    assert inputs.ranker is not None and inputs.gains is not None
    return {
        "train": [as_dicts(prompt) for prompt in prompts],
        "validation": [as_dicts(pair.prompt) for pair in inputs.validation],
        "ranker": [inputs.ranker.digest, inputs.ranker.noise],
        "gains": inputs.gains.digest,
        "reward": inputs.reward.digest if inputs.reward and params.reward_weight else None,
        "temperatures": list(inputs.temperatures),
    }


def _calibrate(rollouts: JudgedRollouts, reference: PreTrainedModel, prompts: Sequence[Prompt]) -> None:
    """Let the reward measure its terms on answers of π_ref; a resumed run does it again, with the same answers."""
    if rollouts.reward is None:
        return
    some = list(prompts[:_CALIBRATION_PROMPTS])
    completions = sample(
        reference,
        rollouts.tokenizer,
        some,
        max_new_tokens=settled(rollouts.params.max_completion_length),
        temperature=rollouts.params.temperature,
        top_p=rollouts.params.top_p,
        seed=rollouts.seed,
        batch_size=rollouts.params.per_device_eval_batch_size,
    )
    rollouts.reward.calibrate(Completions.of(some, completions))


def _trainer(
    opened: TrainingRun, params: GrpoParams, config: GRPOConfig, rollouts: JudgedRollouts, arena: Arena
) -> JudgedTrainer:
    # TRL loads the reference from the folder that the policy's config names
    opened.policy.config._name_or_path = str(opened.inputs.reference)
    prompts = _order(rollouts.pool, params, opened.inputs.seed, config.world_size)
    controller = KlController(params.kl, params.beta)
    watch = WatchForHacking(params.monitors.model_dump(mode="json"))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="You are using 'rollout_func'", category=UserWarning)  # trl is pinned
        trainer = JudgedTrainer(
            rollouts=rollouts,
            controller=controller,
            arena=arena,
            steps_a_rollout=params.steps_a_rollout,
            best_within_kl=params.best_within_kl,
            model=opened.policy,
            args=config,
            processing_class=rollouts.tokenizer,
            train_dataset=Dataset.from_dict({"prompt": [as_dicts(prompt) for prompt in prompts]}),
            # transformers wants one; what is evaluated is the arena
            eval_dataset=Dataset.from_dict({"prompt": [as_dicts(arena.prompts[0])]}),
            peft_config=lora_config(params.lora),
            callbacks=opened.callbacks((BEST_BY,), watch, KeepState(controller, rollouts)),
        )
    if trainer.ref_model is not None:
        trainer.arena = dataclasses.replace(arena, reference=trainer.ref_model)
    return trainer


def _order(pool: Sequence[Prompt], params: GrpoParams, seed: int, processes: int) -> list[Prompt]:
    """The prompts of all rollouts in their order: one permutation an epoch, whole rollouts, at least one."""
    a_rollout = params.completions_a_rollout * processes // params.num_generations
    count = max(1, round(params.num_train_epochs * len(pool) / a_rollout)) * a_rollout
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
