"""Artifacts are whole or absent, and a changed byte is found."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from plumbline.data_contracts import artifact
from plumbline.data_contracts.artifact import (
    MANIFEST,
    Problem,
    full_disk_as_stage_error,
    read_artifact,
    sha256_file,
    verify_artifact,
    write_bytes,
    write_json,
    writing,
)
from plumbline.data_contracts.errors import ArtifactError, StageError

# SHA-256 of b"abc", from FIPS 180-2, appendix B.1.
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def write(path: Path, text: str = "abc", **facts: object) -> None:
    with writing(path, contract="thing", version=1, parents={"raw": "d1"}) as draft:
        (draft.path / "sub").mkdir()
        (draft.path / "sub" / "a.txt").write_text(text)
        draft.facts.update(facts)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_manifest_pins_every_file(tmp_path: Path) -> None:
    write(tmp_path / "out", rows=3)
    found = read_artifact(tmp_path / "out", contract="thing")
    assert found.files == {"sub/a.txt": {"sha256": ABC, "bytes": 3}}
    assert (found.version, found.parents, found.facts) == (1, {"raw": "d1"}, {"rows": 3})
    assert found.digest == sha256_file(tmp_path / "out" / MANIFEST)
    assert verify_artifact(tmp_path / "out") == []


def test_same_inputs_give_the_same_digest(tmp_path: Path) -> None:
    write(tmp_path / "one", b=1, a=2)
    write(tmp_path / "two", a=2, b=1)
    write(tmp_path / "other", a=2, b=3)
    one, two, other = (read_artifact(tmp_path / name).digest for name in ("one", "two", "other"))
    assert one == two != other


def test_rewriting_replaces_the_whole_folder(tmp_path: Path) -> None:
    with writing(tmp_path / "out", contract="thing", version=1) as draft:
        (draft.path / "old.txt").write_text("old")
    write(tmp_path / "out")
    assert sorted(read_artifact(tmp_path / "out").files) == ["sub/a.txt"]
    assert not (tmp_path / "out" / "old.txt").exists()
    assert names(tmp_path) == ["out"]


def test_an_exception_leaves_the_old_artifact_and_no_draft(tmp_path: Path) -> None:
    write(tmp_path / "out")
    before = read_artifact(tmp_path / "out")
    with (
        pytest.raises(RuntimeError, match="midway"),
        writing(tmp_path / "out", contract="thing", version=1) as draft,
    ):
        (draft.path / "half.txt").write_text("half")
        raise RuntimeError("midway")
    assert read_artifact(tmp_path / "out") == before
    assert verify_artifact(tmp_path / "out") == []
    assert names(tmp_path) == ["out"]


def test_a_failing_rename_puts_the_old_artifact_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old folder is already set aside when the new one cannot take its place."""
    write(tmp_path / "out")
    before = read_artifact(tmp_path / "out").digest
    rename = Path.rename

    def refuse_drafts(self: Path, target: Path) -> Path:
        if ".draft-" in self.name:
            raise PermissionError(errno.EACCES, "refused")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse_drafts)
    with pytest.raises(PermissionError):
        write(tmp_path / "out", "new")
    assert read_artifact(tmp_path / "out").digest == before
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("moment", ["inside the block", "between the renames"])
def test_a_killed_writer_leaves_the_old_artifact_and_its_draft_is_swept(tmp_path: Path, moment: str) -> None:
    """SIGKILL runs no handler, so what it leaves must be recognised by the next writer."""
    write(tmp_path / "out")
    before = read_artifact(tmp_path / "out").digest
    script = f"""
        import os, signal
        from pathlib import Path
        from plumbline.data_contracts.artifact import writing
        rename = Path.rename
        def dying(self, target):
            if ".draft-" in self.name:
                os.kill(os.getpid(), signal.SIGKILL)
            return rename(self, target)
        Path.rename = dying
        with writing(Path({str(tmp_path / "out")!r}), contract="thing", version=1) as draft:
            (draft.path / "half.txt").write_text("half")
            if {moment!r} == "inside the block":
                os.kill(os.getpid(), signal.SIGKILL)
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert any(name.startswith(".out.draft-") for name in names(tmp_path))

    with pytest.raises(RuntimeError), writing(tmp_path / "out", contract="thing", version=1):
        assert read_artifact(tmp_path / "out").digest == before
        raise RuntimeError
    assert names(tmp_path) == ["out"]


def test_verify_names_changed_missing_and_extra_files(tmp_path: Path) -> None:
    with writing(tmp_path / "out", contract="thing", version=1) as draft:
        for name in ("changed", "missing", "same"):
            (draft.path / name).write_text("abc")
    (tmp_path / "out" / "changed").write_text("abd")
    (tmp_path / "out" / "missing").unlink()
    (tmp_path / "out" / "extra").write_text("")
    changed = sha256_file(tmp_path / "out" / "changed")
    assert changed != ABC
    assert verify_artifact(tmp_path / "out") == [
        Problem("missing", "a file of the manifest", "no such file"),
        Problem("extra", "no such file", "an extra file"),
        Problem("changed", f"sha256 {ABC}", f"sha256 {changed}"),
    ]


@pytest.mark.parametrize("content", [None, b'{"contract": "thi'])
def test_a_missing_or_half_manifest_is_no_artifact(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(ArtifactError, match=r"expected an artifact with a readable manifest\.json"):
        read_artifact(tmp_path)


def test_another_contract_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "out")
    with pytest.raises(ArtifactError, match="expected contract 'other', found 'thing'"):
        read_artifact(tmp_path / "out", contract="other")


def test_write_bytes_replaces_or_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"b": 1, "a": [1]})
    assert path.read_text() == '{\n  "a": [\n    1\n  ],\n  "b": 1\n}\n'

    def refuse(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(artifact.os, "fsync", refuse)
    with pytest.raises(OSError, match="No space left"):
        write_bytes(path, b"new")
    assert path.read_text().startswith('{\n  "a"')
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_a_stage_error_and_leaves_the_old_artifact(tmp_path: Path, code: int) -> None:
    write(tmp_path / "out")
    with pytest.raises(StageError, match=r"out: could not be written: .*Free disk space"):  # noqa: SIM117
        with writing(tmp_path / "out", contract="thing", version=1):
            raise OSError(code, "No space left on device")
    assert verify_artifact(tmp_path / "out") == []
    assert names(tmp_path) == ["out"]


def test_other_system_errors_keep_their_type(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), full_disk_as_stage_error(tmp_path):
        raise PermissionError(errno.EACCES, "refused")
