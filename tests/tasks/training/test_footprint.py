"""Disk of a run, by hand: 4 bytes a kept parameter; 3 checkpoints of 12 bytes a trained parameter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from plumbline.data_contracts.errors import ModelError
from plumbline.data_contracts.records import Message
from plumbline.tasks.models.tiny import build_model, train_tokenizer
from plumbline.tasks.params.method_sections import LoraParams
from plumbline.tasks.params.tiny_model import TinyModelParams
from plumbline.tasks.params.whole import Params
from plumbline.tasks.training.footprint import (
    Footprint,
    adapter_parameters,
    footprints,
    parameters,
    read_shapes,
    tiny_shapes,
)

SHAPES = {"embed_tokens.weight": (10, 4), "layers.0.q_proj.weight": (4, 4), "layers.0.norm.weight": (4,)}


def test_shapes_are_read_from_the_files(tmp_path: Path) -> None:
    save_file({name: np.zeros(shape, np.float16) for name, shape in SHAPES.items()}, tmp_path / "model.safetensors")
    assert read_shapes(tmp_path) == SHAPES
    assert parameters(SHAPES) == 60


def test_a_folder_without_whole_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="found none"):
        read_shapes(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no")
    with pytest.raises(ModelError, match="whole safetensors"):
        read_shapes(tmp_path)


def test_adapters_of_the_linear_layers() -> None:
    """Rank 2 of a 4 x 4 layer: 2 · (4 + 4) = 16; the embedding and the norm have none."""
    assert adapter_parameters(SHAPES, LoraParams(r=2)) == 16
    assert adapter_parameters(SHAPES, LoraParams(r=2, target_modules=("k_proj",))) == 0


def test_the_tiny_models_parameters_are_those_it_is_built_with() -> None:
    """As built, less the norms, which are vectors."""
    tiny = TinyModelParams(vocab_size=300, hidden_size=16, num_hidden_layers=2, intermediate_size=32)
    conversation = [Message(role="user", content="abc"), Message(role="assistant", content="def")]
    built = build_model(train_tokenizer([conversation], tiny), tiny)
    tiny = tiny.model_copy(update={"vocab_size": built.config.vocab_size})
    matrices = sum(weight.numel() for weight in built.parameters() if weight.dim() == 2)
    assert parameters(tiny_shapes(tiny)) == matrices


def test_what_each_stage_takes() -> None:
    params = Params.model_validate({"reward": {"held_out_share": 0.0}, "reference": {"sft": {"enabled": False}}})
    found = footprints(params, SHAPES, 1000)
    assert found["base"] == Footprint(240)
    assert found["curate"] == Footprint(1000)
    assert found["reference"] == Footprint(240, 0)
    assert found["reward"] == Footprint(240, 3 * 12 * 60)
    assert found["finetune"] == Footprint(240, 3 * 12 * 60 + 240)


def test_adapters_and_a_critic_change_what_a_method_takes() -> None:
    """DPO with adapters of rank 1: 8 trained parameters. PPO trains a critic as large as the policy beside it."""
    methods = {"methods": ["dpo", "ppo"], "dpo": {"lora": {"r": 1}}, "stage_reference": "reference"}
    found = footprints(Params.model_validate({"finetune": methods}), SHAPES, 0)
    assert found["finetune"].working == 36 * 8 + 240 + 36 * 120 + 240
