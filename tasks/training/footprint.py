"""Disk that a run takes, stage by stage: outputs that stay, and checkpoints that go with the end of their stage.

An estimate from the shapes of the weights: every model is kept in float32 (4 bytes a parameter), a checkpoint holds
the weights and AdamW's two moments (12 bytes a trained parameter), and a trainer keeps three checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from plumbline.data_contracts.errors import ModelError
from plumbline.tasks.models.trainer_args import KEPT_CHECKPOINTS
from plumbline.tasks.params.method_sections import LoraParams
from plumbline.tasks.params.tiny_model import TinyModelParams
from plumbline.tasks.params.whole import Params

KEPT_BYTES = 4
TRAINED_BYTES = 12

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes of a stage: `kept` of its output, `working` of checkpoints while it runs."""

    kept: int
    working: int = 0


def read_shapes(folder: Path) -> Shapes:
    """Name -> shape of every weight in the safetensors files of a folder; the weights themselves are not read."""
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="numpy") as weights:
                shapes |= {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{file}: expected a whole safetensors file, found: {error}. Copy or restore it again."
            ) from error
    if not shapes:
        raise ModelError(f"{folder}: expected weights (*.safetensors), found none. Point to the model's folder.")
    return shapes


def tiny_shapes(tiny: TinyModelParams) -> Shapes:
    """As `read_shapes`, for the tiny model before it is built: its projections, and the embedding tied to the head."""
    width, wide = (tiny.hidden_size, tiny.hidden_size), (tiny.intermediate_size, tiny.hidden_size)
    block = {name: width for name in ("q_proj", "k_proj", "v_proj", "o_proj")} | {
        name: wide for name in ("gate_proj", "up_proj", "down_proj")
    }
    shapes = {
        f"layers.{layer}.{name}.weight": shape
        for layer in range(tiny.num_hidden_layers)
        for name, shape in block.items()
    }
    return {"embed_tokens.weight": (tiny.vocab_size, tiny.hidden_size), **shapes}


def parameters(shapes: Shapes) -> int:
    """Count the parameters of the weights."""
    return sum(math.prod(shape) for shape in shapes.values())


def adapter_parameters(shapes: Shapes, lora: LoraParams) -> int:
    """Count the parameters of the adapters: r · (rows + columns) of each linear layer that is adapted."""
    return sum(
        lora.r * sum(shape)
        for name, shape in shapes.items()
        if len(shape) == 2 and _is_adapted(name.removesuffix(".weight").rpartition(".")[2], lora)
    )


def _is_adapted(layer: str, lora: LoraParams) -> bool:
    if lora.target_modules == "all-linear":
        return "embed" not in layer and layer not in ("lm_head", "wte", "wpe", "score")
    return layer in lora.target_modules


def footprints(params: Params, shapes: Shapes, feedback_bytes: int) -> dict[str, Footprint]:
    """The footprint of each stage, by its name, for feedback of this size; the sample world itself is not estimated."""
    model = KEPT_BYTES * parameters(shapes)
    training = KEPT_CHECKPOINTS * TRAINED_BYTES * parameters(shapes)
    judges = 2 if params.reward.held_out_share > 0 else 1
    return {
        "base": Footprint(model),
        "validate": Footprint(feedback_bytes),
        "curate": Footprint(feedback_bytes),
        "reference": Footprint(model, training if params.reference.sft.enabled else 0),
        "reward": Footprint(judges * model, judges * training),
        "finetune": Footprint(model, sum(_of_method(params, name, shapes) for name in params.finetune.methods)),
    }


def _of_method(params: Params, name: str, shapes: Shapes) -> int:
    """Checkpoints of one method, and the model that it hands to the next; PPO trains a critic of the same size too."""
    lora: LoraParams | None = getattr(params.finetune, name).lora
    whole = parameters(shapes)
    trained = adapter_parameters(shapes, lora) if lora is not None else whole
    critic = whole if name == "ppo" else 0
    return KEPT_CHECKPOINTS * TRAINED_BYTES * (trained + critic) + KEPT_BYTES * whole
