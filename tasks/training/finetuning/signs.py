"""Signs of a training beside its result, read off its facts and curve, so that a resumed run says the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_FINDINGS_SHOWN = 5  # of a method; its facts hold them all
_ENDED = ("eos_rate", "finished")  # shares of responses of a rollout that ended, as PPO and GRPO log them
_WHOLE = "all steps done"


def signs_of(facts: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Warnings in words, those of each stage of a stack under its name. `rows` are those of `training.jsonl`."""
    if "stages" not in facts:
        return list(_of_method(str(facts["method"]), facts, rows))
    return [
        sign
        for name, stage in facts["stages"].items()
        for sign in _of_method(name, stage, [row for row in rows if row.get("stage") == name])
    ]


def _of_method(name: str, facts: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield from _silent_rollouts(name, rows)
    findings = facts.get("findings") or ()
    for each in findings[:_FINDINGS_SHOWN]:
        yield f"{name}: the monitors found at step {each['update']}: {each['message']}"
    if len(findings) > _FINDINGS_SHOWN:
        yield f"{name}: the monitors found {len(findings) - _FINDINGS_SHOWN} more signs."
    stopped = facts.get("stopped") or _WHOLE
    if stopped != _WHOLE:
        yield f"{name}: training ended before its last step: {stopped}"
    if (facts.get("best") or {}).get("within_kl") is False:
        yield f"{name}: no checkpoint was within best_within_kl nats per token of π_ref; the best of all was kept."


def _silent_rollouts(name: str, rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    shares = [row[key] for row in rows for key in _ENDED if row.get(key) is not None]
    none = sum(share == 0 for share in shares)
    if none:
        yield (
            f"{name}: no response ended within max_completion_length in {none} of {len(shares)} logged steps of "
            f"training; the policy cannot learn there to end its answers. Raise "
            f"finetune.{name.rsplit('-', 1)[-1]}.max_completion_length."
        )
