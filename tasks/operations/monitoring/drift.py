"""Has the traffic drifted from the prompts that the champion was trained on? Two-sample tests, one look at a time.

A look compares its new prompts with the pool: training prompts and those of all looks before. While nothing drifts,
each look is a fresh random part of all prompts, so that its p-value is independent of the earlier ones (the argument
of conformal prediction: Vovk, Gammerman & Shafer 2005, theorem 8.1) and their e-values multiply. The price: a drift
that stays becomes part of the pool and the evidence comes from its first looks.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Shift:
    """One feature at one look: p-value, and what differs, with counts of examples."""

    p: float
    words: str


def shifts(pool: Sequence[str], fresh: Sequence[str], seed: int) -> dict[str, Shift]:
    """Every feature of `FEATURES` for new prompts against the pool."""
    return {name: test(pool, fresh, seed) for name, test in FEATURES.items()}


def script(text: str) -> str:
    """The script of most letters of a text, such as LATIN or CYRILLIC; NONE without letters."""
    counts = Counter(unicodedata.name(character, "UNKNOWN").split()[0] for character in text if character.isalpha())
    return counts.most_common(1)[0][0] if counts else "NONE"


def _length(pool: Sequence[str], fresh: Sequence[str], _: int) -> Shift:
    return _compare_values("median length in characters", [len(text) for text in pool], [len(text) for text in fresh])


def _symbols(pool: Sequence[str], fresh: Sequence[str], _: int) -> Shift:
    def share(text: str) -> float:
        return sum(not (character.isalpha() or character.isspace()) for character in text) / max(len(text), 1)

    return _compare_values("median share of digits and signs", [share(text) for text in pool], [*map(share, fresh)])


def _script(pool: Sequence[str], fresh: Sequence[str], _: int) -> Shift:
    """Fisher's exact test of "not in the commonest script of all": new scripts are rare before they come."""
    from scipy.stats import fisher_exact

    before, now = Counter(map(script, pool)), Counter(map(script, fresh))
    usual = max(sorted(before | now), key=lambda name: before[name] + now[name])
    table = [[len(counts_of) - counts[usual], counts[usual]] for counts_of, counts in ((pool, before), (fresh, now))]
    words = ", ".join(f"{name} {count} of {len(fresh)} (were {before[name]})" for name, count in now.most_common(4))
    return Shift(float(fisher_exact(table).pvalue), f"scripts {words}")


def _vocabulary(pool: Sequence[str], fresh: Sequence[str], seed: int) -> Shift:
    """Can a classifier on TF-IDF tell them apart (Lopez-Paz & Oquab 2017)? Trained on one half, tested on the other."""
    from scipy.stats import mannwhitneyu
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(seed)
    texts, is_new = np.array([*pool, *fresh], dtype=object), np.array([False] * len(pool) + [True] * len(fresh))
    train = np.zeros(len(texts), dtype=np.bool_)
    for rows in (np.flatnonzero(is_new), np.flatnonzero(~is_new)):
        train[rng.permutation(rows)[: len(rows) // 2]] = True
    words = TfidfVectorizer(max_features=5000, token_pattern=r"\w+")
    try:
        features = words.fit_transform(texts[train])
    except ValueError:  # scikit-learn's way to say that there is not one word
        return Shift(1.0, "no words to compare")
    model = LogisticRegression(class_weight="balanced", max_iter=200).fit(features, is_new[train])
    scores = model.decision_function(words.transform(texts[~train]))
    new, old = scores[is_new[~train]], scores[~is_new[~train]]
    test = mannwhitneyu(new, old, alternative="greater")
    names = words.get_feature_names_out()[np.argsort(-model.coef_[0])[:5]]
    examples = [f"{name!r} in {sum(name in text.lower() for text in fresh)} of {len(fresh)}" for name in names]
    area = float(test.statistic) / (len(new) * len(old))
    return Shift(float(test.pvalue), f"distinguished with an area under the curve of {area:.2f}: {', '.join(examples)}")


def _compare_values(name: str, pool: Sequence[float], fresh: Sequence[float]) -> Shift:
    from scipy.stats import ks_2samp

    p = float(ks_2samp(pool, fresh, method="asymp").pvalue)
    low, high = np.quantile(pool, [0.05, 0.95])
    outside = sum(not low <= value <= high for value in fresh)
    before, now = float(np.median(pool)), float(np.median(fresh))
    return Shift(p, f"{name} {now:.3g} (was {before:.3g}), {outside} of {len(fresh)} outside the middle 90 %")


FEATURES: Mapping[str, Callable[[Sequence[str], Sequence[str], int], Shift]] = {
    "length": _length,
    "symbols": _symbols,
    "script": _script,
    "vocabulary": _vocabulary,
}
