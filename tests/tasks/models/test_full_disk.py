from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors import SafetensorError

from plumbline.data_contracts.errors import StageError
from plumbline.tasks.models.full_disk import full_disk_named


@pytest.mark.parametrize("kind", [RuntimeError, SafetensorError, Exception])
@pytest.mark.parametrize(
    "text",
    [
        "I/O error: No space left on device (os error 28)",
        "Disk quota exceeded (os error 122)",
        "File too large (os error 27)",
        "[enforce fail at inline_container.cc:672] . PytorchStreamWriter failed writing file data/17",
        "[enforce fail at inline_container.cc:664] . unexpected pos 128 vs 22",
    ],
)
def test_a_full_disk_is_named(tmp_path: Path, kind: type[Exception], text: str) -> None:
    with pytest.raises(StageError, match=r"could not be written: no space left for a model.*Free disk space"):  # noqa: SIM117
        with full_disk_named(tmp_path):
            raise kind(text)


def test_an_error_without_words_counts_as_a_full_disk_where_none_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(StageError, match="no space left"), full_disk_named(tmp_path):
        raise RuntimeError("stream failed")


def test_other_errors_pass_through(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes"), full_disk_named(tmp_path):
        raise RuntimeError("shapes do not match")
