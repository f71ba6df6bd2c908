"""The inbox: when a file is whole, where it goes, tricks, crashes; and a watcher that really runs."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from plumbline.data_contracts.errors import OperationsError, UsageError
from plumbline.flows.graph.workspaces import init_workspace
from plumbline.tasks.operations.announce import open_outbox
from plumbline.tasks.operations.freshness.outbox import pending
from plumbline.tasks.operations.intake.inbox import Inbox
from plumbline.tasks.operations.watch_inbox import scan_inbox, watch_inbox
from plumbline.tasks.params.document import save_params
from plumbline.tasks.params.layers import load_params

ROW = '{"prompt": "q?", "chosen": "yes", "rejected": "no"}\n'


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def taken() -> list[tuple[str, str]]:
    return []


@pytest.fixture
def inbox(tmp_path: Path, clock: Clock, taken: list[tuple[str, str]]) -> Inbox:
    def take(source: str, path: Path) -> str:
        if path.read_text() == "busy":
            raise OperationsError("the workspace is busy")
        if not path.read_text():
            raise UsageError(f"{path}: an empty file")
        taken.append((source, path.read_text()))
        return f"{len(taken):064x}"

    made = Inbox(tmp_path / "inbox", ("human_pairs",), take, settle_s=5.0, clock=clock)
    made.prepare()
    return made


def drop(inbox: Inbox, name: str, text: str = ROW, *, old: bool = True, source: str = "human_pairs") -> Path:
    path = inbox.folder / source / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    if old:
        os.utime(path, (1, 1))
    return path


def test_a_settled_file_is_taken_and_moved_under_its_digest(inbox: Inbox, taken: list[tuple[str, str]]) -> None:
    path = drop(inbox, "a.jsonl")
    assert [item.outcome for item in inbox.scan()] == ["done"]
    assert taken == [("human_pairs", ROW)] and not path.exists()
    assert [item.name for item in (inbox.folder / ".done" / "human_pairs").iterdir()] == [f"{'0' * 16}-a.jsonl"]


def test_a_file_that_grows_is_waited_for(inbox: Inbox, clock: Clock, taken: list[tuple[str, str]]) -> None:
    path = drop(inbox, "a.jsonl", old=False)
    os.utime(path, (time.time() + 9e6, time.time() + 9e6))  # a clock that is ahead tells nothing
    assert inbox.scan() == [] and inbox.settling()
    clock.now = 4
    path.write_text(ROW * 2)
    os.utime(path, (time.time() + 9e6, time.time() + 9e6))
    assert inbox.scan() == []
    clock.now = 8  # 8 s since it came, 4 s since it changed
    assert inbox.scan() == [] and taken == []
    clock.now = 9
    assert [item.outcome for item in inbox.scan()] == ["done"] and taken == [("human_pairs", ROW * 2)]


@pytest.mark.parametrize("name", [".hidden", "a.jsonl.part", "a.tmp", "a~", "a.crdownload"])
def test_unfinished_names_are_left_alone(inbox: Inbox, name: str) -> None:
    path = drop(inbox, name)
    assert inbox.scan() == [] and path.exists()


def test_what_is_at_fault_is_refused_with_a_reason(inbox: Inbox) -> None:
    drop(inbox, "empty.jsonl", "")
    drop(inbox, "b.jsonl", source="unknown")
    (inbox.folder / "beside.jsonl").write_text(ROW)
    os.utime(inbox.folder / "beside.jsonl", (1, 1))
    assert [item.outcome for item in inbox.scan()] == ["refused"] * 3
    refused = inbox.folder / ".refused"
    assert (refused / "human_pairs" / "empty.jsonl.reason.txt").read_text() == "empty.jsonl: an empty file\n"
    assert "'unknown'" in (refused / "b.jsonl.reason.txt").read_text()
    assert "human_pairs/" in (refused / "beside.jsonl.reason.txt").read_text()


def test_links_and_pipes_are_refused_unread(inbox: Inbox, tmp_path: Path, taken: list[tuple[str, str]]) -> None:
    secret = tmp_path / "secret"
    secret.write_text(ROW)
    (inbox.folder / "human_pairs" / "link.jsonl").symlink_to(secret)
    os.mkfifo(inbox.folder / "human_pairs" / "pipe.jsonl")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "c.jsonl").write_text(ROW)
    (inbox.folder / "linked").symlink_to(outside)
    assert sorted(item.outcome for item in inbox.scan()) == ["refused"] * 3
    assert taken == [] and secret.read_text() == ROW and (outside / "c.jsonl").exists()


def test_an_inbox_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "inbox").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="a link or a file"):
        Inbox(tmp_path / "inbox", ("human_pairs",), lambda *_: "", 1.0).scan()


def test_what_is_not_the_files_fault_is_kept_and_not_tried_at_once(inbox: Inbox, clock: Clock) -> None:
    path = drop(inbox, "a.jsonl", "busy")
    assert [item.outcome for item in inbox.scan()] == ["kept"]
    assert path.read_text() == "busy" and inbox.scan() == []
    clock.now = inbox.retry_s
    assert [item.outcome for item in inbox.scan()] == ["kept"]


def test_what_a_crash_left_is_taken_at_the_next_start(inbox: Inbox, taken: list[tuple[str, str]]) -> None:
    left = inbox.folder / ".taking" / "human_pairs" / "0a1b2c3d-a.jsonl"
    left.write_text(ROW)
    assert [(item.name, item.outcome) for item in inbox.scan()] == [("a.jsonl", "done")]
    assert taken and not left.exists()


def test_long_and_equal_names_all_find_a_place(inbox: Inbox) -> None:
    for text in ("1", "2"):
        drop(inbox, "ü" * 120 + ".jsonl", text)
        assert [item.outcome for item in inbox.scan()] == ["done"]
    for _ in range(3):
        drop(inbox, "empty.jsonl", "")
        inbox.scan()
    names = {path.name for path in (inbox.folder / ".refused" / "human_pairs").iterdir()}
    assert names >= {"empty.jsonl", "1-empty.jsonl", "2-empty.jsonl"}


def test_a_file_that_goes_away_as_it_is_taken_is_no_fault(inbox: Inbox, taken: list[tuple[str, str]]) -> None:
    """Removed between the look at it and the rename: the clock is asked in between. The other file is taken."""
    path = drop(inbox, "a.jsonl")
    drop(inbox, "b.jsonl")

    def clock() -> float:
        path.unlink(missing_ok=True)
        return 0.0

    inbox.clock = clock
    told = [(item.name, item.source, item.outcome) for item in inbox.scan()]
    assert told == [("a.jsonl", "human_pairs", "kept"), ("b.jsonl", "human_pairs", "done")]
    assert taken == [("human_pairs", ROW)] and inbox.scan() == []


@pytest.mark.parametrize("begun", [ROW[:10], ""], ids=["taken", "refused"])
def test_a_writer_that_paused_for_too_long_loses_nothing(
    inbox: Inbox, clock: Clock, taken: list[tuple[str, str]], begun: str
) -> None:
    """It holds the file open: what it writes next arrives where the file was moved, perhaps under another watcher."""
    path = drop(inbox, "a.jsonl", begun, old=False)
    with path.open("a") as writing:
        inbox.scan()
        clock.now = 6
        assert [item.outcome for item in inbox.scan()] == ["done" if begun else "refused"] and not path.exists()
        assert inbox.scan() == []
        writing.write(ROW[len(begun) :])
    again = Inbox(inbox.folder, inbox.sources, inbox.take, inbox.settle_s, clock)
    (handled,) = again.scan()
    assert (handled.name, handled.outcome) == ("a.jsonl", "kept") and "written to after" in handled.detail
    clock.now = 6 + inbox.retry_s
    again.scan()
    clock.now += inbox.settle_s
    assert [item.outcome for item in again.scan()] == ["done"] and taken[-1] == ("human_pairs", ROW)
    assert again.scan() == [] and not list((inbox.folder / ".refused").rglob("a.jsonl*"))


def test_a_time_stamp_that_was_set_is_no_write(inbox: Inbox, taken: list[tuple[str, str]]) -> None:
    drop(inbox, "a.jsonl")
    inbox.scan()
    (done,) = (inbox.folder / ".done" / "human_pairs").iterdir()
    for stamp in (1, time.time() + 9e6):
        os.utime(done, (stamp, stamp))
        assert inbox.scan() == [] and len(taken) == 1


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PREFECT_API_URL", "")
    root = tmp_path / "workspace"
    init_workspace(root)
    save_params(root, load_params(root, (), ["intake.settle_s=0.2"])[1])
    return root


def test_a_watcher_takes_what_is_there_what_comes_and_survives_deletion(workspace: Path) -> None:
    params, stop, said = load_params(workspace)[0], threading.Event(), list[str]()
    inbox = workspace / "inbox" / "human_pairs"
    inbox.mkdir(parents=True)
    (inbox / "first.jsonl").write_text(ROW)
    watching = threading.Thread(target=watch_inbox, args=(workspace, params, said.append), kwargs={"stop": stop})
    watching.start()
    try:
        until(lambda: len(list((workspace / "data/raw").rglob("*.jsonl"))) == 1, said)
        with pytest.raises(UsageError, match="another process watches"):
            scan_inbox(workspace, params, said.append)
        shutil.rmtree(workspace / "inbox")
        until(inbox.is_dir, said)
        (inbox / "second.jsonl.part").write_text(ROW.replace("q?", "r?"))
        (inbox / "second.jsonl.part").rename(inbox / "second.jsonl")
        until(lambda: len(pending(open_outbox(workspace, params))) == 2, said)
    finally:
        stop.set()
        watching.join(30)
    assert not watching.is_alive()


def until(there: Callable[[], bool], said: list[str]) -> None:
    end = time.monotonic() + 60
    while not there():
        assert time.monotonic() < end, said
        time.sleep(0.1)
