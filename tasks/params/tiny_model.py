"""Params section `tiny_model`: the causal language model that is trained from scratch when no base is given."""

from __future__ import annotations

from pydantic import Field, model_validator

from plumbline.tasks.params.section import Section


class TinyModelParams(Section):
    """Shape and training of the tiny base model. Defaults learn the sample world in under a minute of one CPU core."""

    vocab_size: int = Field(1024, ge=300, le=65_536, description="Tokens of the byte-level BPE tokenizer.")
    hidden_size: int = Field(64, ge=8, le=4096, description="Width of the residual stream.")
    layers: int = Field(2, ge=1, le=64, description="Transformer blocks.")
    heads: int = Field(2, ge=1, le=64, description="Attention heads; hidden_size / heads is the width of a head.")
    ffn_size: int = Field(192, ge=8, le=16_384, description="Width of the gated feed-forward layer.")
    context_length: int = Field(
        256, ge=32, le=8192, description="Longest conversation in tokens; longer ones are left out and counted."
    )
    epochs: int = Field(2, ge=1, le=100, description="Passes over the conversations.")
    batch_size: int = Field(16, ge=1, le=1024, description="Conversations an optimiser step.")
    lr: float = Field(5e-3, gt=0, le=1, description="Peak learning rate of AdamW.")
    warmup_ratio: float = Field(0.03, ge=0, lt=1, description="Share of the steps in which the learning rate rises.")
    weight_decay: float = Field(0.01, ge=0, le=1, description="AdamW weight decay.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradient norm above which gradients are scaled down.")
    prompt_loss_weight: float = Field(
        0.0, ge=0, le=1, description="Weight of a prompt token's loss; a token of the assistant counts 1."
    )
    log_every: int = Field(25, ge=1, description="Optimiser steps between two rows of the training curve.")

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> TinyModelParams:
        if self.hidden_size % self.heads or (self.hidden_size // self.heads) % 2:
            raise ValueError(
                f"hidden_size {self.hidden_size} over heads {self.heads} must be an even whole number "
                "(rotary embeddings turn pairs): choose for instance hidden_size 64 with heads 2"
            )
        return self
