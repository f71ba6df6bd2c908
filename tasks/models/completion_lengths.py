"""The longest completion that is sampled, from the lengths of π_ref's own completions.

π_ref answers 64 prompts of the train split at temperature 1, each up to the cap. The length is the 0.95 quantile of
what it needed, times 1.5, rounded up to a multiple of 16, and at most the cap. A completion that did not end needs more
than any that did, so that the length is the cap where more than one in twenty does not end.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plumbline.data_contracts.artifact import read_artifact
from plumbline.data_contracts.errors import ModelError
from plumbline.data_contracts.progress import Progress, silent
from plumbline.data_contracts.records import Message
from plumbline.tasks.params.lengths import Filled, lacks_length, with_length
from plumbline.tasks.params.section import value_at

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CAP = 512
"""Most tokens of a completion while nothing sets more: the usual length of TRL's examples and of PPO's papers."""

MEASURED = 64
"""Prompts that π_ref answers. The 0.95 quantile of 64 is the 61st: three that never end do not move it."""

QUANTILE = 0.95
"""Share of π_ref's completions that must end. An evaluation refuses policies of which half end (gate)."""

HEADROOM = 1.5
"""Training makes completions longer. The monitors of reward hacking report a mean of twice the first one."""

MULTIPLE = 16
"""Lengths are multiples of this, so that another seed mostly gives the same one; GPU kernels like it, too."""

_SHOWN = (0.5, 0.9, QUANTILE)
_BATCH = 16
_JUDGED = 1  # the judge reads an end token behind a completion that did not reach its own
_CHUNK = 256  # prompts tokenised at once, until enough of them fit


@dataclass(frozen=True, slots=True)
class MeasuredLengths:
    """Tokens of π_ref's completions, end token included, None for one that did not end within `cap`."""

    lengths: Sequence[int | None]
    cap: int

    def facts(self) -> dict[str, Any]:
        """The counts, quantiles in tokens (None: beyond the cap) and the length that follows, for an artifact."""
        return {
            "completions": len(self.lengths),
            "ended": sum(length is not None for length in self.lengths) / len(self.lengths),
            "quantiles": {f"{share:g}": self.quantile(share) for share in _SHOWN},
            "cap": self.cap,
            "max_new_tokens": self.longest(),
        }

    def quantile(self, share: float) -> int | None:
        """The shortest length that at least this share of completions ended within; None if there is none."""
        place = math.ceil(share * len(self.lengths)) - 1
        return sorted(self.lengths, key=lambda length: math.inf if length is None else length)[place]

    def longest(self) -> int:
        """The length by the rule of the module."""
        needed = self.quantile(QUANTILE)
        if needed is None:
            return self.cap
        return min(self.cap, math.ceil(needed * HEADROOM / MULTIPLE) * MULTIPLE)


def cap_of(longest: int) -> int:
    """Most tokens of a completion: `CAP`, and at most half of the longest sequence, which leaves as much to prompts."""
    return min(CAP, max(longest // 2, 1))


def measure_lengths(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[Message]],
    seed: int,
    longest: int,
    progress: Progress = silent,
) -> MeasuredLengths:
    """Let π_ref complete at most `MEASURED` of the prompts that fit beside the cap, drawn by the seed.

    `longest`: most tokens of a prompt with its completion, which the context caps. Raises `ModelError` if none fits.
    """
    from plumbline.tasks.models.loading import context_length
    from plumbline.tasks.models.sampling import sample

    longest = min(longest, context_length(model.config, tokenizer))
    cap = cap_of(longest)
    order = list(prompts)
    random.Random(seed).shuffle(order)
    found = sample(
        model,
        tokenizer,
        _first_fitting(tokenizer, order, longest - cap - _JUDGED),
        max_new_tokens=cap,
        temperature=1.0,
        top_p=1.0,
        seed=seed,
        batch_size=_BATCH,
        progress=progress,
    )
    return MeasuredLengths([len(each.token_ids) if each.finished else None for each in found], cap)


def _first_fitting(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[Message]], room: int
) -> list[Sequence[Message]]:
    """The first `MEASURED` prompts that the chat template renders in at most `room` tokens."""
    fitting: list[Sequence[Message]] = []
    for start in range(0, len(prompts), _CHUNK):
        fitting += _fitting(tokenizer, prompts[start : start + _CHUNK], room)
        if len(fitting) >= MEASURED:
            break
    if not fitting:
        raise ModelError(
            f"Expected training prompts of at most {room} tokens, to measure how long π_ref's completions are, found "
            f"none among {len(prompts)}. Set training.max_completion_length, which leaves the rest of the context to "
            f"prompts, or use a model with a longer context."
        )
    return fitting[:MEASURED]


def _fitting(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[Message]], room: int
) -> list[Sequence[Message]]:
    from plumbline.tasks.models.chat import encode_prompts, refused_by_template

    refused = refused_by_template(tokenizer, prompts, prompt=True)
    rendered = [prompt for row, prompt in enumerate(prompts) if row not in refused]
    heads = encode_prompts(tokenizer, rendered)
    return [prompt for prompt, head in zip(rendered, heads, strict=True) if len(head) <= room]


def settle_lengths(section: Filled, measured: Path | None, model: Path, *, trust_remote_code: bool = False) -> Filled:
    """The section with a number for every length: its own, else that of the measurement in the folder `measured`.

    Without one, as in a workspace from before stage `lengths`, it is the cap in the context of `model`, a folder.
    """
    if not lacks_length(section):
        return section
    facts = read_artifact(measured).facts if measured is not None else {}
    longest = facts.get("max_new_tokens")
    if longest is None:
        longest = cap_of(_context_of(model, trust_remote_code))
    return with_length(section, longest)


def _context_of(folder: Path, trust_remote_code: bool) -> int:
    from transformers import AutoConfig

    from plumbline.tasks.models.loading import context_length, load_tokenizer

    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    return context_length(config, load_tokenizer(folder, trust_remote_code=trust_remote_code))


def evaluated_length(manifest: Mapping[str, Any]) -> int:
    """The longest completion of the evaluation behind a registered version's manifest.

    Of a version from before stage `lengths` it is the param that it ran under.
    """
    measured = value_at(manifest, "as_run.evaluate.max_new_tokens")
    set_before = value_at(manifest, "settings.evaluation.max_new_tokens")
    context = value_at(manifest, "as_run.base.context_length") or 2 * CAP
    return int(measured or set_before or cap_of(context))
