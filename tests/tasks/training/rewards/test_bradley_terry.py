from __future__ import annotations

import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from plumbline.data_contracts.artifact import sha256_file
from plumbline.data_contracts.errors import ParamsError, StageError
from plumbline.data_contracts.progress import silent
from plumbline.data_contracts.records import CuratedPair
from plumbline.tasks.models.chat import end_token_id
from plumbline.tasks.models.loading import load_tokenizer
from plumbline.tasks.params.reward import RewardParams, RewardThresholds
from plumbline.tasks.training.rewards import bradley_terry
from plumbline.tasks.training.rewards.bradley_terry import train_reward
from plumbline.tasks.training.rewards.scoring import RewardModel, padding_id
from tests.support.training import Killed
from tests.support.world import in_world

pytestmark = pytest.mark.training

Pairs = tuple[list[CuratedPair], list[CuratedPair]]
PARAMS = in_world(
    RewardParams, num_train_epochs=4, per_device_train_batch_size=8, learning_rate=5e-3, logging_steps=3, eval_steps=9
)


def train(init: Path, pairs: Pairs, at: Path, params: RewardParams = PARAMS, progress: Any = silent) -> dict[str, Any]:
    (at / "folder").mkdir(parents=True, exist_ok=True)
    return train_reward(init, *pairs, params, 7, 1, at / "folder", at / "work", progress)


def digests(folder: Path) -> dict[str, str]:
    return {file.name: sha256_file(file) for file in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def trained(policy_folder: Path, pairs: Pairs, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    at = tmp_path_factory.mktemp("trained")
    return at / "folder", train(policy_folder, pairs, at)


def test_learns_what_the_pairs_say(trained: tuple[Path, dict[str, Any]], pairs: Pairs) -> None:
    """72 pairs in batches of 8 for 4 epochs are 36 steps; one word decides, so held-out accuracy nears 1."""
    folder, facts = trained
    assert facts["steps"] == 36
    assert facts["pairs"] == {"train": 72, "validation": 20}
    assert facts["too_long"] == {"train": 0, "validation": 0}
    model = RewardModel.load(folder)
    prompts = [pair.prompt for pair in pairs[1]]
    chosen = model.score(prompts, [pair.chosen for pair in pairs[1]])
    rejected = model.score(prompts, [pair.rejected for pair in pairs[1]])
    accuracy = statistics.fmean(one > other for one, other in zip(chosen, rejected, strict=True))
    assert accuracy >= 0.9
    assert facts["best"]["value"] >= 0.9


def test_mean_and_spread_are_those_of_the_training_responses(
    trained: tuple[Path, dict[str, Any]], pairs: Pairs
) -> None:
    model = RewardModel.load(trained[0])
    prompts = [pair.prompt for pair in pairs[0]] * 2
    rewards = model.score(prompts, [pair.chosen for pair in pairs[0]] + [pair.rejected for pair in pairs[0]])
    facts = json.loads((trained[0] / "reward.json").read_text())
    assert facts["mean"] == pytest.approx(statistics.fmean(rewards), abs=1e-5)
    assert facts["std"] == pytest.approx(statistics.pstdev(rewards), abs=1e-5)


def test_the_curve_holds_training_and_validation_and_no_clock(trained: tuple[Path, dict[str, Any]]) -> None:
    rows = [json.loads(line) for line in (trained[0] / "training.jsonl").read_text().splitlines()]
    assert sum("validation_accuracy" in row for row in rows) == 4
    assert [row["step"] for row in rows] == sorted(row["step"] for row in rows)
    assert not [name for row in rows for name in row if "runtime" in name or "per_second" in name]


def test_two_runs_give_the_same_bytes(
    trained: tuple[Path, dict[str, Any]], policy_folder: Path, pairs: Pairs, tmp_path: Path
) -> None:
    torch.rand(100)  # whatever ran before must not matter
    facts = train(policy_folder, pairs, tmp_path)
    assert digests(tmp_path / "folder") == digests(trained[0])
    assert facts == trained[1]
    for file in (tmp_path / "folder").iterdir():
        assert str(tmp_path).encode() not in file.read_bytes()


@pytest.mark.parametrize("killed_at", [20, 36])
def test_a_killed_run_resumes_to_the_same_bytes(
    trained: tuple[Path, dict[str, Any]], policy_folder: Path, pairs: Pairs, tmp_path: Path, killed_at: int
) -> None:
    """Checkpoints fall on steps 9, 18, 27, 36; a kill in step 20 resumes from 18."""
    steps: list[int] = []

    def kill(done: int, total: int, note: str) -> None:
        steps.append(done)
        if done == killed_at and len(steps) == killed_at:
            raise Killed

    with pytest.raises(Killed):
        train(policy_folder, pairs, tmp_path, progress=kill)
    assert list((tmp_path / "folder").iterdir()) == []
    facts = train(policy_folder, pairs, tmp_path, progress=kill)
    assert steps[killed_at] == (18 if killed_at == 20 else 27) + 1
    assert digests(tmp_path / "folder") == digests(trained[0])
    assert facts == trained[1]


def test_a_damaged_last_checkpoint_falls_back_to_the_one_before(
    trained: tuple[Path, dict[str, Any]], policy_folder: Path, pairs: Pairs, tmp_path: Path
) -> None:
    train(policy_folder, pairs, tmp_path)
    shutil.rmtree(tmp_path / "folder")
    last = max((tmp_path / "work").rglob("checkpoint-36"))
    optimiser = last / "optimizer.pt"
    optimiser.write_bytes(optimiser.read_bytes()[:100])
    seen: list[int] = []
    train(policy_folder, pairs, tmp_path, progress=lambda done, total, note: seen.append(done))
    assert seen[0] == 28
    assert digests(tmp_path / "folder") == digests(trained[0])


def test_grouped_batches_hold_less_padding_and_resume_to_the_same_bytes(
    policy_folder: Path, pairs: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill in step 20 of 36 falls into the third of four epochs of nine steps; step 18 is the last sealed one."""
    tokens = {"grouped": 0, "random": 0}
    compute_loss = bradley_terry.RewardPairTrainer.compute_loss

    def count(self: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if model.training:
            tokens[name] += inputs["input_ids"].numel()
        return compute_loss(self, model, inputs, *args, **kwargs)

    def kill(done: int, total: int, note: str) -> None:
        if done == 20:
            raise Killed

    monkeypatch.setattr(bradley_terry.RewardPairTrainer, "compute_loss", count)
    grouped = PARAMS.model_copy(update={"train_sampling_strategy": "group_by_length"})
    for name, params in (("random", PARAMS), ("grouped", grouped)):
        train(policy_folder, pairs, tmp_path / name, params)
    assert tokens["grouped"] < 0.95 * tokens["random"]
    with pytest.raises(Killed):
        train(policy_folder, pairs, tmp_path / "killed", grouped, progress=kill)
    train(policy_folder, pairs, tmp_path / "killed", grouped)
    assert digests(tmp_path / "killed" / "folder") == digests(tmp_path / "grouped" / "folder")
    assert digests(tmp_path / "random" / "folder") != digests(tmp_path / "grouped" / "folder")


def test_an_evaluation_batch_counts_sequences_of_which_a_pair_has_two(
    policy_folder: Path, pairs: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """per_device_eval_batch_size 6 is three pairs, six sequences."""
    seen: list[int] = []
    compute_loss = bradley_terry.RewardPairTrainer.compute_loss

    def count(self: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if not model.training:
            seen.append(len(inputs["input_ids"]))
        return compute_loss(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(bradley_terry.RewardPairTrainer, "compute_loss", count)
    params = in_world(
        RewardParams, num_train_epochs=1, per_device_train_batch_size=8, per_device_eval_batch_size=6, max_steps=1
    )
    train(policy_folder, pairs, tmp_path, params)
    assert seen == [6] * 6 + [4]


def test_other_params_do_not_resume_what_was_begun(policy_folder: Path, pairs: Pairs, tmp_path: Path) -> None:
    train(policy_folder, pairs, tmp_path, PARAMS.model_copy(update={"num_train_epochs": 1.0}))
    seen: list[int] = []
    train(
        policy_folder,
        pairs,
        tmp_path,
        PARAMS.model_copy(update={"num_train_epochs": 1.0, "learning_rate": 1e-4}),
        progress=lambda done, total, note: seen.append(done),
    )
    assert seen[0] == 1


def test_what_training_does_not_read_does_not_begin_it_anew(policy_folder: Path, pairs: Pairs, tmp_path: Path) -> None:
    """The share of the held-out judge reaches a training by its pairs alone, and thresholds reach the audit only."""
    params = in_world(RewardParams, num_train_epochs=1, per_device_train_batch_size=8, max_steps=3)
    found = []
    for changes in ({}, {"held_out_share": 0.3}, {"audit": RewardThresholds(min_accuracy=0.1)}):
        train(policy_folder, pairs, tmp_path, params.model_copy(update=changes))
        found += [run.name for run in (tmp_path / "work").glob("run-*")]
    assert len(set(found)) == 1


def test_pairs_beyond_the_context_are_counted_and_none_left_is_an_error(
    policy_folder: Path, pairs: Pairs, tmp_path: Path
) -> None:
    """The context is 128 tokens; 200 words are more."""
    long = pairs[0][0].model_copy(update={"rejected": "no " * 200})
    params = in_world(RewardParams, num_train_epochs=1, per_device_train_batch_size=8)
    facts = train(policy_folder, ([*pairs[0][:16], long], pairs[1]), tmp_path, params)
    assert facts["too_long"] == {"train": 1, "validation": 0}
    assert facts["pairs"]["train"] == 16
    with pytest.raises(StageError, match=r"Expected validation pairs of at most 128 tokens .* found none among 1"):
        train(policy_folder, (pairs[0], [long]), tmp_path / "none", params)


def test_further_arguments_reach_trl_and_unknown_or_owned_ones_are_refused(
    policy_folder: Path, pairs: Pairs, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="did you mean 'adam_beta1'"):
        in_world(RewardParams, adam_beta_1=0.8)
    with pytest.raises(ValueError, match="set by Plumbline"):
        in_world(RewardParams, seed=1)
    with pytest.raises(ParamsError, match="reward: TRL refuses"):
        train(policy_folder, pairs, tmp_path, in_world(RewardParams, optim="zigzag"))
    params = in_world(RewardParams, num_train_epochs=1, per_device_train_batch_size=8, max_steps=3)
    assert train(policy_folder, pairs, tmp_path, params)["steps"] == 3


def test_story_model_whose_pad_is_eos(stories_folder: Path, pairs: Pairs, tmp_path: Path) -> None:
    """Rewards are read at the end token </s> although the tokenizer's pad is the same token."""
    params = in_world(RewardParams, num_train_epochs=1, per_device_train_batch_size=8, max_steps=4)
    train(stories_folder, pairs, tmp_path, params)
    model = RewardModel.load(tmp_path / "folder", batch_size=5)
    tokenizer = load_tokenizer(stories_folder)
    assert tokenizer.pad_token_id == end_token_id(tokenizer) == 2
    assert padding_id(tokenizer) == model.model.config.pad_token_id == 0
    prompts, responses = [pair.prompt for pair in pairs[1]], [pair.chosen for pair in pairs[1]]
    found = model.score(prompts, responses)
    naive = [naive_reward(model, *pair) for pair in zip(prompts, responses, strict=True)]
    assert found == pytest.approx(naive, abs=1e-5)
    assert len(set(found)) > 1


@torch.no_grad()
def naive_reward(model: RewardModel, prompt: Any, response: str) -> float:
    """One sequence without padding: the head applied to the hidden state of its very last token."""
    from plumbline.tasks.models.chat import encode

    head, tail = encode(model.tokenizer, prompt, response)
    assert tail[-1] == end_token_id(model.tokenizer)
    hidden = model.model.model(torch.tensor([head + tail])).last_hidden_state[0, -1]
    return float(model.model.score(hidden))
