"""The reward of on-policy training: a weighted sum of terms, each normalised, clipped and accounted for apart.

1. Each term is called once a batch, in TRL's reward signature.
2. Its values are read: as many as completions, each a finite number. A wrong count stops the run, always. A row
   without a value, or a term that raised or took too long, is an error that names term, row and prompt, or what the
   params state instead: a constant in the term's own unit, or the row does without this term.
3. Values are normalised (`normalisation`) and clipped; a term without spread is only centred.
4. The total is the sum of weight times normalised value. A row that every term was dropped from is an error.

Every fallback is counted by "term: reason" in `Scored.fallbacks`, and logged: the first of a kind as a warning.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from plumbline.data_contracts.errors import PlumblineError, RewardError
from plumbline.tasks.models.chat import as_dicts
from plumbline.tasks.models.judging import Completions, Floats, Scored, TermValues
from plumbline.tasks.params.mixture import MixtureParams, TermSettings
from plumbline.tasks.training.rewards.normalisation import Normaliser
from plumbline.tasks.training.rewards.scoring import RewardModel
from plumbline.tasks.training.rewards.terms import Term, build_term

logger = logging.getLogger(__name__)

_EXCERPT = 120
"""Characters of a prompt or completion in a message."""


@dataclass(frozen=True, slots=True)
class _Values:
    """Values of a term (N,), NaN if there is none, and why there is none by row."""

    raw: Floats
    missing: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class _Part:
    """A term with its settings and the state of its normalisation."""

    settings: TermSettings
    term: Term
    normaliser: Normaliser

    @property
    def title(self) -> str:
        return self.settings.title


def build_mixture(params: MixtureParams, reward_model: RewardModel | None) -> Mixture:
    """The reward that params describe.

    Raises `ParamsError` for a reward model or function that is not there, `ModelError` for a classifier of no use.
    """
    return Mixture([(settings, build_term(settings, reward_model)) for settings in params.terms])


class Mixture:
    """A weighted sum of terms: `tasks.models.judging.Reward`.

    With `running` normalisation each `score` moves the state that the next one is normalised by, so such a reward is
    for training batches only.
    """

    def __init__(self, terms: Sequence[tuple[TermSettings, Term]]) -> None:
        self._parts = [_Part(settings, term, Normaliser(settings.normalise, settings.clip)) for settings, term in terms]
        self._warned: set[str] = set()

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of every term's settings and of what it depends on: weights, source of functions."""
        described = [[part.settings.model_dump(mode="json"), part.term.identity] for part in self._parts]
        return hashlib.sha256(orjson.dumps(described, option=orjson.OPT_SORT_KEYS)).hexdigest()

    @property
    def max_length(self) -> int | None:
        """Most tokens of prompt and response that every term takes; None: no limit of its own."""
        return min((part.term.max_length for part in self._parts if part.term.max_length is not None), default=None)

    def score(self, answers: Completions) -> Scored:
        """Score N completions. Raises `RewardError` for what no stated fallback covers."""
        count = len(answers.texts)
        fallbacks: Counter[str] = Counter()
        terms = {part.title: self._term_values(part, answers, fallbacks) for part in self._parts}
        total = np.zeros(count)
        dropped = np.ones(count, dtype=bool)
        for values in terms.values():
            missing = np.isnan(values.normalised)
            total += values.weight * np.where(missing, 0.0, values.normalised)
            dropped &= missing
        if dropped.any():
            row = int(dropped.argmax())
            raise RewardError(
                f"Expected a value of at least one term for each completion, found {int(dropped.sum())} of {count} "
                f"without any, such as {_shown(answers, row)}. Set on_invalid: constant for one of the terms."
            )
        self._report(fallbacks, count)
        return Scored(total, terms, dict(fallbacks))

    def calibrate(self, answers: Completions) -> None:
        """Measure mean and spread of each `reference` term on completions of π_ref; doing so again replaces them.

        Rows without a value are left out, if params state a fallback. Raises `RewardError` for fewer than two
        values, and for a term without spread under on_zero_spread: error.
        """
        for part in self._parts:
            if part.settings.normalise != "reference":
                continue
            values = _call(part, answers)
            _refuse_missing(part, values, answers)
            known = values.raw[~np.isnan(values.raw)]
            if len(known) < 2:
                raise RewardError(
                    f"{part.title}: expected at least 2 values on answers of π_ref to normalise by, found {len(known)} "
                    f"on {len(answers.texts)} answers. Calibrate on more prompts."
                )
            part.normaliser.fit(known)
            if part.normaliser.flat:
                _accept_zero_spread(part)

    def state(self) -> dict[str, Any]:
        """Mean and spread of each term, and the digest of the mixture they belong to, JSON-able."""
        return {"digest": self.digest, "terms": {part.title: part.normaliser.state() for part in self._parts}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state()`. Raises `RewardError` when it is the state of another mixture."""
        terms = state.get("terms")
        if state.get("digest") != self.digest or not isinstance(terms, Mapping):
            raise RewardError(
                f"Expected the state of the mixture {self.digest[:12]} (terms "
                f"{', '.join(part.title for part in self._parts)}), found that of {str(state.get('digest'))[:12]}. "
                "Terms, weights, a model or a function's source changed: start the run anew."
            )
        for part in self._parts:
            part.normaliser.restore(terms[part.title])

    def _term_values(self, part: _Part, answers: Completions, fallbacks: Counter[str]) -> TermValues:
        values = _call(part, answers)
        _refuse_missing(part, values, answers)
        fallbacks.update(f"{part.title}: {reason}" for reason in values.missing.values())
        known = values.raw[~np.isnan(values.raw)]
        if part.settings.normalise == "running":
            part.normaliser.update(known)
        filled = values.raw
        if part.settings.constant is not None:
            filled = np.where(np.isnan(values.raw), part.settings.constant, values.raw)
        normalised = _normalise(part, filled)
        if part.normaliser.flat:
            _accept_zero_spread(part)
            fallbacks[f"{part.title}: no spread"] += len(known)
        return TermValues(values.raw, normalised, part.settings.weight)

    def _report(self, fallbacks: Mapping[str, int], count: int) -> None:
        for name, rows in fallbacks.items():
            level = logging.INFO if name in self._warned else logging.WARNING
            logger.log(
                level, "reward term %s on %d of %d completions: the stated fallback stands in", name, rows, count
            )
            self._warned.add(name)


def _refuse_missing(part: _Part, values: _Values, answers: Completions) -> None:
    if part.settings.on_invalid != "error" or not values.missing:
        return
    row, reason = next(iter(values.missing.items()))
    raise RewardError(
        f"{part.title}: expected a finite number for each of {len(answers.texts)} completions, found none for "
        f"{len(values.missing)}: {reason} at {_shown(answers, row)}. Mend the term, or state in mixture.terms what "
        "shall stand in (on_invalid: constant or drop_term)."
    )


def _accept_zero_spread(part: _Part) -> None:
    if part.settings.on_zero_spread == "error":
        raise RewardError(
            f"{part.title}: expected values that differ, to normalise by their spread, found "
            f"{part.normaliser.mean:g} for all of {part.normaliser.count} answers. Set normalise: none for this "
            "term, calibrate on more prompts, or set on_zero_spread: centre."
        )


def _normalise(part: _Part, values: Floats) -> Floats:
    try:
        return part.normaliser.apply(values)
    except RewardError as error:
        raise RewardError(f"{part.title}: {error}") from error


def _call(part: _Part, answers: Completions) -> _Values:
    """One call of a term, its answer read. Raises `RewardError` for a wrong count of values."""
    count = len(answers.texts)
    try:
        answer = part.term.function(
            prompts=[as_dicts(prompt) for prompt in answers.prompts],
            completions=[[{"role": "assistant", "content": text}] for text in answers.texts],
            completion_ids=[list(ids) for ids in answers.token_ids],
        )
    except PlumblineError:
        # ours: it already says what is wrong, and no fallback is meant for a broken model or params
        raise
    except Exception as error:
        if part.settings.on_invalid == "error":
            raise RewardError(
                f"{part.title}: expected {count} values, but it raised {type(error).__name__}: {str(error)[:300]} on a "
                f"batch that begins with {_shown(answers, 0)}. Mend the term, or state in mixture.terms what shall "
                "stand in (on_invalid: constant or drop_term)."
            ) from error
        logger.warning("reward term %s raised %s: %s", part.title, type(error).__name__, str(error)[:300])
        return _Values(np.full(count, math.nan), dict.fromkeys(range(count), f"raised {type(error).__name__}"))
    return _read(part.title, answer, count)


def _read(title: str, answer: Any, count: int) -> _Values:
    """Values of a call, row by row."""
    try:
        values = list(answer)
    except TypeError as error:
        raise RewardError(
            f"{title}: expected a list of {count} values, one per completion, found {type(answer).__name__}. "
            "Return a list."
        ) from error
    if len(values) != count:
        raise RewardError(
            f"{title}: expected {count} values, one per completion, found {len(values)}. Values then fit no rows, "
            "so no fallback covers this: mend the term."
        )
    raw: NDArray[np.float64] = np.full(count, math.nan)
    missing: dict[int, str] = {}
    for row, value in enumerate(values):
        number, reason = _number(value)
        if reason is None:
            raw[row] = number
        else:
            missing[row] = reason
    return _Values(raw, missing)


def _number(value: Any) -> tuple[float, str | None]:
    """A value as a float, or why it is none."""
    if value is None:
        return math.nan, "None"
    if isinstance(value, str):
        return math.nan, "str"
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):
        return math.nan, type(value).__name__
    if math.isfinite(number):
        return number, None
    return math.nan, "NaN" if math.isnan(number) else "infinity"


def _shown(answers: Completions, row: int) -> str:
    """Row, prompt and completion, cut short for a message."""
    if not answers.texts:
        return "no rows"
    prompt = " / ".join(f"{message.role}: {message.content}" for message in answers.prompts[row])
    return f"row {row} (prompt {prompt[:_EXCERPT]!r}, completion {answers.texts[row][:_EXCERPT]!r})"
