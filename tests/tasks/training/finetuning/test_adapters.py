from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from plumbline.tasks.models.loading import load_policy, load_tokenizer
from plumbline.tasks.params.method_sections import LoraParams
from plumbline.tasks.training.finetuning.adapters import ADAPTER, lora_config, save_policy

NAME = "model.layers.0.self_attn.q_proj.weight"


def test_no_section_means_all_weights() -> None:
    assert lora_config(None) is None


def test_a_plain_model_is_written_as_it_is(reference: Path, tmp_path: Path) -> None:
    save_policy(load_policy(reference), load_tokenizer(reference), tmp_path)
    before, after = load_file(reference / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not (tmp_path / ADAPTER).exists()


def test_an_adapter_is_merged_and_kept_without_a_path_of_this_machine(reference: Path, tmp_path: Path) -> None:
    """With A all 1 (2 x 16), B all 0.5 (16 x 2) and alpha / r = 3, each weight rises by 3 * (0.5 + 0.5) = 3."""
    from peft import get_peft_model

    model = get_peft_model(
        load_policy(reference), lora_config(LoraParams(r=2, lora_alpha=6.0, target_modules=("q_proj",)))
    )
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "lora_" in name:
                weights.fill_(1.0 if "lora_A" in name else 0.5)
    save_policy(model, load_tokenizer(reference), tmp_path)
    before, after = load_file(reference / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert before.keys() == after.keys()
    assert torch.allclose(after[NAME], before[NAME] + 3.0, atol=1e-6)
    assert all(torch.equal(after[name], before[name]) for name in before if name != NAME)
    assert (tmp_path / ADAPTER / "adapter_model.safetensors").is_file()
    assert str(reference) not in (tmp_path / ADAPTER / "adapter_config.json").read_text()
