"""Which variant to take, and why: a pure function of measured facts.

The rules are those of "Choosing the right method" in "what are PPO, GRPO, DPO": start with DPO; go on to GRPO where
lists are judged or DPO's ceiling is too low; to PPO with a solid reward model and a need for exploration.

1. What the data and the reward model allow is stated: size, pairs or lists, quality of the reward model.
2. A variant is admitted when it beats π_ref, passes the gate that a registration would put it to, keeps to the KL
   band and the budget, and, where it learns from the reward model, when that one can be relied on.
3. The ceiling is the best win rate among the admitted. What is not significantly below it is tied with it.
4. A variant that leads a much cheaper one has to show that lead at the cheaper one's budget, by its evaluations during
   training, or is set aside: more training is no merit of a method.
5. Of the tied the cheapest is taken; at equal cost the better win rate, then the lower KL, then the name decides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from plumbline.data_contracts.rounding import rounded
from plumbline.tasks.evaluation.comparison.budget import BudgetReading, win_rate_at
from plumbline.tasks.evaluation.comparison.paired import Floats, Gain, paired_gain
from plumbline.tasks.params.comparison import RecommendParams

_FEWEST_PROMPTS = 2  # a paired test needs a spread
ON_POLICY = ("grpo", "ppo")
"""Methods that sample from the policy and learn from what scores the samples: exploration."""


def explores(methods: Sequence[str]) -> bool:
    """True if any of the methods samples from the policy, and so learns from the reward model."""
    return any(method in ON_POLICY for method in methods)


@dataclass(frozen=True, slots=True)
class FigureInterval:
    """An estimate and the ends of its confidence interval. Null is what was not measured, or has no interval."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class VariantRefusal:
    """A check of the gate that a variant does not pass: its name, the figure, the threshold and the words."""

    name: str
    value: float | None
    threshold: float | None
    text: str


@dataclass(frozen=True, slots=True)
class Contender:
    """One variant as measured. `outcomes` (S, n): per seed and prompt, 1 a win over π_ref, ½ a tie, 0 a loss.

    `kl` in nats per token; `cost` in the currency of the prices; `agreement`: how often the judge takes gold's side
    on this policy's samples, None without gold; `readings` of each seed, its evaluations during training;
    `refused_by`: what the gate would say no to.
    """

    name: str
    methods: tuple[str, ...]
    win: FigureInterval
    kl: FigureInterval
    cpu_seconds: float
    cost: float
    outcomes: Floats
    agreement: float | None = None
    readings: tuple[tuple[BudgetReading, ...], ...] = ()
    refused_by: tuple[VariantRefusal, ...] = ()

    @property
    def explores(self) -> bool:
        """True if any of its methods samples from the policy."""
        return explores(self.methods)


@dataclass(frozen=True, slots=True)
class Facts:
    """All that the recommendation rests on. `metric` names the win rate: gold, or judge if there is no gold.

    `listed_prompts` have three or more different judged responses. `reward_accuracy` is held out.
    """

    metric: str
    pairs: int
    prompts: int
    listed_prompts: int
    reward_passed: bool
    reward_accuracy: FigureInterval
    contenders: Sequence[Contender]
    confidence: float = 0.95
    budget_cpu_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class RecommendationReason:
    """One reason: its rule, whether it speaks for the variant or rule it names, the figure and its threshold."""

    rule: str
    holds: bool
    figure: float | None
    threshold: float | None
    text: str


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The variant to take (None: keep π_ref) with its methods, the reasons in order, and who was tied with it.

    `left_out`: the variants that were not admitted; a reason each says why.
    """

    variant: str | None
    methods: tuple[str, ...]
    reasons: tuple[RecommendationReason, ...]
    tied: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


def recommend(facts: Facts, params: RecommendParams) -> Recommendation:
    """Apply the rules of this module to the facts."""
    reasons = [_pairs(facts, params), _lists(facts, params)]
    trust = _reward_model(facts, params)
    reasons += trust
    trusted = all(reason.holds for reason in trust)
    if any(contender.explores for contender in facts.contenders):
        reasons.append(_prompts(facts, params))
    admitted = []
    for contender in facts.contenders:
        refusals = _refusals(contender, facts, params, trusted)
        reasons += refusals
        if not refusals:
            admitted.append(contender)
    left_out = tuple(each.name for each in facts.contenders if each not in admitted)
    if not admitted:
        return Recommendation(None, (), tuple(reasons), left_out=left_out)
    level = params.alpha / max(len(admitted) - 1, 1)
    even = list(admitted)  # without those whose lead is bought
    while True:
        best = max(even, key=_rank)
        gains = {each.name: _gain(best, each, facts) for each in even if each is not best}
        tied = [each for each in even if each is best or not _clear(gains[each.name], level, params)]
        leads = [_lead(best, each, params) for each in even if each not in tied and _much_dearer(best, each, params)]
        reasons += leads
        if all(lead.holds for lead in leads):
            break
        even.remove(best)
    chosen = _cheapest(tied, params)
    reasons += _ceiling(best, even, facts, params, level)
    reasons += _cost(chosen, best, gains, params, level)
    return Recommendation(chosen.name, chosen.methods, tuple(reasons), tuple(each.name for each in tied), left_out)


def _pairs(facts: Facts, params: RecommendParams) -> RecommendationReason:
    enough = facts.pairs >= params.enough_pairs
    words = (
        "enough for DPO to gain noticeably" if enough else "DPO may gain more from further pairs (plumbline self-play)"
    )
    text = f"{facts.pairs:,} training pairs (from {params.enough_pairs:,} on is enough): {words}"
    return RecommendationReason("data_size", enough, facts.pairs, params.enough_pairs, text)


def _lists(facts: Facts, params: RecommendParams) -> RecommendationReason:
    share = facts.listed_prompts / max(facts.prompts, 1)
    lists = share >= params.min_list_share
    words = "lists of ranked responses: GRPO's own food" if lists else "pairs, which DPO takes as they are"
    text = (
        f"{rounded(share, params.min_list_share, '.1%')} of prompts have three or more judged responses "
        f"(lists from {params.min_list_share:.15g}): {words}"
    )
    return RecommendationReason("pairs_or_lists", lists, share, params.min_list_share, text)


def _reward_model(facts: Facts, params: RecommendParams) -> list[RecommendationReason]:
    accuracy, least = facts.reward_accuracy, params.min_reward_accuracy
    solid = accuracy.low is not None and accuracy.low >= least
    return [
        RecommendationReason(
            "reward_audit",
            facts.reward_passed,
            float(facts.reward_passed),
            1.0,
            f"reward model {'passed' if facts.reward_passed else 'failed'} its audit (1 of 1 needed by PPO and GRPO)",
        ),
        RecommendationReason(
            "reward_accuracy",
            solid,
            accuracy.low,
            least,
            f"reward model is right on {_number(accuracy.value)} of held-out pairs, at least "
            f"{_number(accuracy.low, least)} ({'≥' if solid else '<'} {least:.15g}): "
            f"{'solid' if solid else 'not solid'} enough for PPO and GRPO",
        ),
    ]


def _prompts(facts: Facts, params: RecommendParams) -> RecommendationReason:
    enough = facts.prompts >= params.enough_prompts
    words = "a pool wide enough" if enough else "they may overfit to the reward model: watch gold or a held-out judge"
    text = f"{facts.prompts:,} training prompts for PPO and GRPO (from {params.enough_prompts:,}): {words}"
    return RecommendationReason("prompt_pool", enough, facts.prompts, params.enough_prompts, text)


def _refusals(each: Contender, facts: Facts, params: RecommendParams, trusted: bool) -> list[RecommendationReason]:
    """Why a contender is not admitted; empty when it is."""
    found: list[RecommendationReason] = []

    def refuse(rule: str, figure: float | None, threshold: float | None, words: str) -> None:
        found.append(RecommendationReason(rule, False, figure, threshold, f"{each.name} is out: {words}"))

    prompts = each.outcomes.shape[1]
    if prompts < _FEWEST_PROMPTS:
        words = f"too few prompts were judged for all variants: {prompts}, a paired test needs {_FEWEST_PROMPTS}"
        refuse("shared_prompts", prompts, _FEWEST_PROMPTS, words)
    if each.win.low is None or each.win.low <= 0.5:
        low = "without an interval" if each.win.low is None else f"at least {_number(each.win.low, 0.5)} (≤ 0.5)"
        words = f"its {facts.metric} win rate over π_ref is {_number(each.win.value)}, {low}"
        refuse("beats_reference", each.win.low, 0.5, words)
    for said in each.refused_by:
        refuse("gate", said.value, said.threshold, f"the gate would refuse it ({said.name}): {said.text}")
    if each.kl.value is None or each.kl.value > params.max_kl_nats_per_token:
        most = params.max_kl_nats_per_token
        words = f"KL {_number(each.kl.value, most)} nats per token leaves the band (> {most:.15g})"
        refuse("kl_band", each.kl.value, most, words)
    limit = facts.budget_cpu_seconds
    if limit is not None and each.cpu_seconds > limit:
        words = f"{rounded(each.cpu_seconds, limit, '.1f')} CPU s of training are over budget (> {limit:.15g})"
        refuse("budget", each.cpu_seconds, limit, words)
    if each.explores and not trusted:
        least = params.min_reward_accuracy
        refuse("reward_model", facts.reward_accuracy.low, least, "it learns from a reward model that is not relied on")
    if each.explores and each.agreement is not None and each.agreement < params.min_judge_agreement:
        least = params.min_judge_agreement
        words = f"judge and gold agree on {rounded(each.agreement, least, '.3f')} of its samples (< {least:.15g})"
        refuse("judge_agreement", each.agreement, least, words)
    return found


def _rank(each: Contender) -> tuple[float, str]:
    """By win rate, then by name. What is admitted has a win rate."""
    return (-math.inf if each.win.value is None else each.win.value, each.name)


def _number(value: float | None, threshold: float = math.nan) -> str:
    return "not measured" if value is None else rounded(value, threshold, ".3f")


def _gain(one: Contender, other: Contender, facts: Facts) -> Gain:
    return paired_gain(one.outcomes, other.outcomes, facts.confidence)


def _clear(gain: Gain, level: float, params: RecommendParams) -> bool:
    """True if a gain is beyond chance, of one sign in each seed, and large enough to matter."""
    return gain.p < level and gain.in_each_seed and gain.difference >= params.min_gain


def _much_dearer(one: Contender, other: Contender, params: RecommendParams) -> bool:
    return one.cpu_seconds > params.same_budget * other.cpu_seconds


def _lead(dear: Contender, cheap: Contender, params: RecommendParams) -> RecommendationReason:
    """Compare the lead at the cheaper one's budget: it was there already, or it took more."""
    seconds, band = cheap.cpu_seconds, params.max_kl_nats_per_token
    ours, theirs = win_rate_at(dear.readings, seconds, band), win_rate_at(cheap.readings, math.inf, band)
    spent = (
        f"{dear.name} leads {cheap.name} with {dear.cpu_seconds / seconds:.1f}x the CPU seconds of training "
        f"({dear.cpu_seconds:.1f} against {seconds:.1f}; up to {params.same_budget:g}x is one budget)"
    )
    if ours is None or theirs is None:
        missing = dear.name if ours is None else cheap.name
        text = f"{spent}, and no evaluation of {missing} by then tells what it had won: the lead does not count"
        return RecommendationReason("same_budget", False, dear.cpu_seconds / seconds, params.same_budget, text)
    holds = ours - theirs >= params.min_gain
    text = (
        f"{spent}. By then it had won {ours:.3f} of validation prompts against {theirs:.3f}, by the judge of training "
        f"(needs {params.min_gain:g} more): the lead {'counts' if holds else 'does not count'}"
    )
    return RecommendationReason("same_budget", holds, ours - theirs, params.min_gain, text)


def _cheapest(tied: Sequence[Contender], params: RecommendParams) -> Contender:
    limit = min(each.cost for each in tied) * params.same_cost
    cheap = [each for each in tied if each.cost <= limit]
    return min(
        cheap, key=lambda each: (-_rank(each)[0], math.inf if each.kl.value is None else each.kl.value, each.name)
    )


def _ceiling(
    best: Contender, even: Sequence[Contender], facts: Facts, params: RecommendParams, level: float
) -> list[RecommendationReason]:
    """The effect of exploration: the best that samples against the best that does not."""
    explorers = [each for each in even if each.explores]
    others = [each for each in even if not each.explores]
    if not explorers or not others:
        missing = (
            "no variant that samples from the policy (GRPO, PPO) is admitted, with a lead that counts"
            if others
            else "no offline variant is admitted, with a lead that counts"
        )
        words = (
            f"need for exploration not measured: {missing}; the ceiling is {best.name} with {_number(best.win.value)}"
        )
        return [RecommendationReason("exploration", False, best.win.value, 0.5, words)]
    top, base = (max(side, key=_rank) for side in (explorers, others))
    gain = _gain(top, base, facts)
    needed = _clear(gain, level, params)
    words = "lifts the ceiling" if needed else "does not lift the ceiling beyond chance"
    text = (
        f"exploration {words}: {top.name} {_number(top.win.value)} against {base.name} {_number(base.win.value)}, "
        f"difference {gain.difference:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}] on {gain.n} prompts, p = {gain.p:.2g} "
        f"(needs p < {level:.2g} and ≥ {params.min_gain:g}, of one sign in each seed)"
    )
    return [RecommendationReason("exploration", needed, gain.difference, params.min_gain, text)]


def _cost(
    chosen: Contender, best: Contender, gains: dict[str, Gain], params: RecommendParams, level: float
) -> list[RecommendationReason]:
    cost = f"{chosen.cost:.2g} ({chosen.cpu_seconds:.1f} CPU s)"
    if chosen is best:
        text = (
            f"{chosen.name} has the best win rate, {_number(chosen.win.value)}, at a cost of {cost}; nothing tied with "
            f"it is cheaper by more than a factor of {params.same_cost:g}"
        )
        return [RecommendationReason("cost", True, chosen.cost, best.cost, text)]
    gain = gains[chosen.name]
    text = (
        f"{chosen.name} is tied with the best, {best.name}: difference {gain.difference:.3f}, p = {gain.p:.2g} (a tie "
        f"unless p < {level:.2g} and ≥ {params.min_gain:g}), and costs {cost} against {best.cost:.2g}: ties go to the "
        f"cheaper"
    )
    return [RecommendationReason("cost", True, chosen.cost, best.cost, text)]
