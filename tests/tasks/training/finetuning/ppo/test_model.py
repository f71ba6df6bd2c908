from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel

from plumbline.tasks.models.loading import load_policy, load_reward
from plumbline.tasks.training.finetuning.ppo.experience import joined, located, minibatch_rows, padded
from plumbline.tasks.training.finetuning.ppo.model import ActorCritic, disable_dropout, head_is_last, new_value_head

PROMPTS = [[3, 7, 1, 4], [3, 8, 9, 10, 1, 4], [3, 4]]
ANSWERS = [[15, 7, 1], [16, 1], [6, 7, 8, 9, 1]]


def batch() -> dict[str, torch.Tensor]:
    ids, heads, lengths, mask = joined(PROMPTS, ANSWERS)
    return located(ids, heads, lengths, mask)


def naive(policy: torch.nn.Module, temperature: float) -> tuple[list[float], list[float]]:
    """Log-probabilities and entropies (nats) of the answers, one sequence and one token at a time, without padding."""
    logps, entropies = [], []
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
        ids = list(prompt)
        for token in answer:
            with torch.no_grad():
                row = (policy(torch.tensor([ids])).logits[0, -1] / temperature).log_softmax(-1)
            logps.append(float(row[token]))
            entropies.append(float(-(row.exp() * row).sum()))
            ids.append(token)
    return logps, entropies


def tiny_gemma() -> Gemma2ForCausalLM:
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=18,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        initializer_range=0.5,
        final_logit_softcapping=2.0,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    return Gemma2ForCausalLM(config)


def tiny_gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=18, n_embd=16, n_layer=2, n_head=2, n_positions=64, initializer_range=0.4, resid_pdrop=0.5
        )
    )


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("kind", ["qwen3", "gemma2", "gpt2"])
def test_outputs_equal_one_token_at_a_time(reference: Path, kind: str, temperature: float) -> None:
    """In train mode, padded on the right, without an attention mask, and for Gemma through its own soft-capped head."""
    policy = {"qwen3": lambda: load_policy(reference), "gemma2": tiny_gemma, "gpt2": tiny_gpt2}[kind]()
    model = ActorCritic(policy, load_reward(reference, new_head=True)).train()
    assert model.direct is (kind != "gemma2")
    outputs = model(**batch(), temperature=temperature)
    logps, entropies = naive(policy, temperature)
    assert torch.allclose(outputs.logps, torch.tensor(logps), atol=1e-5)
    assert torch.allclose(outputs.entropies, torch.tensor(entropies), atol=1e-5)


def test_values_are_those_of_the_state_before_each_token(reference: Path) -> None:
    critic = load_reward(reference, new_head=True).eval()
    model = ActorCritic(load_policy(reference), critic)
    expected = []
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
        for step in range(len(answer)):
            ids = torch.tensor([[*prompt, *answer[:step]]])
            with torch.no_grad():
                expected.append(float(critic.score(critic.model(ids).last_hidden_state[0, -1])))
    values = model(**batch(), temperature=1.0, policy=False).values
    assert torch.allclose(values, torch.tensor(expected), atol=1e-5)


def test_parts_that_are_not_asked_for_are_not_computed(reference: Path) -> None:
    model = ActorCritic(load_policy(reference), load_reward(reference, new_head=True))
    assert model(**batch(), temperature=1.0, policy=False).logps is None
    assert model(**batch(), temperature=1.0, critic=False).values is None
    assert model(**batch(), temperature=1.0, entropies=False).entropies is None


def test_head_probe() -> None:
    """GPT-2's logits are its head on its hidden states; Gemma 2 bends them, unless its soft-capping is off."""
    gemma = tiny_gemma()
    assert head_is_last(tiny_gpt2())
    assert not head_is_last(gemma)
    gemma.config.final_logit_softcapping = None
    assert head_is_last(gemma)


def test_dropout_is_off_in_train_mode_but_stays_in_the_config() -> None:
    policy = tiny_gpt2().train()
    ids = torch.tensor([[1, 2, 3]])
    assert not torch.equal(policy(ids).logits, policy(ids).logits)
    disable_dropout(policy)
    assert torch.equal(policy(ids).logits, policy(ids).logits)
    assert policy.config.resid_pdrop == 0.5


def test_value_head_is_drawn_with_the_usual_spread(reference: Path) -> None:
    """Std 1/√(h + 1) = 1/64 for h = 4,095; 4,095 draws fix it to 1/√(2·4095) ≈ 1.1 % (3 errors: 3.4 %)."""
    critic = load_reward(reference, new_head=True)
    critic.score = torch.nn.Linear(4095, 1)
    new_value_head(critic, torch.Generator().manual_seed(0))
    assert float(critic.score.weight.detach().std()) == pytest.approx(1 / 64, rel=0.034)
    assert float(critic.score.bias) == 0
    again = critic.score.weight.clone()
    new_value_head(critic, torch.Generator().manual_seed(0))
    assert torch.equal(again, critic.score.weight)


def test_padding_and_places() -> None:
    """Rows of 4 + 3, 6 + 2 and 2 + 5 tokens: answers start at 4, 6 and 2."""
    places = batch()
    assert places["ids"].shape == (3, 8)
    assert places["rows"].tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2, 2]
    assert places["positions"].tolist() == [4, 5, 6, 6, 7, 2, 3, 4, 5, 6]
    assert places["targets"].tolist() == [token for answer in ANSWERS for token in answer]
    *_, mask = joined(PROMPTS, ANSWERS)
    assert padded([[1, 2, 3], [4, 5], [6, 7, 8, 9, 10]], mask).tolist() == [
        [1, 2, 3, 0, 0],
        [4, 5, 0, 0, 0],
        [6, 7, 8, 9, 10],
    ]


@pytest.mark.parametrize("processes", [1, 2])
def test_every_row_is_in_one_micro_batch_of_one_process(processes: int) -> None:
    lengths = torch.randint(5, 50, (24,), generator=torch.Generator().manual_seed(0))
    cuts = [
        minibatch_rows(lengths, 3, torch.Generator().manual_seed(4), process=process, processes=processes, parts=2)
        for process in range(processes)
    ]
    for minibatch in range(3):
        rows = cuts[0][minibatch][0]
        shares = [torch.cat(cut[minibatch][1]) for cut in cuts]
        assert sorted(torch.cat(shares).tolist()) == sorted(rows.tolist())
        for cut in cuts:
            assert torch.equal(cut[minibatch][0], rows), "all processes agree"
            first, second = cut[minibatch][1]
            assert lengths[first].min() >= lengths[second].max(), "sorted by length"
    assert sorted(torch.cat([rows for rows, _ in cuts[0]]).tolist()) == list(range(24))
