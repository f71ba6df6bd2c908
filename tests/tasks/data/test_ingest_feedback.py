"""A batch comes into the raw store with its DVC record or waits beside it; a run reads one list; kills lose nothing."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from plumbline.data_contracts.errors import ArtifactError, UsageError, VersioningError
from plumbline.tasks.data.feedback.readings import columns_of
from plumbline.tasks.data.ingest_feedback import ARRIVED, arrived_batches, fixed_raw, ingest_feedback, version_raw
from plumbline.tasks.data.validate_feedback import RAW
from plumbline.tasks.storage.versioning.lock import read_tracked
from plumbline.tasks.storage.versioning.repo import with_repo
from plumbline.tasks.storage.versioning.workspace import Versions, init_versioning


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "workspace"
    (root / RAW).mkdir(parents=True)
    init_versioning(root)
    Versions(root).track(RAW)
    return root


def batch(tmp_path: Path, number: int) -> Path:
    path = tmp_path / f"{number}.jsonl"
    path.write_bytes(orjson.dumps({"prompt": f"p {number}", "chosen": "yes", "rejected": "no"}))
    return path


def stored(root: Path) -> list[bytes]:
    """What the raw store holds, which must be what DVC has on record."""
    listing, _ = with_repo(root, lambda repo: _state(repo, root))
    present = {path.relative_to(root / RAW).as_posix(): path for path in (root / RAW).rglob("*") if path.is_file()}
    assert sorted(listing) == sorted(present)
    return sorted(path.read_bytes() for path in present.values())


def _state(repo: object, root: Path) -> tuple[list[str], object]:
    from plumbline.tasks.storage.versioning import workspace as module

    out = module._find_out(repo, root / RAW)  # type: ignore[arg-type]
    assert out is not None and not out.workspace_status()
    return list(module._files_of(out.get_obj())), out


def test_a_batch_comes_in_with_its_record(tmp_path: Path, root: Path) -> None:
    (first,) = ingest_feedback(root, "human_pairs", [batch(tmp_path, 1)])
    assert first.new and first.path.is_file() and first.rows == 1
    (again,) = ingest_feedback(root, "human_pairs", [batch(tmp_path, 1)])
    assert (again.path, again.new) == (first.path, False)
    assert stored(root) == [batch(tmp_path, 1).read_bytes()]
    assert not arrived_batches(root)


def test_what_arrives_during_a_run_comes_in_at_its_end(tmp_path: Path, root: Path) -> None:
    ingest_feedback(root, "human_pairs", [batch(tmp_path, 1)])
    before = read_tracked(root)
    with fixed_raw(root):
        for _ in range(2):
            (second,) = ingest_feedback(root, "human_pairs", [batch(tmp_path, 2)])
            assert not second.path.exists()
        version_raw(root)
        (known,) = ingest_feedback(root, "human_pairs", [batch(tmp_path, 1)])
        assert not known.new
        assert read_tracked(root) == before
        assert [name for _, name, _ in arrived_batches(root)] == [second.path.relative_to(root).as_posix()]
    assert second.path.is_file() and read_tracked(root) != before
    assert stored(root) == sorted(batch(tmp_path, n).read_bytes() for n in (1, 2))


def test_a_run_that_fails_still_lets_in_what_arrived(tmp_path: Path, root: Path) -> None:
    with pytest.raises(KeyError), fixed_raw(root):
        ingest_feedback(root, "human_pairs", [batch(tmp_path, 1)])
        raise KeyError
    assert stored(root) == [batch(tmp_path, 1).read_bytes()]


def test_a_dvc_command_that_reads_the_store_is_not_disturbed(tmp_path: Path, root: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as reader:
        table = {"read": {str(root / RAW): [{"pid": reader.pid, "cmd": "dvc repro"}]}, "write": {}}
        (root / ".dvc/tmp").mkdir(exist_ok=True)
        (root / ".dvc/tmp/rwlock").write_bytes(orjson.dumps(table))
        (first,) = ingest_feedback(root, "human_pairs", [batch(tmp_path, 1)])
        assert not first.path.exists() and len(arrived_batches(root)) == 1
        reader.kill()
    version_raw(root)
    assert stored(root) == [batch(tmp_path, 1).read_bytes()]


POINTS = {
    "accepted, not in the store": ("plumbline.tasks.data.ingest_feedback", "_bring_in"),
    "before the first move": ("plumbline.tasks.data.ingest_feedback", "_move_in"),
    "before the second move": ("plumbline.tasks.data.ingest_feedback", "_move"),
    "in the store, not on record": ("dvc.repo:Repo", "add"),
    "while the record is written": ("plumbline.tasks.storage.versioning.whole_files", "write_bytes"),
}


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_any_point_loses_nothing(tmp_path: Path, root: Path, point: str) -> None:
    """Two batches; the child dies in the place named (in the second call of `_move`). The next command completes it."""
    where, name = POINTS[point]
    files = [batch(tmp_path, n) for n in (1, 2)]
    script = f"""
        import importlib, os, signal
        from pathlib import Path
        from plumbline.tasks.data import ingest_feedback
        owner = {where!r}
        module, _, attribute = owner.rpartition(":")
        place = getattr(importlib.import_module(module), attribute) if module else importlib.import_module(owner)
        real, calls = getattr(place, {name!r}), []
        def die(*arguments, **named):
            calls.append(1)
            if {name!r} == "_move" and len(calls) < 2:
                return real(*arguments, **named)
            os.kill(os.getpid(), signal.SIGKILL)
        setattr(place, {name!r}, die)
        ingest_feedback.ingest_feedback(Path({str(root)!r}), "human_pairs", {[str(file) for file in files]!r})
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    with fixed_raw(root):
        assert stored(root) == sorted(file.read_bytes() for file in files)
    assert not any(each.new for each in ingest_feedback(root, "human_pairs", files))


def test_what_a_kill_of_an_older_version_left_is_taken_in(tmp_path: Path, root: Path) -> None:
    """A batch in the store without a record, and half of another under a temporary name."""
    folder = root / RAW / "human_pairs"
    folder.mkdir()
    (folder / "0123456789abcdef.jsonl").write_bytes(batch(tmp_path, 1).read_bytes())
    (folder / ".incoming-x1").write_bytes(b"{")
    version_raw(root)
    assert stored(root) == [batch(tmp_path, 1).read_bytes()]


def edit(path: Path) -> None:
    path.chmod(0o600)
    path.write_bytes(b"edited")


@pytest.mark.parametrize("damage", [edit, Path.unlink])
def test_a_batch_that_was_changed_or_removed_comes_back_and_takes_none_with_it(
    tmp_path: Path, root: Path, damage: Callable[[Path], None]
) -> None:
    (first,) = ingest_feedback(root, "human_pairs", [batch(tmp_path, 1)])
    damage(first.path)
    with pytest.raises(VersioningError, match=r"append-only.*doctor --fix") as refused, fixed_raw(root):
        pass
    assert "checkout" not in str(refused.value) and "--force" not in str(refused.value)
    with pytest.raises(VersioningError, match="append-only"):
        ingest_feedback(root, "human_pairs", [batch(tmp_path, 2)])
    aside, name = tmp_path / "aside", first.path.relative_to(root / RAW).as_posix()
    assert Versions(root).changed_tracked(RAW) == [name]
    assert Versions(root).mend_tracked(RAW, aside) == [name]
    assert [path.read_bytes() for path in aside.glob("*")] == ([b"edited"] if damage is edit else [])
    version_raw(root)
    assert stored(root) == sorted(batch(tmp_path, n).read_bytes() for n in (1, 2))
    assert Versions(root).changed_tracked(RAW) == []


def test_a_changed_batch_is_named_when_it_comes_again(tmp_path: Path, root: Path) -> None:
    (first,) = ingest_feedback(root, "human_pairs", [batch(tmp_path, 1)])
    edit(first.path)
    with pytest.raises(ArtifactError, match="doctor --fix"):
        ingest_feedback(root, "human_pairs", [batch(tmp_path, 1)])


def test_a_refused_file_leaves_the_store_as_it_was(tmp_path: Path, root: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(UsageError, match="empty file"):
        ingest_feedback(root, "human_pairs", [batch(tmp_path, 1), tmp_path / "empty"])
    assert stored(root) == [batch(tmp_path, 1).read_bytes()]
    assert not list((root / ARRIVED).rglob("*.jsonl"))


def test_a_map_comes_in_with_its_batch_and_a_later_one_by_itself(tmp_path: Path, root: Path) -> None:
    """`stored` compares what lies in the store with what DVC has on record."""
    path = tmp_path / "table.jsonl"
    path.write_bytes(orjson.dumps({"q": "p", "x": "yes", "y": "no"}))
    named = {"prompt": "q", "chosen": "x", "rejected": "y"}
    (first,) = ingest_feedback(root, None, [path], columns=named)
    assert len(stored(root)) == 2 and columns_of(first.path) == named
    with fixed_raw(root):
        ingest_feedback(root, None, [path], columns={**named, "chosen": "y", "rejected": "x"})
        assert columns_of(first.path) == named
    assert len(stored(root)) == 3 and columns_of(first.path)["chosen"] == "y"
    (again,) = ingest_feedback(root, None, [path])
    assert (again.new, len(stored(root))) == (False, 3)
