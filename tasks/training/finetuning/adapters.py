"""Low-rank adapters: from params to peft's config, and from a trained adapter to one model on disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from plumbline.tasks.models.full_disk import full_disk_named
from plumbline.tasks.models.loading import save_model
from plumbline.tasks.params.method_sections import LoraParams

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ADAPTER = "adapter"
"""Folder of the adapter beside the merged weights of a policy."""


def lora_config(lora: LoraParams | None) -> Any:
    """PEFT's LoraConfig; None if all weights are trained."""
    if lora is None:
        return None
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM",
        **lora.model_dump(mode="json"),
    )


def save_policy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the policy as one model; an adapter is kept beside it and merged into the weights."""
    if not hasattr(model, "merge_and_unload"):
        save_model(model, tokenizer, folder)
        return
    # as it was loaded, this would be a path of this machine
    model.peft_config["default"].base_model_name_or_path = "models/reference"
    with full_disk_named(folder):
        model.save_pretrained(folder / ADAPTER, save_embedding_layers=False)
    (folder / ADAPTER / "README.md").unlink(missing_ok=True)
    save_model(model.merge_and_unload(), tokenizer, folder)
