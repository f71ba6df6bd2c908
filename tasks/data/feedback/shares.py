"""Shares of the feedback that are set aside, for each reason and in all, held to params.

Validation and curation count together: whatever is quarantined counts, whoever found it. Four things do not: rows
that were withdrawn; merged duplicates, since they are merged and not set aside; ties and neutral thumbs, which are
sound; and single responses to prompts of the validation or test split, which the split keeps out of training.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from plumbline.data_contracts.quarantine_reasons import NO_DEFECT, WITHDRAWN
from plumbline.data_contracts.records import Quarantined
from plumbline.tasks.params.feedback import FeedbackParams

_EXAMPLES = 2  # for each reason in a message
_SHOWN = 5  # reasons in a message


def shares(counts: Mapping[str, Any]) -> dict[str, Any]:
    """Shares of the rows read: of all that was set aside, and of each reason. `counts` is an account."""
    read = max(counts["read"], 1)
    reasons = {reason: count / read for reason, count in sorted(counts["reasons"].items())}
    return {"quarantined": counts["quarantined"] / read, "reasons": reasons}


def too_many(
    reasons: Mapping[str, int],
    read: int,
    params: FeedbackParams,
    rows: str = "rows",
    quarantined: Iterable[Quarantined] = (),
) -> list[str]:
    """Objections of params to the number of rows set aside for these reasons, a sentence or two each.

    A reason with a threshold of its own is held to that one and does not count against the general one.
    """
    read -= reasons.get(WITHDRAWN, 0)
    own = params.quarantine_thresholds
    general = {reason: count for reason, count in reasons.items() if reason not in own and reason not in NO_DEFECT}
    held = [
        ({reason: reasons[reason]}, limit, f"quarantine_thresholds.{reason}")
        for reason, limit in own.items()
        if reason in reasons
    ]
    held.append((general, params.quarantine_threshold, "quarantine_threshold"))
    examples = list(quarantined)
    return [
        _objection(counts, read, limit, key, rows, examples)
        for counts, limit, key in held
        if sum(counts.values()) > limit * max(read, 1)
    ]


def _objection(
    counts: Mapping[str, int], read: int, limit: float, key: str, rows: str, quarantined: Iterable[Quarantined]
) -> str:
    found = sum(counts.values())
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    listed = ", ".join(f"{reason} {count} = {percent(count / read)}" for reason, count in ordered[:_SHOWN])
    shown = "".join(_examples(reason, quarantined) for reason, _ in ordered[:_SHOWN])
    return (
        f"too many bad rows: expected at most {percent(limit)} of the {rows} in quarantine (feedback.{key}; ties and "
        f"held-out prompts do not count, duplicates are merged), found {found} of {read} = "
        f"{percent(found / read, limit)} ({listed}). Mend the rows, or raise the threshold if they may be left out, "
        f"for one reason alone by feedback.quarantine_thresholds, as {{{ordered[0][0]}: 0.5}}.{shown}"
    )


def percent(share: float, other: float | None = None) -> str:
    """A share in per cent with one decimal, or with as many as it takes to tell it from another."""
    for digits in range(1, 6):
        text = f"{share:.{digits}%}"
        if other is None or share == other or text != f"{other:.{digits}%}":
            return text
    return text


def _examples(reason: str, quarantined: Iterable[Quarantined]) -> str:
    rows = [row for row in quarantined if row.reason == reason][:_EXAMPLES]
    return "".join(
        f"\n  {reason}: e.g. {row.file} line {row.line}: expected {row.expected}, found {row.found}" for row in rows
    )
