"""Label leak: how well a small classifier predicts the label from surface alone, on clusters that it never saw.

Logistic regression on the difference of two responses: the figures of `surface`, and hashed word n-grams. It has no
intercept, so that which of the two stands left does not matter. 0.5 is chance. Near the accuracy of a reward model it
says that a reward model can score by the surface.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from plumbline.tasks.data.clinic.estimate import F64, I64, measured, missing
from plumbline.tasks.data.clinic.surface import NAMES, differences
from plumbline.tasks.statistics import clustered_interval

FOLDS = 5
LEAST_PAIRS = 50
HASHED = 2**12
"""Columns of hashed n-grams, words and pairs of words."""
TELLING = 10
_STRENGTH = 0.1  # inverse of the L2 penalty; of 0.1 to 100 the best on the public argument pairs


def leak(
    left: Sequence[str], right: Sequence[str], label: I64, first: I64, clusters: Sequence[str], seed: int
) -> dict[str, Any]:
    """Accuracy (interval by cluster) and AUC of the classifier under cross-validation, and the most telling features.

    label: (n,) 0 if the left response was preferred, 1 if the right was; first: see `differences`; `clusters` go whole
    into one fold. "telling" holds a feature, the response it speaks for, and its weight in standard deviations.
    """
    n, groups = len(left), len(set(clusters))
    if n < LEAST_PAIRS or groups < FOLDS:
        why = f"not enough data: expected {LEAST_PAIRS} pairs in {FOLDS} clusters of prompts, found {n} in {groups}"
        return {"accuracy": missing(why, n), "auc": None, "telling": []}
    flip = np.random.default_rng(seed).permutation(n) % 2 == 1  # by halves, whichever side labels favour
    target = (label == 0) != flip  # (n,) the left response of the shown order was preferred
    sign = np.where(flip, -1.0, 1.0)
    table = _table(left, right, first, sign)
    guess = _out_of_fold(table, target, clusters, seed)
    from sklearn.metrics import roc_auc_score

    right_ones = (guess > 0.5) == target
    bounds = clustered_interval(right_ones.astype(np.float64), clusters)
    return {
        "accuracy": measured(float(right_ones.mean()), *bounds, n),
        "auc": float(roc_auc_score(target, guess)),
        "telling": _telling(table, target, left, right),
    }


def _table(left: Sequence[str], right: Sequence[str], first: I64, sign: F64) -> Any:
    """Differences of figures, in units of their root mean square, and of n-grams of unit length.

    Sparse (n, F + HASHED). So a figure weighs as much as all n-grams of a response together.
    """
    from scipy import sparse

    figures = differences(left, right, first.tolist())
    size = np.sqrt((figures**2).mean(axis=0))
    hashing = _hashing()
    grams = hashing.transform(left) - hashing.transform(right)
    return sparse.diags(sign) @ sparse.hstack([figures / np.where(size > 0, size, 1), grams]).tocsr()


def _hashing() -> Any:
    from sklearn.feature_extraction.text import HashingVectorizer

    return HashingVectorizer(n_features=HASHED, ngram_range=(1, 2), alternate_sign=False, binary=True, norm="l2")


def _model() -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=_STRENGTH, fit_intercept=False, max_iter=500)


def _out_of_fold(table: Any, target: np.ndarray[Any, Any], clusters: Sequence[str], seed: int) -> F64:
    """The chance of `target`, (n,), each by a model that saw no pair of its cluster."""
    from sklearn.model_selection import GroupKFold

    guess = np.full(len(target), 0.5)
    for train, test in GroupKFold(FOLDS, shuffle=True, random_state=seed).split(table, target, clusters):
        if target[train].min() != target[train].max():
            guess[test] = _model().fit(table[train], target[train]).predict_proba(table[test])[:, 1]
    return guess


def _telling(
    table: Any, target: np.ndarray[Any, Any], left: Sequence[str], right: Sequence[str]
) -> list[dict[str, Any]]:
    """The features that a model of all pairs weighs most."""
    if target.min() == target.max():
        return []
    weights = _model().fit(table, target).coef_[0]
    top = [int(place) for place in np.argsort(-np.abs(weights), kind="stable")[:TELLING] if weights[place]]
    grams = _grams([place - len(NAMES) for place in top if place >= len(NAMES)], [*left, *right])
    return [
        {
            "feature": NAMES[place] if place < len(NAMES) else f"“{grams[place - len(NAMES)]}”",
            "prefers": "more" if weights[place] > 0 else "less",
            "weight": float(weights[place]),
        }
        for place in top
    ]


def _grams(columns: Sequence[int], texts: Sequence[str]) -> dict[int, str]:
    """The most frequent n-gram of each hashed column."""
    analyse = _hashing().build_analyzer()
    counts = Counter(gram for text in texts for gram in set(analyse(text)))
    names = sorted(counts, key=lambda gram: (counts[gram], gram))
    wanted = set(columns)
    return {int(column): name for name, column in zip(names, _columns_of(names), strict=True) if column in wanted}


def _columns_of(names: Sequence[str]) -> I64:
    """The hashed column of each n-gram, as `HashingVectorizer` places it."""
    from sklearn.feature_extraction import FeatureHasher

    hasher = FeatureHasher(HASHED, input_type="string", alternate_sign=False)
    return np.asarray(hasher.transform([[name] for name in names]).indices, dtype=np.int64)
