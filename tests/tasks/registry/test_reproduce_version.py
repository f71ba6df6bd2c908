"""A reproduction that is resumed. The whole: tests/flows/test_reproduce.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from plumbline.data_contracts.errors import SignatureError
from plumbline.tasks.registry.reproduce_version import open_reproduction
from plumbline.tasks.registry.store.client import Store
from plumbline.tasks.registry.versions.registered import StoredFiles, resolve

pytestmark = pytest.mark.slow

if TYPE_CHECKING:
    from tests.tasks.conftest import World


@pytest.mark.long
def test_a_version_that_was_changed_meanwhile_is_not_resumed(world: World) -> None:
    world.register()
    open_reproduction(world.root, "models:/assistant/1", world.registry, None)
    open_reproduction(world.root, "models:/assistant/1", world.registry, None)
    store = Store(world.root, world.registry)
    path = StoredFiles(store, resolve(store, "assistant")).folder / "manifest.json"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(SignatureError, match="It is not what was registered"):
        open_reproduction(world.root, "models:/assistant/1", world.registry, None)
