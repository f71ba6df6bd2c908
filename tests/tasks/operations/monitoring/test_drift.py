from __future__ import annotations

import numpy as np

from plumbline.tasks.operations.monitoring.drift import FEATURES, script, shifts

WORDS = [
    "how",
    "do",
    "bake",
    "bread",
    "tell",
    "me",
    "about",
    "rivers",
    "hills",
    "please",
    "write",
    "poem",
    "friend",
    "today",
]


def prompts(count: int, seed: int, words: list[str] = WORDS) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(words, size=rng.integers(4, 12))) for _ in range(count)]


def test_scripts_by_hand() -> None:
    assert script("hello") == "LATIN"
    assert script("привет ok") == "CYRILLIC"
    assert script("12 + 3") == "NONE"


def test_the_same_traffic_does_not_look_drifted() -> None:
    """p-values of equal traffic are uniform: of 30 looks about 3 lie below 0.1."""
    pool = prompts(400, 1)
    found = [shifts(pool, prompts(60, seed), seed) for seed in range(2, 32)]
    for feature in FEATURES:
        low = sum(look[feature].p < 0.1 for look in found)
        assert low <= 8, feature


def test_each_feature_finds_its_drift_and_counts_examples() -> None:
    pool = prompts(400, 1)
    assert shifts(pool, [f"{text} {text} {text}" for text in prompts(40, 2)], 0)["length"].p < 1e-6
    assert shifts(pool, [f"{text} 123 ;;" for text in prompts(40, 2)], 0)["symbols"].p < 1e-6
    other = shifts(pool, ["расскажи мне сказку"] * 10 + prompts(30, 2), 0)["script"]
    assert other.p < 1e-6
    assert "CYRILLIC 10 of 40 (were 0)" in other.words
    law = shifts(pool, prompts(60, 2, ["tort", "clause", "liability", "court", "appeal"]), 0)["vocabulary"]
    assert law.p < 1e-6
    assert law.words.count(" of 60") == 5  # words as examples


def test_lengths_and_signs_are_told_by_median_and_by_how_many_lie_outside() -> None:
    """Lengths 1 to 101: the middle 90 % is 6 to 96, its ends included. Two of five are longer."""
    found = shifts(["x" * n for n in range(1, 102)], ["x" * n for n in (6, 51, 96, 200, 300)], 0)
    assert found["length"].words == "median length in characters 96 (was 51), 2 of 5 outside the middle 90 %"
    signs = shifts(["ab 1", "a b;"] * 20, ["1234", "ab.!", "ab 2"], 0)["symbols"].words
    assert signs == "median share of digits and signs 0.5 (was 0.25), 2 of 3 outside the middle 90 %"


def test_prompts_without_words_or_letters_do_not_break_it() -> None:
    found = shifts([""] * 20, ["!?"] * 10, 0)
    assert all(0 <= shift.p <= 1 for shift in found.values())
