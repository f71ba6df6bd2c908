"""The reward-hacking monitors at the evaluations of a run, as a callback that a checkpoint keeps."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from plumbline.tasks.params.on_policy import HackingMonitorParams
from plumbline.tasks.training.finetuning.on_policy.monitors import HackingMonitor

logger = logging.getLogger(__name__)


class WatchForHacking(TrainerCallback, ExportableState):  # type: ignore[misc]
    """Show each evaluation to a `HackingMonitor`; log what it finds, and end the run if params say so.

    Reads `eval_training_reward`, `eval_win_rate`, `eval_response_tokens`, `eval_repetition` and `eval_entropy`.
    transformers stores `state()` in each checkpoint and makes the callback anew from it.
    """

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.params = HackingMonitorParams(**params)
        self.monitor = HackingMonitor(self.params)
        self.reason: str | None = None

    @property
    def kept(self) -> dict[str, Any]:
        """The monitor's state."""
        return self.monitor.state()

    @kept.setter
    def kept(self, state: Mapping[str, Any]) -> None:
        self.monitor.restore(state)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **kwargs: Any,
    ) -> None:
        """Look at one evaluation."""
        findings = self.monitor.observe(
            state.global_step,
            training_reward=metrics["eval_training_reward"],
            held_out=metrics["eval_win_rate"],
            response_length=metrics["eval_response_tokens"],
            repetition=metrics["eval_repetition"],
            entropy=metrics["eval_entropy"],
        )
        for finding in findings:
            logger.warning("step %d: %s", finding.update, finding.message)
        if findings and self.params.on_finding == "stop":
            self.reason = f"monitor at step {state.global_step}: {findings[0].message}"
            control.should_training_stop = True

    def state(self) -> dict[str, Any]:
        """Arguments and attributes, as transformers stores them in a checkpoint."""
        return {
            "args": {"params": self.params.model_dump(mode="json")},
            "attributes": {"kept": self.kept, "reason": self.reason},
        }
