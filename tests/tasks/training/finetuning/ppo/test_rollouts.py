from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset

from plumbline.data_contracts.errors import ParamsError, StageError
from plumbline.tasks.models.judging import Completions, Scored, TermValues
from plumbline.tasks.models.loading import load_policy, load_reward, load_tokenizer
from plumbline.tasks.models.sampling import Completion, sample
from plumbline.tasks.training.finetuning.ppo.config import PPOConfig
from plumbline.tasks.training.finetuning.ppo.experience import Episodes
from plumbline.tasks.training.finetuning.ppo.model import ActorCritic
from plumbline.tasks.training.finetuning.ppo.rollouts import (
    RolloutMaker,
    _interleaved,
    plan_updates,
    read_prompts,
    rollout_metrics,
    seed_of,
    stop_ids,
)

QUESTIONS = ["one", "one cat two dog", "bird", "red bird please", "green green green two two two", "yes no"]


class Lengths:
    """Reward: number of tokens, end token included."""

    digest = "lengths"
    max_length = None

    def score(self, answers: Completions) -> Scored:
        return Scored(np.array([float(len(ids)) for ids in answers.token_ids]), {}, {})

    def calibrate(self, answers: Completions) -> None:
        self.answers = answers

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Any) -> None:
        pass


@pytest.fixture
def maker(reference: Path, tmp_path: Path) -> RolloutMaker:
    """Rollouts at temperature 0.8 of a policy that differs from π_ref."""
    tokenizer = load_tokenizer(reference)
    policy, frozen = load_policy(reference), load_policy(reference)
    with torch.no_grad():
        for weights in policy.parameters():
            weights.mul_(1.05)
    dataset = Dataset.from_dict({"prompt": [[{"role": "user", "content": each}] for each in QUESTIONS]})
    args = PPOConfig(
        output_dir=str(tmp_path),
        episodes_per_update=6,
        max_completion_length=7,
        temperature=0.8,
        seed=3,
        report_to="none",
    )
    torch.manual_seed(0)
    return RolloutMaker(
        ActorCritic(policy, load_reward(reference, new_head=True)),
        frozen.eval(),
        tokenizer,
        read_prompts(dataset, tokenizer, 50),
        Lengths(),
        args,
        Accelerator(cpu=True),
    )


def naive_logps(model: Any, prompt: list[int], answer: tuple[int, ...], temperature: float) -> list[float]:
    ids, logps = list(prompt), []
    for token in answer:
        with torch.no_grad():
            logps.append(float((model(torch.tensor([ids])).logits[0, -1] / temperature).log_softmax(-1)[token]))
        ids.append(token)
    return logps


def test_log_probabilities_and_values_equal_a_naive_forward(maker: RolloutMaker) -> None:
    """One sequence and one token at a time, at temperature 0.8, within 1e-4 (the issue's)."""
    episodes = maker.make(0, [4, 1, 0, 2])
    assert maker.reference is not None
    for row, completion in enumerate(episodes.completions):
        tail = len(completion.token_ids)
        assert episodes.mask[row].tolist() == [True] * tail + [False] * (episodes.mask.shape[1] - tail)
        for model, found in ((maker.model.policy, episodes.logps), (maker.reference, episodes.reference_logps)):
            expected = naive_logps(model, list(episodes.prompts[row]), completion.token_ids, 0.8)
            assert found[row, :tail].tolist() == pytest.approx(expected, abs=1e-4)
            assert not found[row, tail:].any()
    assert episodes.scored.total.tolist() == [len(each.token_ids) for each in episodes.completions]


def test_a_rollout_is_a_function_of_seed_and_update(maker: RolloutMaker) -> None:
    """Whatever ran before; rows keep the draws of their place, and another update draws anew."""
    first = maker.make(2, [0, 1, 2, 3])
    torch.manual_seed(99)
    maker.make(7, [5, 4])
    again = maker.make(2, [0, 1, 2, 3])
    assert [each.token_ids for each in again.completions] == [each.token_ids for each in first.completions]
    other = maker.make(3, [0, 1, 2, 3])
    assert [each.token_ids for each in other.completions] != [each.token_ids for each in first.completions]


def test_two_shares_give_what_one_process_gives(maker: RolloutMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows 0, 2, 4 on one process and 1, 3 on the other, put together by their places."""
    rows = [5, 0, 3, 2, 1]
    whole = maker.make(1, rows)
    shares = []
    for process in range(2):
        monkeypatch.setattr(type(maker.accelerator), "process_index", process)
        monkeypatch.setattr(type(maker.accelerator), "num_processes", 2)
        shares.append(maker._sample(maker.model.policy, 1, rows, 0.8))
    assert [len(share) for share in shares] == [3, 2]
    flat = [each for share in shares for each in share]
    order = _interleaved([3, 2])
    assert order == [0, 3, 1, 4, 2]
    assert [flat[place].token_ids for place in order] == [each.token_ids for each in whole.completions]


def test_sampled_as_messages_are_sampled(maker: RolloutMaker) -> None:
    """Calibration sees each prompt once; nearly greedy rollouts are what `sample` gives greedily for the messages."""
    maker.calibrate(6)
    answers = maker.reward.answers  # type: ignore[attr-defined]
    assert sorted(prompt[0].content for prompt in answers.prompts) == sorted(QUESTIONS)
    greedy = sample(
        maker.model.policy,
        maker.tokenizer,
        maker.prompts.messages,
        max_new_tokens=7,
        temperature=0,
        top_p=1,
        seed=0,
        batch_size=8,
    )
    maker.args.temperature = 1e-4
    assert [each.token_ids for each in maker.make(0, range(6)).completions] == [each.token_ids for each in greedy]


def test_plan_covers_all_prompts_before_any_comes_again() -> None:
    plan = plan_updates([5] * 10, episodes=24, rows=8, tokens=None, least=1, seed=1)
    assert [len(rows) for rows in plan] == [8, 8, 8]
    stream = np.concatenate(plan).tolist()
    assert sorted(stream[:10]) == sorted(stream[10:20]) == list(range(10))
    assert stream[:10] != stream[10:20]
    again = plan_updates([5] * 10, episodes=8, rows=8, tokens=None, least=1, seed=1)
    assert again[0].tolist() == stream[:8], "a longer run begins like a shorter one"


def test_plan_by_tokens() -> None:
    """Prompts of 6 tokens under a cap of 20: three fit (18), a fourth would make 24. 7 episodes take three updates."""
    plan = plan_updates([6] * 4, episodes=7, rows=8, tokens=20, least=1, seed=1)
    assert [len(rows) for rows in plan] == [3, 3, 3]
    with pytest.raises(
        ParamsError, match=r"leaves 0 prompts to update 0, fewer than its 1 micro-batches. Raise it to 6"
    ):
        plan_updates([6] * 4, episodes=7, rows=8, tokens=5, least=1, seed=1)


def test_prompts_that_cannot_be_used(reference: Path) -> None:
    tokenizer = load_tokenizer(reference)
    with pytest.raises(ParamsError, match=r"a column `prompt`, found \['question'\]"):
        read_prompts(Dataset.from_dict({"question": ["one"]}), tokenizer, 10)
    with pytest.raises(StageError, match="found none among 1"):
        read_prompts(Dataset.from_dict({"prompt": ["one one one"]}), tokenizer, 2)
    with pytest.raises(StageError, match=r"found none\. Check the training split"):
        read_prompts(Dataset.from_dict({"prompt": []}), tokenizer, 2)
    kept = read_prompts(Dataset.from_dict({"prompt": ["one one one", "one", ""]}), tokenizer, 2)
    assert (len(kept.ids), kept.too_long) == (1, 2)
    assert not kept.conversational


def test_stop_ids_without_a_template(reference: Path) -> None:
    """The end of text alone; with a template also what ends a turn."""
    tokenizer, policy = load_tokenizer(reference), load_policy(reference)
    tokenizer.chat_template = None
    assert stop_ids(policy, tokenizer) == [1]


def test_seeds_of_streams_differ() -> None:
    seeds = {seed_of(seed, update, stream) for seed in range(3) for update in range(50) for stream in range(5)}
    assert len(seeds) == 750
    assert all(0 <= each < 2**63 for each in seeds)


def test_metrics_and_kl_by_hand() -> None:
    """Two answers of 2 and 1 tokens. Log-ratios 0.2, 0.1 and 0.6: KL = 0.9 / 3 = 0.3 nats per token.

    Residuals by row are 0.3 - 2·0.3 = -0.3 and 0.6 - 0.3 = 0.3; the error is √(2 · (0.09 + 0.09) / 1) / 3 = 0.2.
    """
    mask = torch.tensor([[True, True], [True, False]])
    terms = {"a": TermValues(np.array([1.0, np.nan]), np.array([0.5, np.nan]), 1.0)}
    episodes = Episodes(
        prompts=[[3], [4]],
        completions=[Completion("yes", (15, 1), (-1.0, -1.0), True), Completion("", (1,), (-1.0,), False)],
        scored=Scored(np.array([1.0, 0.0]), terms, {"a: NaN": 1}),
        logps=torch.tensor([[-1.0, -1.0], [-1.0, 9.0]]),
        reference_logps=torch.tensor([[-1.2, -1.1], [-1.6, 5.0]]),
        values=torch.zeros(2, 2),
        mask=mask,
        temperature=1.0,
    )
    mean, error = episodes.kl_per_token()
    assert mean == pytest.approx(0.3, abs=1e-6)
    assert error == pytest.approx(0.2, abs=1e-6)
    assert rollout_metrics(episodes, episodes.scored) == {
        "reward": 0.5,
        "response_tokens": 1.5,
        "eos_rate": 0.5,
        "empty_rate": 0.5,
        "reward/a": 1.0,
        "reward/a/normalised": 0.5,
        "fallback/a: NaN": 1.0,
    }
    assert dataclasses.replace(episodes, completions=episodes.completions[:1]).finished.tolist() == [True]
