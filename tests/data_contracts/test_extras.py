"""Libraries of a single feature: without one, that feature says what to install."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from plumbline.data_contracts.errors import UsageError
from plumbline.tasks.data.feedback.containers import read_lines
from plumbline.tasks.operations.watch_inbox import watch_inbox
from plumbline.tasks.params.whole import Params
from plumbline.tasks.training.examine_labels import examine_labels

LINEAGE = "plumbline.tasks.registry.lineage"


def _module(name: str) -> Callable[[Path], object]:
    return lambda folder: importlib.import_module(name)


def _zstd(folder: Path) -> object:
    path = folder / "feedback.jsonl.zst"
    path.write_bytes(b"\x28\xb5\x2f\xfd" + bytes(64))
    return list(read_lines(path))


def _inbox(folder: Path) -> object:
    return watch_inbox(folder, Params(), print, stop=threading.Event())


def _clinic(folder: Path) -> object:
    return examine_labels(folder, Params(), None, [])


@pytest.mark.parametrize(
    ("extra", "library", "use"),
    [
        ("cyclonedx", "cyclonedx", _module(f"{LINEAGE}.bill_of_materials")),
        ("openlineage", "openlineage", _module(f"{LINEAGE}.openlineage_events")),
        ("zstd", "zstandard", _zstd),
        ("inbox", "watchfiles", _inbox),
        ("clinic", "krippendorff", _clinic),
        ("clinic", "crowdkit", _clinic),
    ],
)
def test_a_feature_without_its_library_names_the_extra(
    extra: str, library: str, use: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == library or name.startswith(f"{LINEAGE}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UsageError, match=rf"expected the library {library}.*pip install 'plumbline\[{extra}\]'"):
        use(tmp_path)
