from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from plumbline.data_contracts.errors import StageError
from plumbline.data_contracts.records import CuratedPair
from plumbline.tasks.models.chat import encode_all, encode_prompts
from plumbline.tasks.models.loading import load_policy, load_tokenizer
from plumbline.tasks.models.pairs import tokenise_pairs
from plumbline.tasks.models.sampling import Completion, sample
from plumbline.tasks.params.method_sections import ValidationParams
from plumbline.tasks.training.finetuning import arena as arena_module
from plumbline.tasks.training.finetuning.arena import open_arena, share_won
from plumbline.tasks.training.finetuning.validation import Validation, draw_pairs
from tests.support.world import in_world

SETTINGS = in_world(ValidationParams, pairs=5, prompts=4, max_new_tokens=6)
OPEN = {"batch_size": 3, "context": 64, "seed": 3}


def moved(model: Any) -> Any:
    """A copy with other weights."""
    other = copy.deepcopy(model)
    torch.manual_seed(5)
    with torch.no_grad():
        for tensor in other.parameters():
            tensor += 0.1 * torch.randn_like(tensor)
    return other


def next_logps(model: Any, head: list[int], tail: Sequence[int]) -> torch.Tensor:
    """Log-probabilities (tokens of tail, V) of what may stand at each place of the tail."""
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([head + list(tail)])).logits[0], dim=-1)[len(head) - 1 : -1]


def naive_logps(model: Any, head: list[int], tail: Sequence[int]) -> torch.Tensor:
    table = next_logps(model, head, tail)
    return torch.stack([table[place, token] for place, token in enumerate(tail)])


def test_ties_count_half() -> None:
    """One won, one lost, two ties of four: (1 + 0 + 0.5 + 0.5) / 4 = 0.5; without the loss 2 / 3."""
    assert share_won(torch.tensor([1.0, -2.0, 0.0, 0.0])) == 0.5
    assert share_won(torch.tensor([1.0, 0.0, 0.0])) == pytest.approx(2 / 3)


def test_metrics_against_naive_ones(reference: Path, pairs: Callable[..., list[CuratedPair]]) -> None:
    """Every figure once more, one sequence at a time with a full forward and log-softmax."""
    model, tokenizer = load_policy(reference), load_tokenizer(reference)
    shown = tokenise_pairs(pairs(9, seed=6), tokenizer, 64)
    policy = moved(model)

    def both(under: Any, each: Any) -> torch.Tensor:
        sides = (each.chosen_ids, each.rejected_ids)
        return torch.stack([naive_logps(under, each.prompt_ids, ids).sum() for ids in sides])

    def judge(prompts: Any, responses: Any) -> list[float]:
        return [float(len(response.split())) for response in responses]

    before = torch.stack([both(model, each) for each in shown.tokens])
    arena = open_arena(model, tokenizer, shown.pairs, judge, SETTINGS, **OPEN)
    metrics = Validation(shown, before, 0.1, 64, 3, arena).measure(policy)

    after = torch.stack([both(policy, each) for each in shown.tokens])
    ratios = after - before
    margins = 0.1 * (ratios[:, 0] - ratios[:, 1])
    assert metrics["preference_accuracy"] == pytest.approx(float((margins > 0).double().mean()))
    assert metrics["margin"] == pytest.approx(float(margins.mean()), abs=1e-5)

    settings = {"max_new_tokens": 6, "temperature": 1.0, "top_p": 1.0, "seed": 3, "batch_size": 3}
    prompts = arena.prompts
    mine, theirs = (sample(each, tokenizer, prompts, **settings) for each in (policy, model))
    lengths = [(len(one.text.split()), len(other.text.split())) for one, other in zip(mine, theirs, strict=True)]
    won = [1.0 if one > other else 0.5 if one == other else 0.0 for one, other in lengths]
    assert metrics["win_rate"] == pytest.approx(sum(won) / len(won))
    heads = encode_prompts(tokenizer, prompts)
    exact = [
        (logps.exp() * (logps - reference_logps)).sum(-1)
        for head, each in zip(heads, mine, strict=True)
        for logps, reference_logps in [[next_logps(side, head, each.token_ids) for side in (policy, model)]]
    ]
    assert metrics["kl_per_token"] == pytest.approx(float(torch.cat(exact).mean()), abs=1e-5)


def test_policy_equal_to_the_reference(reference: Path, pairs: Callable[..., list[CuratedPair]]) -> None:
    """The same weights draw the same tokens, so every duel is a tie and the KL is 0; measuring leaves the model
    in the mode it was in."""
    model, tokenizer = load_policy(reference), load_tokenizer(reference)
    shown = tokenise_pairs(pairs(9, seed=6), tokenizer, 64)
    arena = open_arena(model, tokenizer, shown.pairs, lambda p, r: [float(len(t)) for t in r], SETTINGS, **OPEN)
    validation = Validation(shown, torch.zeros(9, 2), 0.1, 64, 3, arena)
    model.train()
    metrics = validation.measure(model)
    assert metrics["win_rate"] == 0.5
    assert metrics["kl_per_token"] == pytest.approx(0.0, abs=1e-6)
    assert model.training


def test_what_is_longer_than_the_judge_takes_is_left_out(
    reference: Path, pairs: Callable[..., list[CuratedPair]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """π_ref answers "one" everywhere, the policy "one" or, to the second of four prompts, twenty words: the judge,
    who takes 15 tokens, ties the three others. With the long answer counted the rate would be another."""
    model, tokenizer = load_policy(reference), load_tokenizer(reference)
    shown = tokenise_pairs(pairs(9, seed=6), tokenizer, 64)
    answers = iter([["one"] * 4, ["one", "yes " * 20, "one", "one"]])

    def judge(prompts: Any, responses: Any) -> list[float]:
        assert all(len(head) + len(tail) <= 15 for head, tail in encode_all(tokenizer, prompts, responses))
        return [float("yes" in response) for response in responses]

    def answer(*_: Any, **__: Any) -> list[Completion]:
        return [Completion(text, (3, 4), (0.0, 0.0), True) for text in next(answers)]

    monkeypatch.setattr(arena_module, "_answer", answer)
    arena = open_arena(model, tokenizer, shown.pairs, judge, SETTINGS, judge_length=15, **OPEN)
    assert all(len(head) <= 15 - 1 - 6 for head in encode_prompts(tokenizer, arena.prompts))
    assert Validation(shown, torch.zeros(9, 2), 0.1, 64, 3, arena).measure(model)["win_rate"] == 0.5


def test_a_judge_may_find_a_text_too_long_in_its_own_tokens(
    reference: Path, pairs: Callable[..., list[CuratedPair]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a reward model with another tokenizer does: it counts letters and takes 20. The policy answers 21 letters to
    the second of four prompts, which alone it would not win: with that left out, it wins always."""
    model, tokenizer = load_policy(reference), load_tokenizer(reference)
    shown = tokenise_pairs(pairs(9, seed=6), tokenizer, 64)
    answers = iter([["one"] * 4, ["yes", "no " * 7, "yes", "yes"]])

    def judge(prompts: Any, responses: Any) -> list[float | None]:
        return [None if len(response) > 20 else float("yes" in response) for response in responses]

    def answer(*_: Any, **__: Any) -> list[Completion]:
        return [Completion(text, (3, 4), (0.0, 0.0), True) for text in next(answers)]

    monkeypatch.setattr(arena_module, "_answer", answer)
    arena = open_arena(model, tokenizer, shown.pairs, judge, SETTINGS, **OPEN)
    meeting = arena.meet(model)
    assert meeting.win_rate == 1.0
    assert meeting.scores.isnan().tolist() == [False, True, False, False]


def test_draw_is_seeded_and_bounded(reference: Path, pairs: Callable[..., list[CuratedPair]]) -> None:
    tokenised = tokenise_pairs(pairs(20, seed=6), load_tokenizer(reference), 64)
    one, again, other = (draw_pairs(tokenised, 5, seed).pairs for seed in (1, 1, 2))
    assert len(one) == 5
    assert one == again != other


@pytest.mark.parametrize(
    ("scores", "context", "message"),
    [
        ([float("nan")] * 4, 64, "4 finite scores from the judge"),
        ([1.0], 64, "found 1 with 0 not finite"),
        ([1.0] * 4, 8, "room for 6 new tokens in a context of 7, found none"),
    ],
)
def test_what_cannot_be_judged_is_refused(
    reference: Path, pairs: Callable[..., list[CuratedPair]], scores: list[float], context: int, message: str
) -> None:
    tokenizer = load_tokenizer(reference)
    shown = tokenise_pairs(pairs(9, seed=6), tokenizer, 64)
    with pytest.raises(StageError, match=message):
        open_arena(
            load_policy(reference),
            tokenizer,
            shown.pairs,
            lambda p, r: scores,
            SETTINGS,
            **(OPEN | {"context": context}),
        )
