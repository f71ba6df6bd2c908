from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from plumbline.data_contracts.artifact import write_json
from plumbline.data_contracts.errors import ModelError
from plumbline.data_contracts.records import Message
from plumbline.tasks.models.chat import encode, end_token_id, set_default_template
from plumbline.tasks.models.loading import load_reward, load_tokenizer, save_model, seed_everything
from plumbline.tasks.training.rewards.scoring import RewardModel, can_score_packed, padding_id, score_tokens
from tests.tasks.models.tiny_llama import build_tokenizer

PROMPTS = [
    (Message(role="user", content=text),) for text in ("one", "please refund the order", "a", "is one two", "no")
]
RESPONSES = ["yes please", "no", "the order is three two one", "", "a yes </s> no"]


def build_reward(policy_folder: Path, folder: Path, tokenizer: Any) -> RewardModel:
    seed_everything(0, 1)
    model = load_reward(policy_folder, new_head=True)
    model.config.pad_token_id = padding_id(tokenizer)
    save_model(model, tokenizer, folder)
    write_json(folder / "reward.json", {"max_length": 64, "mean": 0.5, "std": 2.0})
    return RewardModel.load(folder, batch_size=3)


@torch.no_grad()
def naive(model: RewardModel, prompt: Any, response: str) -> float:
    head, tail = encode(model.tokenizer, prompt, response)
    hidden = model.model.model(torch.tensor([head + tail])).last_hidden_state[0, -1]
    return float(model.model.score(hidden))


@pytest.mark.parametrize("pad", ["<pad>", "</s>", "<unk>"])
def test_equals_one_forward_a_sequence_whatever_the_pad_token(policy_folder: Path, tmp_path: Path, pad: str) -> None:
    """The last response holds the end token in its midst, the fourth is empty."""
    tokenizer = build_tokenizer(pad=pad)
    set_default_template(tokenizer)
    model = build_reward(policy_folder, tmp_path, tokenizer)
    assert load_tokenizer(tmp_path).pad_token == pad
    expected = [naive(model, *pair) for pair in zip(PROMPTS, RESPONSES, strict=True)]
    assert model.score(PROMPTS, RESPONSES) == pytest.approx(expected, abs=1e-5)
    assert len({round(value, 4) for value in expected}) == 5


def test_packed_rewards_equal_padded_ones(policy_folder: Path, tmp_path: Path) -> None:
    """A model that packing would change (attention without registered functions) is scored padded."""
    model = build_reward(policy_folder, tmp_path, load_tokenizer(policy_folder))
    assert can_score_packed(model.model)
    sequences = [[3, 4, 5, 6, 2], [7, 2], [5, 5, 5, 2]]
    packed = score_tokens(model.model, sequences, 64, 2, packed=True)
    assert packed == pytest.approx(score_tokens(model.model, sequences, 64, 2), abs=1e-5)
    model.model.set_attn_implementation("eager")
    assert not can_score_packed(model.model)
    again = RewardModel.load(tmp_path).score(PROMPTS, RESPONSES)
    assert model.score(PROMPTS, RESPONSES) == pytest.approx(again, abs=1e-5)


@pytest.mark.parametrize("special", [{"pad": "</s>", "unk": "</s>"}, {"pad": None}, {}])
def test_the_padding_id_is_never_the_end_token(special: dict[str, Any]) -> None:
    tokenizer = build_tokenizer(**special)
    set_default_template(tokenizer)
    assert padding_id(tokenizer) != end_token_id(tokenizer)


def test_what_exceeds_the_length_is_refused_with_its_number(policy_folder: Path, tmp_path: Path) -> None:
    model = build_reward(policy_folder, tmp_path, load_tokenizer(policy_folder))
    with pytest.raises(ModelError, match=r"at most 64 tokens .* found 1 of 2 sequences longer"):
        model.score(PROMPTS[:2], ["yes", "no " * 80])


def test_a_folder_without_a_reward_model_is_refused(policy_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"expected a reward model with a readable reward\.json"):
        RewardModel.load(policy_folder)
    with pytest.raises(ModelError, match="expected a reward model"):
        RewardModel.load(tmp_path)


def test_nothing_to_score(policy_folder: Path, tmp_path: Path) -> None:
    assert build_reward(policy_folder, tmp_path, load_tokenizer(policy_folder)).score([], []) == []


def test_what_exceeds_the_length_has_no_score_among_those_that_fit(policy_folder: Path, tmp_path: Path) -> None:
    model = build_reward(policy_folder, tmp_path, load_tokenizer(policy_folder))
    found = model.score_fitting(PROMPTS[:3], ["yes", "no " * 80, "one"])
    expected = model.score([PROMPTS[0], PROMPTS[2]], ["yes", "one"])
    assert found == [pytest.approx(expected[0]), None, pytest.approx(expected[1])]
    assert model.score_fitting(PROMPTS[:1], ["no " * 80]) == [None]


def test_the_digest_names_weights_and_what_reads_text(policy_folder: Path, tmp_path: Path) -> None:
    model = build_reward(policy_folder, tmp_path, load_tokenizer(policy_folder))
    assert model.digest == RewardModel.load(tmp_path).digest
    (tmp_path / "chat_template.jinja").write_text(str(model.tokenizer.chat_template) + " ")
    assert RewardModel.load(tmp_path).digest != model.digest
    with pytest.raises(ModelError, match="loaded from a folder, found one made in memory"):
        _ = RewardModel(model.model, model.tokenizer, 64).digest
