from __future__ import annotations

import random
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plumbline.tasks.models.length_groups import GroupsByLength, LengthGroups

LENGTHS = random.Random(1).choices(range(5, 501), k=1003)
SIZE = 16


def batches(sampler: LengthGroups) -> list[list[int]]:
    rows = list(sampler)
    return [rows[start : start + SIZE] for start in range(0, len(rows), SIZE)]


def padded(found: list[list[int]]) -> int:
    """Tokens of all batches, each row as long as the longest of its batch."""
    return sum(len(batch) * max(LENGTHS[row] for row in batch) for batch in found)


@given(st.lists(st.integers(1, 50), max_size=200), st.integers(1, 20), st.integers(0, 3))
def test_every_row_comes_once(lengths: list[int], size: int, epoch: int) -> None:
    sampler = LengthGroups(lengths, size, seed=3)
    sampler.set_epoch(epoch)
    assert sorted(sampler) == list(range(len(lengths)))
    assert len(sampler) == len(lengths)


def test_little_padding_and_no_order_among_batches() -> None:
    """Uniform lengths from 5 to 500 have a mean of about 252; a random batch of 16 is as long as its longest, about
    500 * 16 / 17 = 470. Windows of 512 rows in 32 batches differ by 1/32 of the range within one."""
    found = batches(LengthGroups(LENGTHS, SIZE, seed=3))
    order = random.Random(2).sample(range(len(LENGTHS)), len(LENGTHS))
    assert padded([order[start : start + SIZE] for start in range(0, len(order), SIZE)]) > 1.7 * sum(LENGTHS)
    assert padded(found) < 1.1 * sum(LENGTHS)
    longest = [max(LENGTHS[row] for row in batch) for batch in found[:-1]]
    rises = sum(one < other for one, other in pairwise(longest))
    assert 0.3 < rises / (len(longest) - 1) < 0.7
    assert len(found[-1]) == 1003 % SIZE


def test_the_order_is_that_of_seed_and_epoch() -> None:
    """As a resumed run asks for it: a new sampler, set to an epoch, without the epochs before."""
    first, resumed = LengthGroups(LENGTHS, SIZE, seed=3), LengthGroups(LENGTHS, SIZE, seed=3)
    first.set_epoch(0)
    zero = list(first)
    first.set_epoch(1)
    one = list(first)
    resumed.set_epoch(1)
    assert list(resumed) == one != zero
    assert list(LengthGroups(LENGTHS, SIZE, seed=4)) != zero


class Plain:
    """Stands for a trainer."""

    def __init__(self) -> None:
        self.args = SimpleNamespace(train_batch_size=4, world_size=2, data_seed=7)

    def _get_train_sampler(self, train_dataset: Any = None) -> str:
        return "random"


class Grouped(GroupsByLength, Plain):
    pass


@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_a_trainer_groups_only_where_it_has_lengths(lengths: list[int] | None) -> None:
    """Four rows a device on two devices: groups of eight."""
    sampler = Grouped(lengths=lengths)._get_train_sampler()
    if lengths is None:
        assert sampler == "random"
    else:
        assert (sampler.size, sampler.seed, sampler.lengths) == (8, 7, lengths)
