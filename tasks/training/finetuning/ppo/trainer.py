"""`PPOTrainer`: proximal policy optimisation (Schulman et al. 2017) of a language model on transformers' Trainer.

The Trainer's loop counts optimiser steps and does what it always does: accumulation, clipping, schedule, checkpoints,
callbacks, DDP, bf16. PPO comes in where it asks for the next batch. One update is

1. a rollout: the policy answers prompts; reward, reference and critic say what they think of the answers   (rollouts)
2. KL control: is the policy near π_ref; β for the next rollout                                          (kl_control)
3. a reward for each token: -β·KL, and the score on the last one                                            (rewards)
4. advantages and returns by GAE, whitened over the whole rollout                                        (advantages)
5. `num_ppo_epochs` passes in `num_mini_batches` optimiser steps on the clipped losses                       (losses)

Evaluations, checkpoints and logs fall on the ends of updates, so a rollout never has to be saved.

Not covered: vision-language models, encoder-decoders, DeepSpeed and FSDP, tools and turns of several messages.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader
from transformers import Trainer

from plumbline.data_contracts.errors import ParamsError, StageError
from plumbline.data_contracts.private_names import require_names
from plumbline.tasks.models.loading import context_length
from plumbline.tasks.params.on_policy import VllmParams
from plumbline.tasks.training.finetuning.on_policy.kl_control import KlController, check_kl_sign
from plumbline.tasks.training.finetuning.on_policy.monitors import HackingMonitor, repeated_share
from plumbline.tasks.training.finetuning.on_policy.vllm import VllmSampler
from plumbline.tasks.training.finetuning.ppo.advantages import gae, whiten
from plumbline.tasks.training.finetuning.ppo.config import PPOConfig
from plumbline.tasks.training.finetuning.ppo.experience import Episodes, Experience, joined, minibatch_rows
from plumbline.tasks.training.finetuning.ppo.figures import Figures
from plumbline.tasks.training.finetuning.ppo.losses import explained_variance, policy_loss, value_loss
from plumbline.tasks.training.finetuning.ppo.measuring import Evaluate, MeasuresUpdates
from plumbline.tasks.training.finetuning.ppo.model import ActorCritic
from plumbline.tasks.training.finetuning.ppo.rewards import shape_rewards
from plumbline.tasks.training.finetuning.ppo.rollouts import (
    MINIBATCHES,
    RolloutMaker,
    generator_of,
    plan_updates,
    read_prompts,
    rollout_metrics,
)

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from plumbline.tasks.models.judging import Reward

require_names("transformers", Trainer, "_clip_grad_norm", "_get_grad_norm")

logger = logging.getLogger(__name__)


class PPOTrainer(MeasuresUpdates):
    """PPO with a reference policy, a reward and a critic of its own.

    `train_dataset` has a column `prompt` in TRL's standard or conversational format. `ref_model` None: the policy with
    its adapter off, or a frozen copy of the policy as it is now. `value_model` is a sequence-classification model with
    one output, which is trained: pass a copy of the reward model, not the one that scores. `evaluate_with` measures
    the policy every `eval_every` updates; `args.metric_for_best_model` names one of its figures.
    """

    loss_is_scaled_for_ga = True
    optimizer: torch.optim.Optimizer | None

    def __init__(
        self,
        model: PreTrainedModel,
        ref_model: PreTrainedModel | None,
        value_model: PreTrainedModel,
        reward: Reward,
        args: PPOConfig,
        train_dataset: Dataset,
        processing_class: PreTrainedTokenizerBase,
        *,
        callbacks: Sequence[Any] | None = None,
        peft_config: Any = None,
        evaluate_with: Evaluate | None = None,
        temperatures: Sequence[float] = (),
        **trainer: Any,
    ) -> None:
        if args.eval_strategy != "no" and evaluate_with is None:
            raise ParamsError("eval_strategy is set, but there is nothing to evaluate with. Pass evaluate_with.")
        # 1. prompts that leave room for an answer in every network, and which of them each update asks
        room = min(context_length(each.config, processing_class) for each in (model, value_model))
        # a reward reads an end token behind a response that did not reach its own
        room = room if reward.max_length is None else min(room, reward.max_length - 1)
        self.prompts = read_prompts(train_dataset, processing_class, room - args.max_completion_length)
        self.plan = plan_updates(
            [len(ids) for ids in self.prompts.ids],
            episodes=args.total_episodes,
            rows=args.episodes_per_update,
            tokens=args.prompt_tokens_per_update,
            least=args.num_mini_batches * args.world_size * args.gradient_accumulation_steps,
            seed=args.seed,
        )
        args.max_steps = len(self.plan) * args.steps_per_update
        if args.ddp_find_unused_parameters is None:
            # during the critic's warm-up the policy takes no part in the loss
            args.ddp_find_unused_parameters = args.critic_warmup_updates > 0

        # 2. policy, reference, critic
        if peft_config is not None:
            from peft import get_peft_model

            model = get_peft_model(model, peft_config)
        if ref_model is None and not hasattr(model, "peft_config"):
            ref_model = copy.deepcopy(model)
        super().__init__(
            model=ActorCritic(model, value_model),
            args=args,
            train_dataset=train_dataset,
            # asked for by the Trainer, never read: evaluate_with knows its prompts
            eval_dataset=train_dataset if evaluate_with is not None else None,
            processing_class=processing_class,
            callbacks=list(callbacks or []),
            **trainer,
        )
        if ref_model is not None:
            ref_model = ref_model.to(args.device).eval().requires_grad_(False)

        # 3. what an update needs
        self.rollouts = RolloutMaker(
            self.model,
            ref_model,
            processing_class,
            self.prompts,
            reward,
            args,
            self.accelerator,
            temperatures,
        )
        if args.vllm is not None:
            self.rollouts.vllm = self._vllm_sampler(args.vllm, room)
        self.reward = reward
        self.evaluate_with = evaluate_with
        self.kl = KlController(args.kl, args.beta)
        self.monitor = HackingMonitor(args.monitors)
        self.counters = {"episodes": 0, "response_tokens": 0}
        self.calibrated = args.calibration_prompts == 0
        self._batches: Iterator[tuple[list[dict[str, Any]], int]] = iter(())
        self.figures = Figures()

    def _vllm_sampler(self, params: VllmParams, room: int) -> VllmSampler:
        if self.rollouts.temperatures or not self.prompts.conversational:
            raise ParamsError(
                "vLLM samples at one temperature, and conversational prompts only. Use Plumbline's own sampler for "
                "several temperatures or for prompts that are plain strings."
            )
        args = self.args
        return VllmSampler(
            self.model.policy,
            self.processing_class,
            self.accelerator,
            params,
            max_new_tokens=args.max_completion_length,
            max_length=room,
            temperature=args.temperature,
            top_p=args.top_p,
        )

    # ---- the next optimiser step ----

    def get_train_dataloader(self) -> DataLoader[int]:
        """Counts micro-batches; what they hold comes from the rollouts."""
        steps = self.args.max_steps * self.args.gradient_accumulation_steps
        return DataLoader(range(steps), batch_size=1)  # type: ignore[arg-type]

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], int]:
        """Micro-batches of the next optimiser step and its global number of response tokens."""
        update, step = divmod(self.state.global_step, self.args.steps_per_update)
        if self.stopped is not None:
            self.control.should_training_stop = True
            return [], 0
        if step == 0:
            self._batches = self._minibatches(update, self._collect(update))
        return next(self._batches)

    def _collect(self, update: int) -> Experience:
        """Steps 1 to 4 of an update."""
        if not self.calibrated:
            self.rollouts.calibrate(self.args.calibration_prompts)
            self.calibrated = True
        episodes = self.rollouts.make(update, self.plan[update].tolist())
        self.counters["episodes"] += len(episodes.completions)
        self.counters["response_tokens"] += episodes.tokens
        metrics = rollout_metrics(episodes, episodes.scored)
        _refuse_silence(metrics, update)
        return self._assess(update, episodes, metrics)

    def _assess(self, update: int, episodes: Episodes, metrics: dict[str, float]) -> Experience:
        """Steps 2 to 4: KL control, rewards of tokens, advantages."""
        args = self.args
        kl_per_token, error = episodes.kl_per_token()
        if args.top_p == 1:  # a nucleus is no sample of the policy, and its mean log-ratio no KL
            check_kl_sign(kl_per_token, error, where=f"the rollout of update {update}")
        beta = self.kl.beta
        self.kl.update(kl_per_token, len(episodes.completions))
        scores = torch.as_tensor(episodes.scored.total, dtype=torch.float32)
        shaped = shape_rewards(
            scores,
            episodes.logps,
            episodes.reference_logps,
            episodes.mask,
            episodes.finished,
            beta=beta,
            params=args.shaping,
        )
        advantages, returns = gae(shaped.rewards, episodes.values, episodes.mask, gamma=args.gamma, lam=args.lam)
        rollout = metrics | {
            "score": float(shaped.scores.mean()),
            "missing_eos": float(shaped.missing_eos),
            "kl_per_token": kl_per_token,
            "beta": beta,
            "beta_ramp": self.kl.log()["beta_ramp"],
            "explained_variance": _number(explained_variance(episodes.values, returns, episodes.mask)),
            "advantage_std": float(advantages[episodes.mask].std(unbiased=False)),
            "repetition": repeated_share([each.token_ids for each in episodes.completions]),
            "episodes": float(self.counters["episodes"]),
        }
        self.figures.open(rollout)
        if args.whiten_advantages:
            advantages = whiten(advantages, episodes.mask)
        ids, heads, lengths, mask = joined(episodes.prompts, [each.token_ids for each in episodes.completions])
        return Experience(
            ids,
            heads,
            lengths,
            mask,
            episodes.logps,
            episodes.values,
            advantages,
            returns,
            episodes.temperature,
            episodes.critic_pass,
        )

    def _minibatches(self, update: int, experience: Experience) -> Iterator[tuple[list[dict[str, Any]], int]]:
        """The optimiser steps of an update, in order: micro-batches of this process, and tokens of all of them."""
        args = self.args
        order = generator_of(args.seed, update, MINIBATCHES)
        trains_policy = update >= args.critic_warmup_updates
        for epoch in range(args.num_ppo_epochs):
            steps = minibatch_rows(
                experience.lengths,
                args.num_mini_batches,
                order,
                process=self.accelerator.process_index,
                processes=self.accelerator.num_processes,
                parts=args.gradient_accumulation_steps,
            )
            for everyone, mine in steps:
                batches = [
                    experience.micro_batch(rows, first=epoch == 0)
                    | {
                        "temperature": experience.temperature,
                        "policy": trains_policy,
                        # without a bonus the entropy is only watched: once a rollout is enough
                        "entropies": args.entropy_coef > 0 or epoch == 0,
                    }
                    for rows in mine
                ]
                yield batches, experience.tokens(everyone)

    # ---- step 5: losses and optimiser ----

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: int | torch.Tensor | None = None,
    ) -> Any:
        """Policy loss + vf_coef · value loss - entropy_coef · entropy, over the minibatch's global tokens."""
        args = self.args
        old = {name: inputs.pop(name) for name in ("logps", "values", "advantages", "returns")}
        critic_pass = inputs.pop("critic_pass", None)
        outputs = model(**inputs, critic=critic_pass is None)
        values = outputs.values if critic_pass is None else critic_pass
        value = value_loss(values, old["values"], old["returns"], clip_range=args.cliprange_value)
        total = args.vf_coef * value.sum
        policy = entropy = None
        if outputs.logps is not None:
            policy = policy_loss(outputs.logps, old["logps"], old["advantages"], clip_range=args.cliprange)
            total = total + policy.sum
        if outputs.entropies is not None:
            entropy = outputs.entropies.sum()
            if args.entropy_coef > 0:  # else no gradient of 0 runs back through all logits
                total = total - args.entropy_coef * entropy
        self.figures.add(policy, value, entropy)
        # DDP averages gradients over processes; the division is by the tokens of all of them
        loss = total * (self.accelerator.num_processes / num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW (or `args.optim`) with groups for policy and critic, with and without decay, the policy's first."""
        if self.optimizer is None:
            kind, arguments = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            rates = (self.args.learning_rate, self.args.critic_learning_rate or self.args.learning_rate)
            groups = []
            for network, rate in zip((self.model.policy, self.model.critic), rates, strict=True):
                decayed = set(self.get_decay_parameter_names(network))
                named = [(name, each) for name, each in network.named_parameters() if each.requires_grad]
                for decay in (True, False):
                    weights = [each for name, each in named if (name in decayed) is decay]
                    share = self.args.weight_decay if decay else 0.0
                    groups += [{"params": weights, "weight_decay": share, "lr": rate}] if weights else []
            self.optimizer = kind(groups, **arguments)
        return self.optimizer

    def _clip_grad_norm(self, model: torch.nn.Module) -> torch.Tensor:
        """Clip policy and critic apart, so that a lost critic does not slow the policy; returns the policy's norm."""
        return self._clip_apart(self.args.max_grad_norm)

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: torch.Tensor | None = None) -> torch.Tensor:
        """The policy's norm; if nothing was clipped, it is measured here, beside the critic's."""
        return self._clip_apart(math.inf) if grad_norm is None else grad_norm

    def _clip_apart(self, limit: float) -> torch.Tensor:
        norms = [
            torch.nn.utils.clip_grad_norm_(network.parameters(), limit)
            for network in (self.model.policy, self.model.critic)
        ]
        self.figures.add_norms(norms)
        return norms[0]

    # ---- checkpoints ----

    def ppo_state(self) -> dict[str, Any]:
        """KL controller, reward normalisation, monitors and counters."""
        return {
            "kl": self.kl.state(),
            "reward": self.reward.state(),
            "monitor": self.monitor.state(),
            "counters": dict(self.counters),
            "calibrated": self.calibrated,
            "stopped": self.stopped,
        }

    def restore_ppo_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `ppo_state()`."""
        self.kl.restore(state["kl"])
        self.reward.restore(state["reward"])
        self.monitor.restore(state["monitor"])
        self.counters = dict(state["counters"])
        self.calibrated = state["calibrated"]
        self.stopped = state["stopped"]


def _refuse_silence(metrics: Mapping[str, float], update: int) -> None:
    """Raise `StageError` when every response of a rollout is empty; warn when none ends."""
    if metrics["empty_rate"] == 1:
        raise StageError(
            f"Expected responses with text, found every one of update {update} empty: the policy ends at once, so no "
            "reward can tell answers apart. Raise beta or lower learning_rate; at update 0, check π_ref and the chat "
            "template."
        )
    if metrics["eos_rate"] == 0:
        logger.warning(
            "update %d: none of the responses ended within max_completion_length; shaping.missing_eos decides what "
            "they score. Raise max_completion_length if answers are meant to be longer.",
            update,
        )


def _number(value: float) -> float:
    """0 for what no number describes (the explained variance of returns that do not vary)."""
    return value if math.isfinite(value) else 0.0
