"""The checkpoint of a registered version, verified before anything of it is loaded."""

from __future__ import annotations

from pathlib import Path

from plumbline.data_contracts.errors import SignatureError
from plumbline.tasks.registry.signing.keys import verifying_key
from plumbline.tasks.registry.store.client import Store
from plumbline.tasks.registry.versions.registered import StoredFiles, Version

CHECKPOINT = "model"
# What an answer depends on beside the weights: (what it is, the files of which one must be there).
NEEDED = (
    ("the model's configuration", ("config.json",)),
    ("a tokenizer", ("tokenizer.json", "tokenizer.model", "vocab.json")),
    ("the tokenizer's settings", ("tokenizer_config.json",)),
    ("a chat template", ("chat_template.jinja", "chat_template.json")),
    ("generation settings", ("generation_config.json",)),
)


def verified_version(store: Store, version: Version, root: Path) -> Path:
    """The folder with everything registered of a version, its signature, seal and every hash verified.

    `root` is the workspace whose key is trusted. Raises `SignatureError` for a version that is unsigned, changed,
    signed with another key or put in the place of another.
    """
    stored = StoredFiles(store, version)
    stored.require_signed(verifying_key(root, store.params))
    return stored.folder


def verified_model(store: Store, version: Version, root: Path) -> Path:
    """The folder of a version's checkpoint, verified, with the tokenizer, chat template and generation settings.

    Raises `SignatureError`, also where one of those is not part of what was signed.
    """
    folder = verified_version(store, version, root) / CHECKPOINT
    missing = [what for what, names in NEEDED if not any((folder / name).is_file() for name in names)]
    if missing:
        raise SignatureError(
            f"{version.uri}: expected a checkpoint that can answer by itself, found it signed without "
            f"{', '.join(missing)}. It would answer with another's: train and register it again."
        )
    return folder
