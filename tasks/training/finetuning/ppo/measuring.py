"""Reports of an update that has ended: its figures, the evaluation, the monitors and the best checkpoint.

An update ends with its last optimiser step. Its figures are read then, once. The monitors see them beside the
evaluation that falls on the same step, and alone if there is none.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from transformers import Trainer

from plumbline.data_contracts.errors import ParamsError
from plumbline.data_contracts.private_names import require_names
from plumbline.tasks.training.finetuning.arena import near_first
from plumbline.tasks.training.finetuning.on_policy.monitors import HackingMonitor
from plumbline.tasks.training.finetuning.ppo.checkpointing import SavesActorCritic
from plumbline.tasks.training.finetuning.ppo.config import PPOConfig
from plumbline.tasks.training.finetuning.ppo.figures import Figures
from plumbline.tasks.training.finetuning.ppo.model import ActorCritic
from plumbline.tasks.training.finetuning.ppo.rollouts import on_main

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainerControl

require_names("transformers", Trainer, "_determine_best_metric", "_maybe_log_save_evaluate")

logger = logging.getLogger(__name__)

Evaluate = Callable[["PreTrainedModel"], Mapping[str, float]]
"""Measures a policy on held-out prompts; called on the main process alone."""


class MeasuresUpdates(SavesActorCritic):
    """Logs, evaluates and watches at the ends of updates, and may stop training there."""

    args: PPOConfig
    model: ActorCritic
    control: TrainerControl
    figures: Figures
    monitor: HackingMonitor
    evaluate_with: Evaluate | None
    stopped: str | None = None
    """Why training ends before its last update."""
    _unwatched: dict[str, float] | None = None  # figures of the update that has ended, not yet seen by the monitors

    def _close_update(self) -> None:
        """Read the sums of the update that has ended, once."""
        one = self.accelerator.num_processes == 1
        figures = self.figures.close(
            lambda sums: sums if one else self.accelerator.reduce(sums, reduction="sum"),
            f"step {self.state.global_step} of {self.state.max_steps}",
        )
        if figures is not None:
            self._unwatched = figures

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log; a row of the training also shows the updates since the row before."""
        if "loss" in logs:
            rate = self.args.critic_learning_rate or self.args.learning_rate
            logs |= self.figures.take()
            logs["critic_learning_rate"] = logs["learning_rate"] * rate / self.args.learning_rate
        super().log(logs, start_time)

    def _watch(self, held_out: float | None) -> None:
        """Let the monitors see the update that has ended; end training on what they find, if params say so."""
        if self._unwatched is None:
            return
        metrics, self._unwatched = self._unwatched, None
        update = self.state.global_step // self.args.steps_per_update
        findings = self.monitor.observe(
            update,
            training_reward=metrics["reward"],
            held_out=held_out,
            response_length=metrics["response_tokens"],
            repetition=metrics["repetition"],
            entropy=metrics.get("entropy"),
        )
        for finding in findings:
            logger.warning("update %d: %s", update, finding.message)
        if findings and self.args.monitors.on_finding == "stop":
            self.stopped = f"{findings[0].kind} at update {update}: {findings[0].message}"
            self.control.should_log = self.control.should_save = self.control.should_training_stop = True
            self.control.should_evaluate = held_out is None and self.evaluate_with is not None

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step % self.args.steps_per_update == 0:
            self._close_update()
            if not self.control.should_evaluate:
                self._watch(None)
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Measure the policy on held-out prompts; names start with `eval_`, as transformers expects."""
        if self.evaluate_with is None:
            raise ParamsError("There is nothing to evaluate with. Pass evaluate_with to PPOTrainer.")
        measure = self.evaluate_with
        self.model.eval()
        with self.accelerator.autocast():
            found = on_main(self.accelerator, lambda: dict(measure(self.model.policy)))
        metrics = {f"eval_{name}": value for name, value in found.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        best_by = self.args.metric_for_best_model
        self._watch(None if best_by is None else found.get(best_by.removeprefix("eval_")))
        return metrics

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """As transformers, with policies near π_ref before all others (`arena.near_first`)."""
        key = self.args.metric_for_best_model
        if key is not None:
            metrics = near_first(metrics, key, self.args.best_within_kl)
        found: bool = super()._determine_best_metric(metrics, trial)
        return found
