"""TRL's GRPOTrainer with rollouts that are judged, a β under control, and evaluations in the arena.

The loss, its metrics and the loop are TRL's own, through its public arguments: `rollout_func` samples and judges,
one reward function hands the advantages on, `scale_rewards="none"` leaves them as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import torch
from transformers import TrainerCallback
from trl import GRPOTrainer
from trl.trainer.utils import add_fused_lm_head

from plumbline.data_contracts.artifact import write_json
from plumbline.data_contracts.private_names import require_names
from plumbline.tasks.models.completions import unadapted
from plumbline.tasks.models.judging import Floats
from plumbline.tasks.models.packed_head import read_packed
from plumbline.tasks.models.sampling import Completion, stop_token_ids
from plumbline.tasks.training.finetuning.arena import Arena, is_beyond
from plumbline.tasks.training.finetuning.grpo.padding import WithoutPadding
from plumbline.tasks.training.finetuning.grpo.rollouts import ADVANTAGE, REWARD, JudgedRollouts
from plumbline.tasks.training.finetuning.on_policy.kl_control import KlController, check_kl_sign
from plumbline.tasks.training.finetuning.on_policy.monitors import repeated_share

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainerControl, TrainerState, TrainingArguments

require_names("trl", GRPOTrainer, "_generate_and_score_completions", "_get_per_token_logps_and_entropies")

STATE = "grpo.json"
"""In each checkpoint: β and its control, counts, what the reward's normalisation has learned."""

ROLLOUT = "rollout/"
"""Stands before the names of a rollout's figures in the log, apart from TRL's own."""

SELECTION = "selection"
"""The metric that the best checkpoint is chosen by: its win rate, less 1 where its KL is above best_within_kl."""

_WATCHED = 128
"""Most questions to the judge at an evaluation; a win rate of 0.7 then has a standard error of 0.04."""


def judged_advantage(
    prompts: Sequence[Any], completions: Sequence[Any], *, log_metric: Any, trainer_state: Any, **columns: Any
) -> list[float]:
    """TRL's reward function: what the rollout found already."""
    found: list[float] = columns[ADVANTAGE]
    return found


class JudgedTrainer(WithoutPadding, GRPOTrainer):  # type: ignore[misc]
    """GRPOTrainer of TRL 1.16 (pinned). Relied on beyond its documentation:

    - `_generate_and_score_completions` returns `sampling_per_token_logps`, `old_per_token_logps` (absent where the
      rollout is on-policy), `ref_per_token_logps` (absent at β = 0) and `completion_mask`, each (N, T) with the rows of
      `rollout_func`, and reads `beta` and `temperature` at each call;
    - `_get_per_token_logps_and_entropies` is what all of these come from (`padding`);
    - `_metrics["train"]` averages what is appended to it until the next log;
    - a fused head (`trl.trainer.utils.add_fused_lm_head`) keeps the temperature it was made with.
    """

    control: TrainerControl

    def __init__(
        self,
        *,
        rollouts: JudgedRollouts,
        controller: KlController,
        arena: Arena,
        steps_a_rollout: int,
        best_within_kl: float | None,
        **kwargs: Any,
    ) -> None:
        self.rollouts = rollouts
        self.controller = controller
        self.arena = arena
        self.steps_a_rollout = steps_a_rollout
        self.best_within_kl = best_within_kl
        super().__init__(reward_funcs=[judged_advantage], rollout_func=rollouts, **kwargs)
        for model, outputs in self._heads():
            read_packed(model, outputs, self.temperature)
        # TRL knows the tokenizer's and the config's; a chat template may end a turn with another
        self.eos_token_ids = stop_token_ids(self.model, rollouts.tokenizer)
        self._forwards = self._forwards_by_temperature(rollouts.temperatures)

    # what a rollout asks for

    @property
    def rollout_number(self) -> int:
        """The number of rollouts before, those before a resume included."""
        return int(self.state.global_step // self.steps_a_rollout)

    @property
    def process_index(self) -> int:
        """Number of this process."""
        return int(self.accelerator.process_index)

    def autocast(self) -> Any:
        """The precision that the policy is trained in."""
        return self.accelerator.autocast()

    def sum_over_processes(self, sums: Floats) -> Floats:
        """Sum an array over the processes."""
        return np.asarray(self.accelerator.reduce(torch.as_tensor(sums).to(self.accelerator.device)).cpu())

    def set_temperature(self, temperature: float) -> None:
        """Divide logits by another temperature from now on, in policy and reference alike."""
        self.temperature = temperature
        for model, forward in self._forwards.get(temperature, []):
            model.forward = forward

    def _heads(self) -> Iterator[tuple[PreTrainedModel, tuple[str, ...]]]:
        """The models that TRL gave a fused head, and what it was asked for."""
        yield unadapted(self.model), ("log_probs", "entropy")
        if self.ref_model is not None:
            yield self.ref_model, ("log_probs",)

    def _forwards_by_temperature(self, temperatures: Sequence[float]) -> dict[float, list[tuple[PreTrainedModel, Any]]]:
        """The forward of policy and reference with a head of each temperature; empty if there is but one."""
        if set(temperatures) == {self.temperature}:
            return {}
        forwards: dict[float, list[tuple[PreTrainedModel, Any]]] = {}
        for temperature in temperatures:
            for model, outputs in self._heads():
                del model.forward  # the one that TRL set on the instance: back to that of the class
                add_fused_lm_head(model, temperature=temperature, outputs=outputs)
                read_packed(model, outputs, temperature)
                forwards.setdefault(temperature, []).append((model, model.forward))
        return forwards

    # what TRL calls

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Measure the KL of each rollout on its own tokens, and set the β that its steps are taken with."""
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        figures = dict(self.rollouts.figures)
        if "ref_per_token_logps" in output:
            kl, error = self._kl_per_token(output)
            if self.rollouts.params.top_p == 1:  # a nucleus is no sample of the policy, and its mean log-ratio no KL
                check_kl_sign(kl, error)
            figures |= {"kl_per_token": kl, **self.controller.log()}
            self.beta = self.controller.update(kl, len(output["completion_mask"]) * self.accelerator.num_processes)
        for name, value in figures.items():
            self._metrics["train"][f"{ROLLOUT}{name}"].append(value)
        return output

    def _kl_per_token(self, output: Mapping[str, torch.Tensor]) -> tuple[float, float]:
        """KL(π ‖ π_ref) in nats per token at the sampling temperature, and its standard error.

        The mean of log π - log π_ref over all sampled tokens, a ratio of sums over completions; its error by the
        delta method, completions taken as independent (Cochran 1977, Sampling techniques, section 2.11).
        """
        mask = output["completion_mask"].double()  # (N, T); 1 = a sampled token
        # where TRL scored the policy itself (with vLLM always), that; else the sampler's, equal within 1e-4
        policy = output.get("old_per_token_logps", output["sampling_per_token_logps"])
        sums = ((policy - output["ref_per_token_logps"]).double() * mask).sum(dim=1)  # (N,)
        parts = torch.stack([sums, mask.sum(dim=1)], dim=1)
        sums, lengths = self.accelerator.gather(parts).unbind(dim=1)
        kl = sums.sum() / lengths.sum()
        residuals = sums - kl * lengths
        error = math.sqrt(float((residuals**2).sum())) / float(lengths.sum())
        return float(kl), error

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Meet π_ref on the validation prompts; names start with `eval_`, as transformers expects."""
        self.model.eval()
        meeting = self.arena.meet(self.model)
        found = meeting.metrics()
        found["repetition"] = repeated_share([each.token_ids for each in meeting.completions])
        found["training_reward"] = self._training_reward(meeting.completions)
        found[SELECTION] = found["win_rate"] - is_beyond(found["kl_per_token"], self.best_within_kl)
        metrics = {f"eval_{name}": value for name, value in found.items()}
        self.log(metrics)
        seen = {"eval_entropy": self.rollouts.figures["sampled_entropy"]}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics | seen)
        return metrics

    def _training_reward(self, completions: Sequence[Completion]) -> float:
        """The objective of training, as a number that can rise: win rate over π_ref by the judge that trains.

        Gains cannot, being ranks within a group. It is measured on the first `_WATCHED` prompts of the arena, where
        the held-out judge counts too; the mixture's mean over the latest rollout is added with its weight.
        """
        own, others = (
            [each.text for each in side[:_WATCHED]] for side in (completions, self.arena.reference_completions)
        )
        won = self.rollouts.win_rate(self.arena.prompts[:_WATCHED], own, others)
        return won + self.rollouts.params.reward_weight * self.rollouts.figures.get(REWARD, 0.0)

    # what a checkpoint keeps

    def restore(self, checkpoint: Path) -> None:
        """Go on from what `KeepState` wrote into a checkpoint."""
        state = orjson.loads((checkpoint / STATE).read_bytes())
        self.controller.restore(state["controller"])
        self.beta = self.controller.beta
        self.rollouts.restore(state["rollouts"])


class KeepState(TrainerCallback):  # type: ignore[misc]
    """Write the state that TRL does not know into each checkpoint, before it is sealed."""

    def __init__(self, controller: KlController, rollouts: JudgedRollouts) -> None:
        self.controller = controller
        self.rollouts = rollouts

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the state of the checkpoint that was just made."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        write_json(folder / STATE, {"controller": self.controller.state(), "rollouts": self.rollouts.state()})
