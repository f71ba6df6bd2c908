from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from plumbline.data_contracts.artifact import sha256_file
from plumbline.data_contracts.errors import ModelError, StageError
from plumbline.tasks.models.loading import (
    check_vocabulary,
    context_length,
    load_policy,
    load_reward,
    load_tokenizer,
    materialise_base,
    padding_note,
    resolve,
    save_model,
    seed_everything,
)
from tests.tasks.models.tiny_llama import build_model, build_tokenizer


@pytest.fixture
def damaged(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_seeding_fixes_python_numpy_and_torch() -> None:
    drawn = []
    for _ in range(2):
        seed_everything(2**33 + 5, 1)
        drawn.append((random.random(), numpy.random.rand(), torch.rand(1).item()))
    assert drawn[0] == drawn[1]
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.get_num_threads() == 1


def test_what_is_saved_loads_to_the_same_weights_and_saves_to_the_same_bytes(tiny_folder: Path, tmp_path: Path) -> None:
    save_model(load_policy(tiny_folder), load_tokenizer(tiny_folder), tmp_path)
    names = sorted(file.name for file in tiny_folder.iterdir())
    assert {"config.json", "generation_config.json", "chat_template.jinja", "model.safetensors"} <= set(names)
    again = {file.name: sha256_file(file) for file in tmp_path.iterdir()}
    assert again.keys() == set(names)
    differ = [name for name in names if again[name] != sha256_file(tiny_folder / name)]
    # transformers notes in tokenizer_config.json that the tokenizer now comes from a folder, once
    assert differ in ([], ["tokenizer_config.json"])
    for name in names:
        assert str(tiny_folder).encode() not in (tmp_path / name).read_bytes()


def test_a_cut_off_checkpoint_is_named(damaged: Path) -> None:
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"model\.safetensors: expected a whole safetensors file, found .* restore"):
        load_policy(damaged)


def test_pickled_weights_alone_are_refused(damaged: Path) -> None:
    (damaged / "model.safetensors").rename(damaged / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"only pickled weights \(pytorch_model\.bin\), which can run code"):
        load_policy(damaged)
    (damaged / "pytorch_model.bin").unlink()
    with pytest.raises(ModelError, match="found no weights"):
        load_policy(damaged)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 3}, r"found 9 missing \(model\.layers\.2\."),
        ({"intermediate_size": 48}, r"found 6 parameters of other shapes \(model\.layers\.0\.mlp"),
        ({"model_type": "nonesuch"}, "expected a checkpoint that transformers loads, found ValueError"),
    ],
)
def test_a_config_of_another_model_is_refused(damaged: Path, changes: dict[str, Any], message: str) -> None:
    """A Llama layer has 9 parameters (4 attention, 3 MLP, 2 norms); two layers hold 6 MLP matrices."""
    edit_config(damaged, **changes)
    with pytest.raises(ModelError, match=message):
        load_policy(damaged)


def test_config_missing_or_broken(damaged: Path) -> None:
    (damaged / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"Check config\.json against the weights"):
        load_policy(damaged)
    (damaged / "config.json").unlink()
    with pytest.raises(ModelError, match=r"expected config\.json"):
        load_policy(damaged)


def test_weights_that_are_not_numbers_are_named(damaged: Path) -> None:
    tokenizer = load_tokenizer(damaged)
    model = build_model(len(tokenizer))
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    save_model(model, tokenizer, damaged)
    with pytest.raises(ModelError, match=r"NaN or infinity in 1 parameters \(model\.norm\.weight\)"):
        load_policy(damaged)


def test_a_policy_is_no_reward_model_unless_a_new_head_is_asked_for(tiny_folder: Path) -> None:
    with pytest.raises(ModelError, match=r"found 1 missing \(score\.weight\)"):
        load_reward(tiny_folder)
    seed_everything(1, 1)
    one = load_reward(tiny_folder, new_head=True)
    seed_everything(1, 1)
    other = load_reward(tiny_folder, new_head=True)
    assert one.score.weight.shape == (1, 16)
    assert torch.equal(one.score.weight, other.score.weight)


def test_neither_folder_nor_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="neither a folder on this machine nor a valid name"):
        resolve(tmp_path / "nothing")


def test_a_name_that_cannot_be_reached_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import HfApi

    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(HfApi, "model_info", unreachable)
    monkeypatch.setattr("plumbline.tasks.models.loading._cached_snapshot", lambda *_: None)
    with pytest.raises(ModelError, match=r"'someone/model' is no folder here.*could not be fetched.*hf download"):
        resolve("someone/model")


def test_tokenizer_without_pad_takes_unk_or_says_that_pad_is_eos(tmp_path: Path) -> None:
    build_tokenizer(pad=None).save_pretrained(tmp_path / "unk")
    assert load_tokenizer(tmp_path / "unk").pad_token == "<unk>"
    build_tokenizer(pad=None, unk="</s>").save_pretrained(tmp_path / "eos")
    tokenizer = load_tokenizer(tmp_path / "eos")
    assert tokenizer.pad_token == tokenizer.eos_token == "</s>"
    assert "pad and eos are one token" in padding_note(tokenizer)


def test_tokenizer_missing_broken_or_without_eos(damaged: Path, tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "endless")
    with pytest.raises(ModelError, match="names no eos token"):
        load_tokenizer(tmp_path / "endless")
    (damaged / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(ModelError, match="expected a tokenizer"):
        load_tokenizer(damaged)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_folder)
    small = build_model(len(tokenizer) - 1)
    highest = len(tokenizer) - 1
    with pytest.raises(ModelError, match=f"ids reach {highest}, the model embeds ids up to {highest - 1}"):
        check_vocabulary(small, tokenizer)
    with pytest.raises(ModelError, match="do not belong together"):
        save_model(small, tokenizer, tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_a_full_disk_is_a_stage_error(tiny: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors import SafetensorError

    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    model, tokenizer = tiny
    monkeypatch.setattr(model, "save_pretrained", full)
    with pytest.raises(StageError, match="could not be written"):
        save_model(model, tokenizer, tmp_path)


def test_context_length_is_the_shorter_of_both(tiny: tuple[Any, Any]) -> None:
    model, tokenizer = tiny
    assert context_length(model.config) == 128
    tokenizer.model_max_length, before = 40, tokenizer.model_max_length
    assert context_length(model.config, tokenizer) == 40
    tokenizer.model_max_length = before


def test_materialise_base_writes_a_loadable_model_and_its_facts(stories_folder: Path, tmp_path: Path) -> None:
    facts = materialise_base(str(stories_folder), tmp_path / "base", None, False)
    assert facts == {
        "source": "stories260K",
        "revision": None,
        "trust_remote_code": False,
        "architecture": "LlamaForCausalLM",
        "parameters": 260032,
        "dtype": "float32",
        "vocabulary": 512,
        "context_length": 512,
        "end_token": "</s>",
        "padding": "pad and eos are one token ('</s>'); padding is found by position, not by id",
        "default_chat_template": True,
    }
    one, other = load_policy(stories_folder).state_dict(), load_policy(tmp_path / "base").state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert load_policy(tmp_path / "base").generation_config.eos_token_id == [1, 2]
