"""A store that is not on this machine: its artifacts are under a scheme that is no file, and are copied on request."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException

from plumbline.data_contracts.errors import RegistryError
from plumbline.tasks.registry.store import fetching
from plumbline.tasks.registry.store.fetching import CACHE


@pytest.fixture
def remote(registry: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The downloads so far; nothing is in place any more."""
    asked: list[str] = []

    def download(*, artifact_uri: str, dst_path: str, tracking_uri: str) -> str:
        asked.append(artifact_uri)
        if "refuse" in asked:
            raise MlflowException("the server is down")
        source = real(artifact_uri)
        assert source is not None
        shutil.copytree(source, dst_path, dirs_exist_ok=True)
        return dst_path

    real = fetching.in_place
    monkeypatch.setattr("mlflow.artifacts.download_artifacts", download)
    monkeypatch.setattr("plumbline.tasks.registry.versions.stored.in_place", lambda location: None)
    return asked


def test_a_version_is_downloaded_once_and_verified(registry: Any, remote: list[str]) -> None:
    version = registry.register("a")
    shutil.rmtree(registry.root / CACHE)
    remote.clear()
    first, second = registry.stored(version), registry.stored(version)
    assert (len(remote), first.folder) == (1, second.folder)
    home = registry.root / CACHE
    assert first.folder.is_relative_to(home / version.tags["plumbline.manifest_sha256"])
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    second.require_signed()
    (first.folder / "model/weights.bin").write_text("poison")
    third = registry.stored(version)
    third.require_signed()
    assert len(remote) == 2
    assert sorted(path.name[:6] for path in first.folder.parent.iterdir()) == [first.folder.name[:6]]


def test_a_refused_download_is_named(registry: Any, remote: list[str]) -> None:
    version = registry.register("a")
    remote.append("refuse")
    for path in (registry.root / CACHE).iterdir():
        shutil.rmtree(path)
    with pytest.raises(RegistryError, match="MLflow refused: the server is down"):
        registry.stored(version)


def test_what_is_fetched_for_a_moment_is_removed(registry: Any, remote: list[str], tmp_path: Path) -> None:
    folder = registry.root / "artifacts"
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_text("{}")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fetching, "in_place", lambda location: None)
        patched.setattr(
            "mlflow.artifacts.download_artifacts",
            lambda **given: shutil.copytree(folder, given["dst_path"], dirs_exist_ok=True),
        )
        with fetching.fetched(registry.store, "s3://bucket/version") as found:
            assert (found / "manifest.json").is_file()
    assert not found.exists()
