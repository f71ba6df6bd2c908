"""A random tiny model as a folder, and the story model where it is at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from plumbline.tasks.models.chat import set_default_template
from plumbline.tasks.models.loading import load_policy, load_tokenizer, save_model
from tests.tasks.models.tiny_llama import build_model, build_tokenizer


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = build_tokenizer()
    set_default_template(tokenizer)
    save_model(build_model(len(tokenizer)), tokenizer, folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> tuple[Any, Any]:
    torch.set_num_threads(1)
    return load_policy(tiny_folder), load_tokenizer(tiny_folder)


@pytest.fixture(scope="session")
def stories_folder() -> Path:
    folder = Path(__file__).parents[4] / "shared" / "models" / "stories260K"
    if not folder.is_dir():
        pytest.skip("../shared/models/stories260K is not here")
    return folder
