from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from plumbline.data_contracts.errors import StageError
from plumbline.data_contracts.records import CuratedPair, Message, Origin, UnpairedResponse
from plumbline.tasks.models.loading import load_tokenizer
from plumbline.tasks.params.finetuning import KtoParams
from plumbline.tasks.params.method_sections import ValidationParams
from plumbline.tasks.training.finetuning import kto, reference_logps
from plumbline.tasks.training.finetuning.kto import Example
from plumbline.tasks.training.finetuning.methods import FinetuneInputs
from tests.support.world import in_world

ONE_STEP = in_world(
    KtoParams,
    learning_rate=1e-9,
    per_device_train_batch_size=96,
    logging_steps=1,
    eval_steps=1,
    per_device_eval_batch_size=16,
    early_stopping=None,
    validation=in_world(ValidationParams, pairs=4, prompts=4, max_new_tokens=4),
)
"""One batch holds both responses of all 48 pairs."""


def first_row(inputs: FinetuneInputs, **changes: Any) -> dict[str, Any]:
    kto.run(inputs, ONE_STEP.model_copy(update=changes))
    row: dict[str, Any] = json.loads((inputs.folder / "training.jsonl").read_text().splitlines()[0])
    return row


def thumbs(count: int, desirable: bool, words: str = "yes") -> list[UnpairedResponse]:
    return [
        UnpairedResponse(
            id=f"{desirable}-{number}",
            prompt=(Message(role="user", content="one"),),
            response=words,
            desirable=desirable,
            source="test",
            origin=Origin(file="test", line=number + 1),
        )
        for number in range(count)
    ]


@pytest.mark.training
@pytest.mark.usefixtures("only_packed")
def test_training_reads_packed_sequences(inputs: FinetuneInputs) -> None:
    assert kto.run(inputs, ONE_STEP)["steps"]["run"] > 0


@pytest.mark.training
def test_first_loss_at_the_reference_is_a_half(inputs: FinetuneInputs) -> None:
    """Where policy = reference each r is 0, and so is z: 1 - sigmoid(0) = 1/2 for either kind, weights 1."""
    row = first_row(inputs)
    assert row["loss"] == pytest.approx(0.5, abs=1e-6)
    assert row["kl_per_sequence"] == pytest.approx(0, abs=1e-5)
    assert "kl" not in row


@pytest.mark.training
def test_first_loss_for_known_ratios(inputs: FinetuneInputs, monkeypatch: pytest.MonkeyPatch) -> None:
    """π_ref's log-probabilities lowered by 2 nats for responses in their place and by 0.5 for mismatched ones: each
    r is 2 and z is 0.5. Desirable: 1 - sigmoid(0.1 * 1.5) = 0.462570; undesirable: 1 - sigmoid(-0.15) = 0.537430.
    With weights 2 and 1 and as many of each, the mean is (2 * 0.462570 + 0.537430) / 2 = 0.731285."""
    compute = reference_logps._compute
    monkeypatch.setattr(reference_logps, "_compute", lambda *args: compute(*args) - torch.tensor([2.0, 0.5]))
    row = first_row(inputs, desirable_weight=2.0, undesirable_weight=1.0)
    assert row["loss"] == pytest.approx(0.731285, abs=1e-5)
    assert row["kl_per_sequence"] == pytest.approx(0.5, abs=1e-5)
    assert row["reward_chosen"] == pytest.approx(0.2, abs=1e-5)


@pytest.mark.training
def test_first_loss_of_a_drifted_start_is_the_naive_one(
    inputs: FinetuneInputs, drifted: Path, naive_logps: Callable[..., list[float]]
) -> None:
    """Every token on its own, under both models; a response's mismatch is the response of the row before it. A
    negative estimate would make z 0 whatever the mismatches: this way round it is positive, as checked."""
    given = dataclasses.replace(inputs, reference=drifted, train=inputs.train[:6])
    examples, _ = kto.encode_examples(given, load_tokenizer(given.start), 64)
    rows = kto.in_batches(examples, ONE_STEP, given.seed)

    def ratio(prompt: list[int], response: list[int]) -> float:
        return sum(naive_logps(given.start, prompt, response)) - sum(naive_logps(drifted, prompt, response))

    foreign = [ratio(row.prompt_ids, rows[place - 1].completion_ids) for place, row in enumerate(rows)]
    z = sum(foreign) / len(foreign)
    assert z > 0.1
    losses = []
    for row in rows:
        gap = ratio(row.prompt_ids, row.completion_ids) - z
        losses.append(1 - 1 / (1 + math.exp(-0.1 * (gap if row.desirable else -gap))))
    row = first_row(given)
    assert row["loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-5)
    assert row["kl_per_sequence"] == pytest.approx(z, abs=1e-4)


@pytest.mark.training
def test_apo_has_no_reference_point(inputs: FinetuneInputs, monkeypatch: pytest.MonkeyPatch) -> None:
    """r = 2 for all: desirable 1 - sigmoid(0.2) = 0.450166, undesirable sigmoid(0.2) = 0.549834; the mean is 1/2, with
    weights 3 and 1 (3 * 0.450166 + 0.549834) / 2 = 0.950166."""
    compute = reference_logps._compute
    monkeypatch.setattr(reference_logps, "_compute", lambda *args: compute(*args) - 2.0)
    row = first_row(inputs, loss_type="apo_zero_unpaired", desirable_weight=3.0, undesirable_weight=1.0)
    assert row["loss"] == pytest.approx(0.950166, abs=1e-5)


@pytest.mark.parametrize(
    ("desirable", "undesirable", "weights"),
    [
        (100, 100, (1, 1)),
        (120, 100, (1, 1)),
        (50, 100, (2, 1)),  # 2 * 50 / 100 = 1
        (300, 100, (1, 2.25)),  # 300 / (2.25 * 100) = 4/3
    ],
)
def test_weights_bring_the_ratio_into_the_range_of_the_paper(
    desirable: int, undesirable: int, weights: tuple[float, float]
) -> None:
    found = kto.balance(in_world(KtoParams), desirable, undesirable)
    assert found == pytest.approx(weights)
    assert 1 - 1e-9 <= found[0] * desirable / (found[1] * undesirable) <= 4 / 3 + 1e-9
    given = in_world(KtoParams, desirable_weight=1.5, undesirable_weight=0.5)
    assert kto.balance(given, desirable, undesirable) == (1.5, 0.5)


def test_mismatches_rotate_within_their_batch() -> None:
    """Batches of two: rows 0 and 1 swap, 2 and 3 swap, and the last row, alone, takes that of row 3."""
    rows, cut = kto.mismatch([Example([9], [number], True) for number in range(5)], 2, 64)
    assert [pair.rejected_ids for pair in rows] == [[1], [0], [3], [2], [3]]
    assert [pair.chosen_ids for pair in rows] == [[0], [1], [2], [3], [4]]
    assert cut == 0
    rows, _ = kto.mismatch([Example([9], [number], True) for number in range(3)], 3, 64)
    assert [pair.rejected_ids for pair in rows] == [[2], [0], [1]]


def test_mismatches_longer_than_the_limit_are_cut_and_counted() -> None:
    """A prompt of 3 leaves a foreign response 2 of its 4 tokens at a limit of 5; the other way round all fits."""
    rows, cut = kto.mismatch([Example([7, 8, 9], [1], True), Example([7], [2, 3, 4, 5], False)], 2, 5)
    assert [pair.rejected_ids for pair in rows] == [[2, 3], [1]]
    assert cut == 1


def test_a_pair_gives_two_examples_and_batches_hold_each_once(inputs: FinetuneInputs) -> None:
    examples, too_long = kto.encode_examples(inputs, load_tokenizer(inputs.reference), 64)
    assert sum(example.desirable for example in examples) == 48 == len(examples) / 2
    assert too_long == {"train": 0, "unpaired": 0}
    for grouped in (True, False):
        params = in_world(
            KtoParams, per_device_train_batch_size=8, train_sampling_strategy="group_by_length" if grouped else "random"
        )
        rows = kto.in_batches(examples, params, 3)
        assert sorted(map(id, rows)) == sorted(map(id, examples))
        assert rows != examples
        assert rows == kto.in_batches(examples, params, 3) != kto.in_batches(examples, params, 4)


@pytest.mark.training
def test_unpaired_responses_alone_are_enough(inputs: FinetuneInputs) -> None:
    """30 thumbs up and 10 down need λ_U = (30 / 10) / (4 / 3) = 2.25; of the two long ones one is counted a kind."""
    unpaired = [*thumbs(30, True), *thumbs(10, False, "no"), *thumbs(2, True, "yes " * 80)]
    facts = kto.run(dataclasses.replace(inputs, train=[], unpaired=unpaired), ONE_STEP)
    assert facts["examples"] == {"desirable": 30, "undesirable": 10}
    assert facts["weights"] == pytest.approx({"desirable": 1.0, "undesirable": 2.25})
    assert facts["too_long"]["unpaired"] == 2
    assert facts["implied_beta"] == 0.1


@pytest.mark.training
def test_unpaired_responses_join_the_pairs_and_are_part_of_the_runs_key(
    inputs: FinetuneInputs, elsewhere: Callable[..., FinetuneInputs]
) -> None:
    facts = kto.run(dataclasses.replace(inputs, unpaired=thumbs(4, True)), ONE_STEP)
    assert facts["examples"] == {"desirable": 52, "undesirable": 48}
    (before,) = inputs.work.glob("run-*")
    swapped = thumbs(3, True) + thumbs(1, False)
    kto.run(elsewhere("other", share_work=True, unpaired=swapped), ONE_STEP)
    (after,) = inputs.work.glob("run-*")
    assert before != after, "the same tokens with another label are other data"


def test_one_kind_alone_is_refused(inputs: FinetuneInputs, pairs: Callable[..., list[CuratedPair]]) -> None:
    with pytest.raises(StageError, match=r"found 5 and 0\. Add feedback of the other kind"):
        kto.run(dataclasses.replace(inputs, train=[], unpaired=thumbs(5, True)), ONE_STEP)
