import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from plumbline.data_contracts.errors import ModelError
from plumbline.data_contracts.records import Message, load_conversations
from plumbline.tasks.models import tiny
from plumbline.tasks.models.loading import load_policy, load_tokenizer
from plumbline.tasks.models.tiny import PAD, ROLES, Encoded, build_model, encode, train_base, train_tokenizer
from plumbline.tasks.params.tiny_model import TinyModelParams

ROOT = Path(__file__).parents[3]
SMALL = TinyModelParams(
    vocab_size=400,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=32,
    num_train_epochs=3,
    per_device_train_batch_size=8,
    logging_steps=5,
)
COLOURS = ("red", "blue", "green", "white")


def conversation(*turns):
    return [Message(role=role, content=content) for role, content in turns]


CONVERSATIONS = [
    conversation(
        ("system", f"Lamp {number}: color {colour}."),
        ("user", "Which color?"),
        ("assistant", f"It is {colour}."),
    )
    for number in range(30)
    for colour in COLOURS
]
MULTI_TURN = conversation(
    ("user", "Hi"), ("assistant", "Hello."), ("tool", "{}"), ("user", "Bye  now\n"), ("assistant", " Ünïcode ✓ ")
)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(CONVERSATIONS, SMALL)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    return folder, train_base(CONVERSATIONS, SMALL, 0, 1, folder)


def test_pad_end_and_roles_are_tokens_of_their_own(tokenizer):
    specials = [tokenizer.eos_token_id, tokenizer.pad_token_id, *tokenizer.convert_tokens_to_ids(list(ROLES.values()))]
    assert len(set(specials)) == 6
    assert None not in specials and tokenizer.unk_token_id not in specials
    assert len(tokenizer) <= SMALL.vocab_size


@given(st.text(max_size=60))
@settings(deadline=None)
def test_any_text_survives_the_round_trip(text):
    backend = _shared_tokenizer()
    assert backend.decode(backend.encode(text, add_special_tokens=False)) == text


@cache
def _shared_tokenizer():
    """The same as the fixture, which hypothesis may not take."""
    return train_tokenizer(CONVERSATIONS, SMALL)


def test_numbers_are_written_digit_by_digit(tokenizer):
    """One token a digit: no token holds two, although the conversations are full of numbers up to 29."""
    assert not [token for token in tokenizer.get_vocab() if re.search(r"\d.*\d", token)]
    tokens = [tokenizer.decode([token]) for token in tokenizer.encode("order 22", add_special_tokens=False)]
    assert tokens[-2:] == [" 2", "2"]


@pytest.mark.parametrize("turns", [CONVERSATIONS[0], MULTI_TURN])
def test_batch_encoding_is_the_chat_template(tokenizer, turns):
    """`encode` in place of `apply_chat_template`, ids and assistant mask."""
    rendered = tokenizer.apply_chat_template(
        [turn.model_dump() for turn in turns], return_dict=True, return_assistant_tokens_mask=True
    )
    (one,) = encode(tokenizer, [turns])
    assert one.ids == rendered["input_ids"]
    assert [int(spoken) for spoken in one.spoken] == rendered["assistant_masks"]


def test_text_that_spells_control_tokens_is_text(tokenizer):
    """The base is trained on the template's control tokens alone: one each turn, and one at the end of each answer."""
    spelled = "<|end|><|assistant|> no<|pad|>"
    (one,) = encode(
        tokenizer, [[Message(role="user", content=spelled), Message(role="assistant", content=f"yes {spelled}")]]
    )
    control = [token for token in tokenizer.convert_ids_to_tokens(one.ids) if token in tokenizer.all_special_tokens]
    assert control == ["<|user|>", "<|assistant|>", "<|end|>"]
    assert one.ids[-1] == tokenizer.eos_token_id
    assert spelled in tokenizer.decode(one.ids)


def test_mask_marks_the_responses_and_their_end_tokens_only(tokenizer):
    """Two assistant turns: what the mask keeps decodes to each response followed by the end token."""
    (one,) = encode(tokenizer, [MULTI_TURN])
    kept = [token for token, spoken in zip(one.ids, one.spoken, strict=True) if spoken]
    assert tokenizer.decode(kept) == "Hello.<|end|> Ünïcode ✓ <|end|>"


def test_trl_needs_no_other_template(tokenizer):
    """TRL 1.16 trains on this template as it is: markers, an end token inside them, prompts that are prefixes."""
    from trl.chat_template_utils import (
        has_generation_markers,
        is_chat_template_prefix_preserving,
        is_chat_template_stop_token_trained,
    )

    assert has_generation_markers(tokenizer.chat_template)
    assert is_chat_template_prefix_preserving(tokenizer)
    assert is_chat_template_stop_token_trained(tokenizer)


def test_generation_prompt_is_a_prefix_of_the_conversation(tokenizer):
    turns = [turn.model_dump() for turn in CONVERSATIONS[0]]
    whole = tokenizer.apply_chat_template(turns, tokenize=False)
    prompt = tokenizer.apply_chat_template(turns[:-1], tokenize=False, add_generation_prompt=True)
    assert whole == prompt + "It is red.<|end|>"


def test_loss_is_the_mean_over_assistant_tokens(tokenizer):
    """Against one row at a time, all logits, no padding: sum of -log p over spoken tokens / their number."""
    torch.manual_seed(0)
    model = build_model(tokenizer, SMALL)
    batch = encode(tokenizer, [CONVERSATIONS[0], MULTI_TURN])
    assert len(batch[0].ids) != len(batch[1].ids)
    total, count = 0.0, 0
    for one in batch:
        logps = functional.log_softmax(model(torch.tensor([one.ids])).logits[0], dim=-1)  # (T, V)
        for place in range(1, len(one.ids)):
            if one.spoken[place]:
                total -= logps[place - 1, one.ids[place]].item()
                count += 1
    assert tiny._loss(model, batch, tokenizer.pad_token_id, 0.0).item() == pytest.approx(total / count, rel=1e-5)


def test_prompt_tokens_count_with_their_weight(tokenizer):
    """With weight w the loss is (sum over spoken + w * sum over prompt) / (spoken + w * prompt)."""
    torch.manual_seed(0)
    model = build_model(tokenizer, SMALL)
    (one,) = encode(tokenizer, [CONVERSATIONS[0]])
    logps = functional.log_softmax(model(torch.tensor([one.ids])).logits[0], dim=-1)
    parts = {True: [], False: []}
    for place in range(1, len(one.ids)):
        parts[one.spoken[place]].append(-logps[place - 1, one.ids[place]].item())
    expected = (sum(parts[True]) + 0.25 * sum(parts[False])) / (len(parts[True]) + 0.25 * len(parts[False]))
    assert tiny._loss(model, [one], tokenizer.pad_token_id, 0.25).item() == pytest.approx(expected, rel=1e-5)


def test_batches_hold_each_conversation_once_an_epoch():
    encoded = [Encoded([number] * (1 + number % 7), [True] * (1 + number % 7)) for number in range(53)]
    batches = list(tiny._batches(encoded, SMALL, seed=3))
    assert len(batches) == 3 * 7  # ceil(53 / 8) = 7
    assert sorted(one.ids[0] for batch in batches for one in batch) == sorted(list(range(53)) * 3)
    assert batches != list(tiny._batches(encoded, SMALL, seed=4))
    spread = [max(len(one.ids) for one in batch) - min(len(one.ids) for one in batch) for batch in batches]
    assert sum(spread) / len(spread) <= 2  # sorted by length inside a window; a random batch spreads over 6


def test_rate_rises_then_falls_to_zero():
    factors = [tiny._lr_factor(step, 4, 20) for step in range(21)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[12] == pytest.approx(0.5)  # half-way of the cosine
    assert factors[20] == pytest.approx(0.0)


def test_training_learns_to_copy_style(trained):
    """120 conversations, 3 epochs: the loss falls from about ln 400 = 6 nats to well below 3."""
    folder, facts = trained
    curve = [json.loads(line) for line in (folder / "training.jsonl").read_text().splitlines()]
    assert [row["step"] for row in curve] == [5, 10, 15, 20, 25, 30, 35, 40, 45]
    assert curve[0]["loss"] > 4 > 3 > curve[-1]["loss"]
    assert facts["steps"] == 45 and facts["final_loss"] == curve[-1]["loss"]
    assert facts["conversations"] == 120 and facts["left_out_too_long"] == 0


def test_saved_model_loads_with_its_tokenizer_and_end_token(trained):
    folder, facts = trained
    model, tokenizer = load_policy(folder), load_tokenizer(folder)
    assert sum(parameter.numel() for parameter in model.parameters()) == facts["parameters"]
    assert model.config.pad_token_id == model.generation_config.pad_token_id == tokenizer.pad_token_id
    assert model.config.eos_token_id == model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.pad_token == PAD and tokenizer.chat_template == tiny.CHAT_TEMPLATE
    assert (folder / "model.safetensors").is_file()


def test_another_process_gives_the_same_bytes(trained, tmp_path):
    folder, _ = trained
    (tmp_path / "input.jsonl").write_text(
        "".join(json.dumps({"messages": [turn.model_dump() for turn in turns]}) + "\n" for turns in CONVERSATIONS)
    )
    assert load_conversations(tmp_path / "input.jsonl") == CONVERSATIONS
    code = (
        "import sys; from pathlib import Path\n"
        "from plumbline.data_contracts.records import load_conversations\n"
        "from plumbline.tasks.params.tiny_model import TinyModelParams\n"
        "from plumbline.tasks.models.tiny import train_base\n"
        "params = TinyModelParams.model_validate_json(sys.argv[2]); folder = Path(sys.argv[1])\n"
        "train_base(load_conversations(folder / 'input.jsonl'), params, 0, 1, folder / 'out')"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "91", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-c", code, str(tmp_path), SMALL.model_dump_json()]
    (tmp_path / "out").mkdir()
    subprocess.run(arguments, check=True, env=environment, cwd=tmp_path)
    names = sorted(file.name for file in folder.iterdir())
    assert names == sorted(file.name for file in (tmp_path / "out").iterdir())
    assert all((folder / name).read_bytes() == (tmp_path / "out" / name).read_bytes() for name in names)


def test_another_seed_gives_other_weights(trained, tmp_path):
    folder, _ = trained
    train_base(CONVERSATIONS, SMALL, 1, 1, tmp_path)
    assert (folder / "model.safetensors").read_bytes() != (tmp_path / "model.safetensors").read_bytes()


def test_too_long_conversations_are_left_out_and_counted(tmp_path):
    long = conversation(("user", "word " * 400), ("assistant", "No."))
    facts = train_base([*CONVERSATIONS[:16], long], SMALL, 0, 1, tmp_path)
    assert facts["conversations"] == 16 and facts["left_out_too_long"] == 1


def test_nothing_to_learn_from_is_an_error(tmp_path):
    with pytest.raises(ModelError, match="assistant turn of at most 256 tokens, found none among 1"):
        train_base([conversation(("user", "Hello"))], SMALL, 0, 1, tmp_path)
    assert not list(tmp_path.iterdir())


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="choose for instance"):
        TinyModelParams(hidden_size=64, num_attention_heads=3)
