"""Reward-hacking monitors: the signs that a policy games its reward, found while it trains.

1. divergence: the training reward rises while the held-out measure (win rate or score of a judge that is not the
   reward) falls, both as rank trends over a window of evaluations; or the reward is above, and the measure far below,
   where they were when the measure was best;
2. length: responses grow or shrink by a factor;
3. repetition: the share of repeated n-grams rises;
4. entropy: the policy's entropy collapses.

A sign is reported once, when it appears, and again only after it was gone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import Any, Literal

from plumbline.data_contracts.errors import StageError
from plumbline.tasks.params.on_policy import HackingMonitorParams

BASELINE = 3
"""Observations whose median is the baseline of a drift, and as many latest ones whose median is held against it."""

REWARD_SIGNIFICANCE = 0.05
"""One-sided level at which the training reward counts as rising; this is a precondition, not the alarm."""

MOST_FINDINGS = 32
"""Findings that are kept; of more, only their number is."""

Kind = Literal["divergence", "length", "repetition", "entropy"]


@dataclass(frozen=True, slots=True)
class HackingFinding:
    """A sign of reward hacking: `values` are the numbers behind the message."""

    kind: Kind
    update: int
    message: str
    values: Mapping[str, float]


class HackingMonitor:
    """Watches a run. Deterministic, and small enough to go into a checkpoint whole (`state`)."""

    def __init__(self, params: HackingMonitorParams) -> None:
        self.params = params
        self.findings: list[HackingFinding] = []  # the first MOST_FINDINGS
        self.found = 0  # all of them
        self._active: set[str] = set()  # kinds that were there at the last look
        self._pending: list[float] = []  # training rewards since the last held-out measure
        self._rewards: list[float] = []  # (window,) mean training reward up to each held-out measure
        self._held_out: list[float] = []  # (window,)
        self._best: list[float] | None = None  # best held-out measure so far, training reward up to it
        self._drifts: dict[str, dict[str, list[float]]] = {}

    def observe(
        self,
        update: int,
        *,
        training_reward: float,
        held_out: float | None = None,
        response_length: float | None = None,
        repetition: float | None = None,
        entropy: float | None = None,
    ) -> list[HackingFinding]:
        """Take what update `update` measured and return the signs that are new.

        training_reward: mean score of the rollout; held_out: win rate or score by the held-out judge (higher is
        better), where it was measured; response_length in tokens; repetition: `repeated_share` of the responses;
        entropy in nats per token. Raises `StageError` for a number that is not finite.
        """
        given = {
            "training_reward": training_reward,
            "held_out": held_out,
            "response_length": response_length,
            "repetition": repetition,
            "entropy": entropy,
        }
        bad = {name: value for name, value in given.items() if value is not None and not math.isfinite(value)}
        if bad:
            raise StageError(f"Expected finite measures at update {update}, found {bad}. The training has diverged.")
        seen = [
            *self._divergence(update, training_reward, held_out),
            *self._length(update, response_length),
            *self._repetition(update, repetition),
            *self._entropy(update, entropy),
        ]
        judged = {kind for kind, value in _MEASURES.items() if given[value] is not None}
        new = [finding for finding in seen if finding.kind not in self._active]
        self._active = (self._active - judged) | {finding.kind for finding in seen}
        self.found += len(new)
        self.findings = [*self.findings, *new][:MOST_FINDINGS]
        return new

    def state(self) -> dict[str, Any]:
        """The state for a checkpoint, JSON-able."""
        return {
            "findings": [asdict(finding) for finding in self.findings],
            "found": self.found,
            "active": sorted(self._active),
            "pending": list(self._pending),
            "rewards": list(self._rewards),
            "held_out": list(self._held_out),
            "best": self._best,
            "drifts": {name: {part: list(kept) for part, kept in each.items()} for name, each in self._drifts.items()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state()`."""
        self.findings = [HackingFinding(**finding) for finding in state["findings"]]
        self.found = int(state["found"])
        self._active = set(state["active"])
        self._pending = list(state["pending"])
        self._rewards = list(state["rewards"])
        self._held_out = list(state["held_out"])
        self._best = state["best"]
        self._drifts = {
            name: {part: list(kept) for part, kept in each.items()} for name, each in state["drifts"].items()
        }

    def _divergence(self, update: int, reward: float, held_out: float | None) -> Iterator[HackingFinding]:
        self._pending.append(reward)
        if held_out is None:
            return
        window = self.params.window
        mean_reward, self._pending = fmean(self._pending), []
        self._rewards = [*self._rewards, mean_reward][-window:]
        self._held_out = [*self._held_out, held_out][-window:]
        if self._best is None or held_out > self._best[0]:
            self._best = [held_out, mean_reward]
        evidence = self._falling_trend() or self._fall_below_best()
        if evidence:
            yield HackingFinding(
                "divergence",
                update,
                f"The training reward rises while the held-out measure falls: {evidence.pop('text')}. The policy "
                "seems to hack its reward. Take an earlier checkpoint, raise the KL penalty, or mend the reward.",
                {"held_out": held_out, "training_reward": mean_reward, **evidence},
            )

    def _falling_trend(self) -> dict[str, Any]:
        if len(self._held_out) < BASELINE:
            return {}
        falls = trend_p_value(self._held_out, "falling")
        if falls > self.params.significance:
            return {}
        rises = trend_p_value(self._rewards, "rising")
        if rises > REWARD_SIGNIFICANCE:
            return {}
        up, down = trend_change(self._rewards), trend_change(self._held_out)
        return {
            "text": f"over the last {len(self._held_out)} evaluations by {up:+.3g} (p {rises:.2g}) and {down:+.3g} "
            f"(p {falls:.2g})",
            "reward_change": up,
            "reward_p": rises,
            "held_out_change": down,
            "held_out_p": falls,
        }

    def _fall_below_best(self) -> dict[str, Any]:
        assert self._best is not None
        best, reward_then = self._best
        held_out, reward = self._held_out[-1], self._rewards[-1]
        if self.params.fall is None or best - held_out <= self.params.fall or reward <= reward_then:
            return {}
        return {
            "text": f"since the measure was best from {reward_then:.3g} to {reward:.3g} and from {best:.3g} to "
            f"{held_out:.3g}",
            "reward_change": reward - reward_then,
            "held_out_change": held_out - best,
        }

    def _length(self, update: int, value: float | None) -> Iterator[HackingFinding]:
        factor = self.params.length_factor
        for first, now in self._drift("length", value):
            if factor is not None and not first / factor <= now <= first * factor:
                yield HackingFinding(
                    "length",
                    update,
                    f"Responses went from {first:.1f} to {now:.1f} tokens, beyond a factor of {factor:g}: check "
                    "whether the reward pays for length. Add a length penalty, or raise the KL penalty.",
                    {"first": first, "now": now},
                )

    def _repetition(self, update: int, value: float | None) -> Iterator[HackingFinding]:
        rise = self.params.repetition_rise
        for first, now in self._drift("repetition", value):
            if rise is not None and now - first > rise:
                yield HackingFinding(
                    "repetition",
                    update,
                    f"The share of repeated n-grams went from {first:.2f} to {now:.2f}, by more than {rise:g}: read "
                    "some completions. Add a repetition penalty, or raise the KL penalty.",
                    {"first": first, "now": now},
                )

    def _entropy(self, update: int, value: float | None) -> Iterator[HackingFinding]:
        share = self.params.entropy_share
        for first, now in self._drift("entropy", value):
            if share is not None and now < share * first:
                yield HackingFinding(
                    "entropy",
                    update,
                    f"Entropy fell from {first:.3g} to {now:.3g} nats per token, below {share:g} of where it began: "
                    "the policy has stopped exploring. Lower the learning rate, or raise the entropy bonus or the KL "
                    "penalty.",
                    {"first": first, "now": now},
                )

    def _drift(self, name: str, value: float | None) -> Iterator[tuple[float, float]]:
        """Median of the first and of the latest `BASELINE` values, once there are more than the first."""
        if value is None:
            return
        kept = self._drifts.setdefault(name, {"first": [], "latest": []})
        kept["latest"] = [*kept["latest"], value][-BASELINE:]
        if len(kept["first"]) < BASELINE:
            kept["first"].append(value)
        else:
            yield median(kept["first"]), median(kept["latest"])


_MEASURES: Mapping[str, str] = {
    "divergence": "held_out",
    "length": "response_length",
    "repetition": "repetition",
    "entropy": "entropy",
}
"""The measure that each kind of finding is judged by."""


def trend_p_value(values: Sequence[float], direction: Literal["rising", "falling"]) -> float:
    """One-sided p-value of a monotone trend in values over time (Mann 1945): Kendall's τ against their order.

    Exact without ties, normal with them. Values all alike have no trend (1).
    """
    if max(values) == min(values):
        return 1.0
    # scipy.stats takes a second to import: not paid by those who only read the params
    from scipy.stats import kendalltau

    alternative = "greater" if direction == "rising" else "less"
    return float(kendalltau(range(len(values)), values, alternative=alternative).pvalue)


def trend_change(values: Sequence[float]) -> float:
    """Change over all of the values by the median slope of their pairs (Theil 1950; Sen 1968)."""
    from scipy.stats import theilslopes

    return float(theilslopes(values, range(len(values))).slope) * (len(values) - 1)


def repeated_share(responses: Sequence[Sequence[int]], n: int = 3) -> float:
    """Mean share, over responses, of n-grams of tokens that stood earlier in the same response.

    1 - distinct / all n-grams; a response with fewer than n tokens repeats nothing (0). No responses: 0.
    """
    shares = []
    for tokens in responses:
        grams = [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]
        shares.append(1 - len(set(grams)) / len(grams) if grams else 0.0)
    return fmean(shares) if shares else 0.0
