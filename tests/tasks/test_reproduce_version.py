"""A reproduction that is resumed. The whole: tests/flows/test_reproduce.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from data_contracts.errors import SignatureError
from tasks.registry.client import Store
from tasks.registry.versions import StoredFiles, resolve
from tasks.reproduce_version import open_reproduction

if TYPE_CHECKING:
    from tests.tasks.conftest import World


def test_a_version_that_was_changed_meanwhile_is_not_resumed(world: World) -> None:
    world.register()
    open_reproduction(world.root, "models:/assistant/1", world.registry, None)
    open_reproduction(world.root, "models:/assistant/1", world.registry, None)
    store = Store(world.root, world.registry)
    path = StoredFiles(store, resolve(store, "assistant")).folder / "manifest.json"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(SignatureError, match="It is not what was registered"):
        open_reproduction(world.root, "models:/assistant/1", world.registry, None)
