"""The frame of every training around TRL: resuming, and failures with a name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import PrinterCallback, Trainer, TrainerState

from plumbline.data_contracts.errors import StageError
from plumbline.data_contracts.private_names import require_names
from plumbline.tasks.models.callbacks import stop_reason
from plumbline.tasks.models.checkpoints import drop_unfinished, newest_whole, read_state
from plumbline.tasks.models.full_disk import full_disk_named
from plumbline.tasks.models.processes import first_alone, is_first

# called below; overridden in tasks.models.length_groups
require_names("transformers", Trainer, "_load_best_model", "_get_train_sampler", "_determine_best_metric")


def train(trainer: Trainer, runs_in: Path) -> TrainerState:
    """Train to the end, from the newest whole checkpoint of `runs_in` if there is one; return the last state.

    A run that early stopping had ended when it was killed takes no further step: its best checkpoint is loaded.
    Raises `StageError` when the disk or the accelerator's memory is full; no half-written checkpoint stays.
    """
    trainer.remove_callback(PrinterCallback)  # it prints each log row to stdout
    with _named_failures(runs_in):
        # the first process removes what is damaged before another looks
        checkpoint = first_alone(lambda: newest_whole(runs_in))
        if checkpoint is None or stop_reason(read_state(checkpoint)["stateful_callbacks"]) is None:
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
            return trainer.state
        trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        trainer._load_best_model()
        return trainer.state


@contextmanager
def _named_failures(runs_in: Path) -> Iterator[None]:
    try:
        with full_disk_named(runs_in):
            yield
    except torch.OutOfMemoryError as error:
        raise StageError(
            "The accelerator ran out of memory. Lower per_device_train_batch_size (and raise "
            "gradient_accumulation_steps by the same factor), set bf16 or gradient_checkpointing, or train "
            "adapters (lora)."
        ) from error
    except StageError:
        if is_first():
            drop_unfinished(runs_in)
        raise


def library_versions(*others: str) -> dict[str, str]:
    """Versions of the libraries that the numbers of a training depend on."""
    return {name: version(name) for name in ("torch", "transformers", "trl", *others)}
