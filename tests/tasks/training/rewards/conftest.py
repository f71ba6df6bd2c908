"""A tiny policy as a folder, and pairs whose preference can be learned from one word."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from plumbline.data_contracts.records import CuratedPair, Message, Origin
from plumbline.tasks.models.chat import set_default_template
from plumbline.tasks.models.loading import save_model
from tests.tasks.models.tiny_llama import WORDS, build_model, build_tokenizer


def make_pairs(count: int, seed: int) -> list[CuratedPair]:
    """The chosen response begins with "yes", the rejected one with "no"; the rest is random words."""
    draw = random.Random(seed)

    def words() -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(1, 6)))

    return [
        CuratedPair(
            id=f"{seed}-{row}",
            prompt=(Message(role="user", content=words()),),
            chosen=f"yes {words()}",
            rejected=f"no {words()}",
            source="test",
            origin=Origin(file="made", line=row + 1),
            cluster=str(row),
        )
        for row in range(count)
    ]


@pytest.fixture(scope="session")
def policy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    tokenizer = build_tokenizer()
    set_default_template(tokenizer)
    save_model(build_model(len(tokenizer)), tokenizer, folder)
    return folder


@pytest.fixture(scope="session")
def pairs() -> tuple[list[CuratedPair], list[CuratedPair]]:
    return make_pairs(72, 1), make_pairs(20, 2)


@pytest.fixture(scope="session")
def stories_folder() -> Path:
    folder = Path(__file__).parents[5] / "shared" / "models" / "stories260K"
    if not folder.is_dir():
        pytest.skip("../shared/models/stories260K is not here")
    return folder
