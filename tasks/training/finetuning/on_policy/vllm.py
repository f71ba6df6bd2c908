"""Rollouts by vLLM, through TRL's `VLLMGeneration`: the same records as `tasks.models.sampling.sample` gives.

vLLM draws the tokens; the log-probabilities are those of the policy in training, from one forward pass over the drawn
tokens. vLLM's own are of another implementation (kernels, dtype) and behind top-p, and as old log-probabilities they
would make the first ratio of an update differ from 1. How far both lie apart is measured on every call, and a distance
that no rounding explains (weights not synchronised, another temperature or tokenizer) is an error.

Torch and TRL are imported when a sampler is made: the check whether vLLM is there must not wait for them.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from plumbline.data_contracts.errors import ParamsError, StageError
from plumbline.data_contracts.progress import Progress, silent
from plumbline.data_contracts.records import Message
from plumbline.tasks.params.on_policy import VllmParams

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from plumbline.tasks.models.sampling import Completion


def check_vllm() -> None:
    """Raise `ParamsError` if vLLM is not installed; costs nothing, so it can be asked before any work."""
    if importlib.util.find_spec("vllm") is None:
        raise ParamsError(
            "The rollouts are to be sampled by vLLM, which is not installed. Install it (`pip install 'trl[vllm]'`, "
            "Linux with a GPU), or choose the sampler of Plumbline's own, which needs nothing."
        )


class VllmSampler:
    """Samples completions of the policy in training. In a run of several processes all of them call it together."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        accelerator: Any,
        params: VllmParams,
        *,
        max_new_tokens: int,
        max_length: int,
        temperature: float,
        top_p: float,
    ) -> None:
        """Start the engine on an `accelerate.Accelerator`.

        `max_length`: tokens of prompt and completion together, at most the model's context.

        Raises `ParamsError` if vLLM is not installed, or for temperature 0: a greedy rollout explores nothing.
        """
        check_vllm()
        if temperature <= 0:
            raise ParamsError(f"Rollouts by vLLM need a temperature above 0, found {temperature}. Set it to 1.")
        from trl.generation.vllm_generation import VLLMGeneration

        from plumbline.tasks.models.sampling import stop_token_ids

        self.model = model
        self.tokenizer = tokenizer
        self.accelerator = accelerator
        self.params = params
        self.max_length = max_length
        self.temperature = temperature
        self.mismatch = 0.0  # of the last call, nats per token
        # log-probabilities behind top-p are renormalised, by -log of the mass that stayed, which is top_p or more
        self._allowed = params.max_mismatch - math.log(top_p)
        self._stops = frozenset(stop_token_ids(model, tokenizer))
        self._engine = VLLMGeneration(
            model=model,
            accelerator=accelerator,
            processing_class=tokenizer,
            mode=params.mode,
            server_base_url=params.server_base_url,
            server_timeout=params.server_timeout,
            tensor_parallel_size=params.tensor_parallel_size,
            gpu_memory_utilization=params.gpu_memory_utilization,
            enable_sleep_mode=params.enable_sleep_mode,
            max_model_length=max_length,
            temperature=temperature,
            top_p=top_p,
            max_completion_length=max_new_tokens,
            logprobs=0,
            generation_kwargs={"stop_token_ids": sorted(self._stops)},
        )

    def sample(
        self, prompts: Sequence[Sequence[Message]], *, seed: int, batch_size: int, progress: Progress = silent
    ) -> list[Completion]:
        """One completion a prompt, in the order given, by the weights that the policy has now.

        vLLM seeds every request alike, so a prompt that occurs twice in a call gets the same answer twice: draw prompts
        without replacement, and another seed for each call. `batch_size` is that of the forward pass that scores.
        Raises `StageError` if vLLM's log-probabilities do not belong to the policy (`max_mismatch`).
        """
        from plumbline.tasks.models.chat import encode_prompts
        from plumbline.tasks.models.logps import token_logps

        heads = encode_prompts(self.tokenizer, prompts)
        self._engine.sync_weights()
        self._engine.generation_kwargs["seed"] = seed
        _, drawn, logps, _ = self._engine.generate(prompts=self._evened(heads), images=None, num_generations=1)
        drawn, logps = drawn[: len(heads)], logps[: len(heads)]
        progress(len(heads), len(heads), "sampling")
        own = token_logps(
            self.model,
            list(zip(heads, drawn, strict=True)),
            max_length=self.max_length,
            batch_size=batch_size,
            temperature=self.temperature,
        )
        scored = [row.tolist() for row in own]
        self._compare(logps, scored)
        return [self._completion(list(ids), row) for ids, row in zip(drawn, scored, strict=True)]

    def _evened(self, heads: list[list[int]]) -> list[list[int]]:
        """As many prompts as any process has: a server's answers are handed back in slices of one size."""
        if self.params.mode == "colocate" or self.accelerator.num_processes == 1:
            return heads
        from accelerate.utils import gather_object

        most: int = max(gather_object([len(heads)]))
        return heads + heads[:1] * (most - len(heads))

    def _compare(self, theirs: Any, own: list[list[float]]) -> None:
        """Compare theirs (N, tokens, 1), nats, None if vLLM had no number, with own (N, tokens)."""
        pairs = [
            (float("nan") if other[0] is None else other[0], value)
            for others, values in zip(theirs, own, strict=True)
            for other, value in zip(others, values, strict=True)
        ]
        self.mismatch = math.fsum(abs(other - value) for other, value in pairs) / max(len(pairs), 1)
        if not self.mismatch <= self._allowed:
            raise StageError(
                f"Expected vLLM's log-probabilities within {self._allowed:.3g} nats per token of the policy's, found "
                f"{self.mismatch:.3g} over {len(pairs)} tokens. vLLM samples from another model: its weights were not "
                "synchronised, its dtype or quantisation differs, or (mode server) it was started without "
                "`--logprobs-mode processed_logprobs`. Raise vllm.max_mismatch only if the distance is understood."
            )

    def _completion(self, ids: list[int], logps: list[float]) -> Completion:
        from plumbline.tasks.models.sampling import Completion

        finished = bool(ids) and ids[-1] in self._stops
        text = self.tokenizer.decode(
            ids[:-1] if finished else ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return Completion(str(text).strip(), tuple(ids), tuple(logps), finished)
