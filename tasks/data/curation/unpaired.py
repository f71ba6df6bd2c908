"""Curation of single judged responses, after the pairs. Nothing disappears: read = accepted + merged + quarantined.

1. leaked labels are cut, or the response set aside              `leakage`
2. length limits                                                 `limits`
3. prompts in a cluster of a validation or test pair set aside   by the matching that made the clusters
4. exact duplicates are merged, people who disagree resolved     by the rule for contradictions of pairs

A duplicate or a contradiction has the same prompt, with every turn and the system prompt, and the same response.
Opposite judgements of one response to near prompts are kept and listed in the report: what differs may matter.

The clusters of pairs are settled before, and nothing here changes them: the same pairs give the same splits, whatever
single responses come with them. All that is kept is for training. Near duplicates are kept, too: a response that
people judged twice in almost the same words is two judgements.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from plumbline.data_contracts.records import Feedback, Merged, PreferencePair, Quarantined, UnpairedResponse
from plumbline.tasks.data.curation.canonical import canonical
from plumbline.tasks.data.curation.contradictions import REASON as CONTRADICTION
from plumbline.tasks.data.curation.curated import Curated
from plumbline.tasks.data.curation.exact import REASON as DUPLICATE
from plumbline.tasks.data.curation.leakage import clean_response
from plumbline.tasks.data.curation.limits import check_response
from plumbline.tasks.data.curation.pair_texts import Corpus, prompt_text
from plumbline.tasks.data.curation.split import conversations
from plumbline.tasks.data.curation.verdicts import examples, parse_time, quarantine, voters_of
from plumbline.tasks.data.curation.wording import plain_request
from plumbline.tasks.params.curation import ContradictionParams, CurationParams, MatchingParams

HELD_OUT = "held_out_prompt"
"""Reason: the prompt belongs to a cluster that validation or test pairs were drawn from."""

_HELD_OUT_SPLITS = ("validation", "test")


@dataclass(slots=True)
class CuratedUnpaired:
    """The responses to train on, in the order read, what was folded or set aside, and the report (JSON-able)."""

    accepted: list[UnpairedResponse] = field(default_factory=list)
    merged: list[Merged] = field(default_factory=list)
    quarantined: list[Quarantined] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class _Side:
    """One judgement of one response: the record that stays, its place in the input, and who stands behind it."""

    record: UnpairedResponse
    place: int
    voters: set[str]

    @property
    def votes(self) -> int:
        return len(self.voters)


def curate_unpaired(
    responses: Sequence[UnpairedResponse],
    pairs: Sequence[PreferencePair],
    curated: Curated,
    params: CurationParams,
    seed: int,
) -> CuratedUnpaired:
    """Curate single responses beside curated pairs. `pairs` are those that curation began with.

    Deterministic in what it is given; what is kept keeps its order.
    """
    outcome = CuratedUnpaired()
    # 1, 2. texts on their own
    clean = list(_clean(responses, params, outcome))
    # 3. nothing that evaluations ask about
    free = list(_free(clean, held_out_prompts(pairs, curated), curated.train, params, seed, outcome))
    # 4. one record a judgement
    outcome.accepted = _settle(free, params, outcome)
    outcome.report = _describe(len(responses), outcome) | {
        "opposed_near_prompts": _opposed_near_prompts(outcome.accepted, params, seed)
    }
    assert len(responses) == len(outcome.accepted) + len(outcome.merged) + len(outcome.quarantined), "a record was lost"
    return outcome


def held_out_prompts(pairs: Iterable[PreferencePair], curated: Curated) -> list[PreferencePair]:
    """The pairs of validation and test, and those that were merged into one of them."""
    kept = [*curated.validation, *curated.test]
    held = {pair.id for pair in kept}
    into = {row.record_id: row.into for row in curated.merged}

    def leads_there(name: str) -> bool:
        seen = set()
        while name not in held and name in into and name not in seen:
            seen.add(name)
            name = into[name]
        return name in held

    return [*kept, *(pair for pair in pairs if pair.id in into and leads_there(pair.id))]


def _clean(
    responses: Sequence[UnpairedResponse], params: CurationParams, outcome: CuratedUnpaired
) -> Iterable[UnpairedResponse]:
    for each in responses:
        found = clean_response(each) if params.clean_leaks else each
        if isinstance(found, UnpairedResponse):
            found = check_response(found, params.limits) or found
        if isinstance(found, Quarantined):
            outcome.quarantined.append(found)
        else:
            yield found


def _free(
    responses: Sequence[UnpairedResponse],
    held_out: Sequence[PreferencePair],
    train: Sequence[PreferencePair],
    params: CurationParams,
    seed: int,
    outcome: CuratedUnpaired,
) -> Iterable[UnpairedResponse]:
    """Responses whose prompt is in no cluster with a held-out one, by near duplicates or as one conversation."""
    # training prompts hold nothing back; with them a template is seen for one, and words weigh what they weighed
    everyone: list[Feedback] = [*responses, *held_out, *train]
    clusters = _clusters(everyone, params.matching, seed)
    rivals: dict[int, str] = {}
    for pair, cluster in zip(held_out, clusters[len(responses) :], strict=False):
        rivals.setdefault(cluster, pair.id)
    for each, cluster in zip(responses, clusters, strict=False):
        if cluster not in rivals:
            yield each
            continue
        outcome.quarantined.append(
            quarantine(
                each,
                HELD_OUT,
                field="prompt",
                expected=f"a prompt that no {' or '.join(_HELD_OUT_SPLITS)} pair has, nor a near duplicate of one",
                found=f"the cluster of {rivals[cluster]}",
            )
        )


def _clusters(records: Sequence[Feedback], params: MatchingParams, seed: int) -> list[int]:
    if not records:
        return []
    texts = [prompt_text(each.prompt, params)[0] for each in records]
    pool = Corpus(params, seed, plain_request).pool(texts)
    joined = conversations([each.prompt for each in records], [pool.group(text) for text in texts], params)
    found: list[int] = joined.tolist()
    return found


def _settle(
    responses: Sequence[UnpairedResponse], params: CurationParams, outcome: CuratedUnpaired
) -> list[UnpairedResponse]:
    """Fold equal judgements into the first, then decide between people who judged one response differently."""
    judged: dict[Hashable, dict[bool, _Side]] = {}
    for place, each in enumerate(responses):
        key = (prompt_text(each.prompt, params.matching), canonical(each.response, params.matching))
        sides = judged.setdefault(key, {})
        side = sides.get(each.desirable)
        if side is None:
            side = sides[each.desirable] = _Side(each, place, set())
        else:
            outcome.merged.append(Merged(record_id=each.id, into=side.record.id, reason=DUPLICATE, origin=each.origin))
            if parse_time(each.timestamp) > parse_time(side.record.timestamp):
                side.record = side.record.model_copy(update={"timestamp": each.timestamp})
        side.voters |= voters_of(each)
    kept = [side for sides in judged.values() for side in _resolved(sides, params.contradictions, outcome)]
    return [side.record for side in sorted(kept, key=lambda side: side.place)]


def _resolved(sides: Mapping[bool, _Side], params: ContradictionParams, outcome: CuratedUnpaired) -> list[_Side]:
    if len(sides) == 1:
        return list(sides.values())
    winner = _winner(sides, params)
    for desirable, side in sides.items():
        if desirable is not winner:
            other = sides[not desirable]
            verdict = quarantine(
                side.record,
                CONTRADICTION,
                field="desirable",
                expected=f"one judgement of one response (contradictions.resolve: {params.resolve})",
                found=f"the opposite judgement in {examples([other.record.id])}, {other.votes} votes to {side.votes}",
            )
            outcome.quarantined.append(verdict)
    return [] if winner is None else [sides[winner]]


def _winner(sides: Mapping[bool, _Side], params: ContradictionParams) -> bool | None:
    if params.resolve == "drop":
        return None
    up, down = sides[True], sides[False]
    if params.resolve == "keep_latest":
        return max((up, down), key=lambda side: (parse_time(side.record.timestamp), side.place)) is up
    return None if up.votes == down.votes else up.votes > down.votes


def _opposed_near_prompts(accepted: Sequence[UnpairedResponse], params: CurationParams, seed: int) -> dict[str, Any]:
    """Near prompts with one response that people judged differently: how many groups, and their ids by judgement."""
    clusters = _clusters(accepted, params.matching, seed)
    found: dict[Hashable, dict[bool, list[str]]] = {}
    for each, cluster in zip(accepted, clusters, strict=True):
        sides = found.setdefault((cluster, canonical(each.response, params.matching)), {True: [], False: []})
        sides[each.desirable].append(each.id)
    rows = [{"desirable": sides[True], "undesirable": sides[False]} for sides in found.values() if all(sides.values())]
    return {"count": len(rows), "listed": rows[: params.listed]}


def _describe(read: int, outcome: CuratedUnpaired) -> dict[str, Any]:
    reasons = Counter([row.reason for row in outcome.merged] + [row.reason for row in outcome.quarantined])
    desirable = sum(each.desirable for each in outcome.accepted)
    return {
        "read": read,
        "accepted": len(outcome.accepted),
        "merged": len(outcome.merged),
        "quarantined": len(outcome.quarantined),
        "reasons": dict(sorted(reasons.items())),
        "desirable": desirable,
        "undesirable": len(outcome.accepted) - desirable,
    }
