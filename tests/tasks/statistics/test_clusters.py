from collections import defaultdict

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from plumbline.tasks.statistics import clustered_interval, effective_size, wilson_interval

CLUSTERED = st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 12)), min_size=1, max_size=60)


def naive_effective_size(outcomes, clusters, confidence):
    """Variances of the mean as loops: a draw of clusters against a draw of outcomes, at their t quantiles."""
    groups = defaultdict(list)
    for outcome, cluster in zip(outcomes, clusters, strict=True):
        groups[cluster].append(outcome)
    n, k = len(outcomes), len(groups)
    p = sum(outcomes) / n
    worst = n * n / sum(len(group) ** 2 for group in groups.values())
    simple = sum((outcome - p) ** 2 for outcome in outcomes)
    if k in (1, n) or simple == 0:
        return worst
    clustered = k / (k - 1) * sum(sum(outcome - p for outcome in group) ** 2 for group in groups.values()) / n**2
    ratio = max(1.0, clustered / (simple / (n - 1) / n))
    upper = (1 + confidence) / 2
    return max(worst, n / ratio * (scipy.stats.t(n - 1).ppf(upper) / scipy.stats.t(k - 1).ppf(upper)) ** 2)


def test_two_clusters_by_hand():
    """Clusters (1, 1, 1, 0) and (1, 0, 0, 0): p = ½, residuals sum to +1 and -1, their squares to 8·¼ = 2.

    deff = 2/1·(1 + 1) / (8/7·2) = 1.75, so 8/1.75 = 4.571; t is 2.3646 with 7 degrees of freedom and 12.7062 with
    one, (2.3646/12.7062)² = 0.03463, so 0.158: below the bound 64/(16 + 16) = 2, which holds.
    """
    assert effective_size([1, 1, 1, 0, 1, 0, 0, 0], list("aaaabbbb")) == 2.0


def test_four_clusters_by_hand():
    """Sizes 3: (1,1,1), (1,1,0), (1,0,0), (1,1,0); p = 8/12, residual sums 1, 0, -1, 0; squares 12·(2/3)(1/3) = 8/3.

    deff = 4/3·2 / (12/11·8/3) = 0.9167, taken as 1; t 2.20099 with 11 degrees of freedom, 3.18245 with 3:
    12·(2.20099/3.18245)² = 5.7398, above the bound 144/36 = 4.
    """
    found = effective_size([1, 1, 1, 1, 1, 0, 1, 0, 0, 1, 1, 0], list("aaabbbcccddd"))
    assert found == pytest.approx(5.7398, abs=1e-3)


def test_where_nothing_can_be_estimated_a_cluster_is_one_draw():
    """One cluster alone is worth 1; all right in sizes 3 and 1: 16/(9 + 1) = 1.6; in three of size 2: 3."""
    assert effective_size([1, 0, 1, 1], ["a"] * 4) == 1.0
    assert clustered_interval([1, 0, 1, 1], ["a"] * 4) == wilson_interval(0.75, 1)
    assert effective_size([1, 1, 1, 1], list("aaab")) == 1.6
    assert clustered_interval([0] * 6, list("aabbcc")) == wilson_interval(0, 3)
    assert clustered_interval([], []) == (0.0, 1.0)


@given(CLUSTERED, st.sampled_from([0.8, 0.95]))
def test_equals_the_naive_one_and_lies_between_its_bounds(rows, confidence):
    outcomes, clusters = zip(*rows, strict=True)
    found = effective_size(outcomes, clusters, confidence)
    assert found == pytest.approx(naive_effective_size(outcomes, clusters, confidence))
    assert 1 <= found <= len(rows)


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=200), st.sampled_from([0.8, 0.95]))
def test_clusters_of_one_give_the_plain_interval_to_the_last_bit(outcomes, confidence):
    clusters = [f"cluster {row}" for row in range(len(outcomes))]
    assert clustered_interval(outcomes, clusters, confidence) == wilson_interval(
        sum(outcomes), len(outcomes), confidence
    )


@given(CLUSTERED)
def test_the_names_and_the_order_of_clusters_say_nothing(rows):
    outcomes, clusters = zip(*rows, strict=True)
    renamed = effective_size(outcomes[::-1], [f"<{cluster}>" for cluster in clusters[::-1]])
    assert renamed == pytest.approx(effective_size(outcomes, clusters))


@pytest.mark.parametrize("groups", [5, 40])
def test_the_interval_covers_where_the_plain_one_does_not(groups):
    """600 draws of clusters of 50, the rate of each from Beta(6, 4): mean 0.6, correlation 1/11 inside a cluster.

    deff = 1 + 49/11 = 5.45, so the plain interval is 2.3 times too narrow and covers P(|z| < 1.96/2.33) = 0.60.
    """
    generator = np.random.default_rng(0)
    clusters = np.repeat(np.arange(groups), 50).tolist()
    covered = np.zeros(2)
    for _ in range(600):
        outcomes = (generator.random((groups, 50)) < generator.beta(6, 4, (groups, 1))).ravel().astype(float)
        plain, found = wilson_interval(outcomes.sum(), outcomes.size), clustered_interval(outcomes, clusters)
        covered += [plain[0] < 0.6 < plain[1], found[0] < 0.6 < found[1]]
    assert covered[0] / 600 < 0.7
    assert 0.92 < covered[1] / 600 < 0.985


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="one for each of 1 clusters"):
        effective_size([1, 0], ["a"])
    with pytest.raises(ValueError, match=r"outcomes in \[0, 1\]"):
        effective_size([1, 2], ["a", "a"])
    with pytest.raises(ValueError, match="confidence between 0 and 1"):
        effective_size([1, 0, 1], ["a", "a", "b"], 1.0)
