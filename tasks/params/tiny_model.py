"""Params section `tiny_model`: the causal language model that is trained from scratch when no base is given."""

from __future__ import annotations

from pydantic import Field, model_validator

from plumbline.tasks.params.optimisation import WarmupSteps
from plumbline.tasks.params.section import Section


class TinyModelParams(Section):
    """Shape and training of the tiny base model. Defaults learn the sample world in under a minute of one CPU core."""

    vocab_size: int = Field(1024, ge=300, le=65_536, description="Tokens of the byte-level BPE tokenizer.")
    hidden_size: int = Field(64, ge=8, le=4096, description="Width of the residual stream.")
    num_hidden_layers: int = Field(2, ge=1, le=64, description="Transformer blocks.")
    num_attention_heads: int = Field(
        2, ge=1, le=64, description="Attention heads; hidden_size / num_attention_heads is the width of a head."
    )
    intermediate_size: int = Field(192, ge=8, le=16_384, description="Width of the gated feed-forward layer.")
    max_position_embeddings: int = Field(
        256, ge=32, le=8192, description="Longest conversation in tokens; longer ones are left out and counted."
    )
    num_train_epochs: int = Field(2, ge=1, le=100, description="Passes over the conversations.")
    per_device_train_batch_size: int = Field(16, ge=1, le=1024, description="Conversations an optimiser step.")
    learning_rate: float = Field(5e-3, gt=0, le=1, description="Peak learning rate of AdamW.")
    warmup_steps: WarmupSteps = Field(
        0.03, ge=0, description="Steps in which the rate rises: below 1 a share of all steps, from 1 on their number."
    )
    weight_decay: float = Field(0.01, ge=0, le=1, description="AdamW weight decay.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradient norm above which gradients are scaled down.")
    prompt_loss_weight: float = Field(
        0.0, ge=0, le=1, description="Weight of a prompt token's loss; a token of the assistant counts 1."
    )
    logging_steps: int = Field(25, ge=1, description="Optimiser steps between two rows of the training curve.")

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> TinyModelParams:
        if self.hidden_size % self.num_attention_heads or (self.hidden_size // self.num_attention_heads) % 2:
            raise ValueError(
                f"hidden_size {self.hidden_size} over num_attention_heads {self.num_attention_heads} must be an even "
                "whole number (rotary embeddings turn pairs): choose for instance hidden_size 64 with "
                "num_attention_heads 2"
            )
        return self
