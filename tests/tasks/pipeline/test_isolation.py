"""Stages run in processes of their own; these tests start, kill and starve real ones."""

from __future__ import annotations

import dataclasses
import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil
import pytest

from plumbline.data_contracts.errors import ParamsError, StageError
from plumbline.tasks.params.section import Section
from plumbline.tasks.pipeline import isolation
from plumbline.tasks.pipeline.isolation import run_isolated
from plumbline.tasks.pipeline.stage import Facts, Stage, StageContext

pytestmark = pytest.mark.slow


class Toy(Section):
    word: str = "hello"
    wait_s: float = 0.0


class ToyParams(Section):
    toy: Toy = Toy()


def write_word(context: StageContext, *, toy: Toy) -> Facts:
    (context.work / "pid").write_text(str(os.getpid()))
    context.progress(1, 2, "half")
    time.sleep(toy.wait_s)
    (context.folder / "word.txt").write_text(toy.word)
    return {"letters": len(toy.word), "pid_leads_group": os.getpgid(0) == os.getpid()}


def refuse(context: StageContext, *, toy: Toy) -> Facts:
    raise ParamsError(f"toy.word: {toy.word} is not wanted")


def break_down(context: StageContext, *, toy: Toy) -> Facts:
    (context.folder / "half.txt").write_text("half")
    raise RuntimeError("inner works")


def fill_disk(context: StageContext, *, toy: Toy) -> Facts:
    (context.folder / "half.txt").write_text("half")
    raise OSError(errno.ENOSPC, "No space left on device")


def kill_itself(context: StageContext, *, toy: Toy) -> Facts:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def leave_a_helper(context: StageContext, *, toy: Toy) -> Facts:
    helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (context.work / "pid").write_text(str(helper.pid))
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def ignore_sigterm(context: StageContext, *, toy: Toy) -> Facts:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return write_word(context, toy=toy)


def call_a_function_of_the_workspace(context: StageContext, *, toy: Toy) -> Facts:
    import random

    return {"told": import_module("house_rewards").told(), "random": str(random.__file__)}


def toy_stage(body: object, timeout_s: float | None = None) -> Stage:
    return Stage("toy", "Toy", body, {}, ("toy",), "out/toy", "toy", timeout_s=timeout_s)  # type: ignore[arg-type]


def test_a_stage_hands_back_its_artifact_and_progress(tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    artifact = run_isolated(
        toy_stage(write_word), tmp_path, ToyParams(), tmp_path / "log", lambda *report: seen.append(report)
    )
    assert artifact.facts == {"letters": 5, "pid_leads_group": True}
    assert (artifact.path / "word.txt").read_text() == "hello"
    assert seen == [(1, 2, "half")]


def test_a_users_mistake_keeps_its_type_and_words(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="hello is not wanted") as refused:
        run_isolated(toy_stage(refuse), tmp_path, ToyParams(), tmp_path / "log")
    assert refused.value.__notes__ == [f"Log: {tmp_path / 'log'}"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (break_down, "RuntimeError: inner works"),
        (fill_disk, "could not be written: No space left on device"),
        (kill_itself, "exit code -9"),
    ],
)
def test_a_failed_stage_says_why_and_leaves_the_earlier_artifact(tmp_path: Path, body: object, message: str) -> None:
    run_isolated(toy_stage(write_word), tmp_path, ToyParams(), tmp_path / "log")
    with pytest.raises(StageError, match=message):
        run_isolated(toy_stage(body), tmp_path, ToyParams(), tmp_path / "log")
    assert (tmp_path / "out/toy/word.txt").read_text() == "hello"
    run_isolated(toy_stage(write_word), tmp_path, ToyParams(), tmp_path / "log")
    assert [item.name for item in (tmp_path / "out").iterdir()] == ["toy"]


def test_the_traceback_is_in_the_log(tmp_path: Path) -> None:
    with pytest.raises(StageError):
        run_isolated(toy_stage(break_down), tmp_path, ToyParams(), tmp_path / "log")
    assert "RuntimeError: inner works" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("body", [write_word, ignore_sigterm])
def test_a_timeout_ends_the_process(tmp_path: Path, body: object) -> None:
    with pytest.raises(StageError, match="still running after"):
        run_isolated(toy_stage(body, 3.0), tmp_path, ToyParams(toy=Toy(wait_s=600)), tmp_path / "log")
    assert not psutil.pid_exists(int((tmp_path / ".plumbline/work/toy/pid").read_text()))


def test_cancelling_ends_the_process(tmp_path: Path) -> None:
    cancelled = threading.Event()
    threading.Timer(2.0, cancelled.set).start()
    with pytest.raises(StageError, match="another stage"):
        run_isolated(
            toy_stage(write_word), tmp_path, ToyParams(toy=Toy(wait_s=600)), tmp_path / "log", cancelled=cancelled
        )


def test_cancelling_ends_a_process_that_still_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bare interpreter leads no group yet: held up by a start-up file, it would begin its stage after all."""
    (tmp_path / "sitecustomize.py").write_text(
        f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    cancelled = threading.Event()
    pid_file = tmp_path / "pid"
    threading.Thread(
        target=lambda: (_until(lambda: pid_file.exists() and pid_file.read_text()), cancelled.set())
    ).start()
    with pytest.raises(StageError, match="the run was ended"):
        run_isolated(toy_stage(write_word), tmp_path, ToyParams(), tmp_path / "log", cancelled=cancelled)
    assert not psutil.pid_exists(int(pid_file.read_text()))


def test_cancelling_does_not_wait_for_the_fork_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It imports for seconds, a minute on a busy machine; what it forks after all is ended, or never begins."""
    begun, answer = threading.Event(), threading.Event()
    start = isolation._FORK.Process.start

    def held_up(process: Any) -> None:
        begun.set()
        answer.wait(60)
        start(process)

    monkeypatch.setattr(isolation._FORK.Process, "start", held_up)
    cancelled = threading.Event()
    threading.Thread(target=lambda: (begun.wait(60), cancelled.set())).start()
    stage = dataclasses.replace(toy_stage(write_word), trains=True)
    with pytest.raises(StageError, match="the run was ended"):
        run_isolated(stage, tmp_path, ToyParams(toy=Toy(wait_s=600)), tmp_path / "log", cancelled=cancelled)
    assert not answer.is_set()
    answer.set()
    (late,) = [thread for thread in threading.enumerate() if thread.name == "start-toy"]
    late.join(60)
    assert not late.is_alive()
    assert [child.name for child in multiprocessing.active_children() if child.name == "plumbline-toy"] == []


def test_what_a_killed_stage_had_started_ends_with_it(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="exit code -9"):
        run_isolated(toy_stage(leave_a_helper), tmp_path, ToyParams(), tmp_path / "log")
    helper = int((tmp_path / ".plumbline/work/toy/pid").read_text())
    _until(lambda: not psutil.pid_exists(helper) or psutil.Process(helper).status() == psutil.STATUS_ZOMBIE)


@pytest.mark.parametrize("trains", [False, True])
def test_no_orphan_outlives_a_killed_parent(tmp_path: Path, trains: bool) -> None:
    """The parent is killed with SIGKILL while its stage sleeps; the stage must end by itself."""
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys, pathlib
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import dataclasses, test_isolation as t
        if __name__ == "__main__":
            stage = dataclasses.replace(t.toy_stage(t.write_word), trains={trains})
            root = pathlib.Path({str(tmp_path)!r})
            t.run_isolated(stage, root, t.ToyParams(toy=t.Toy(wait_s=600)), root / "log")
        """)
    )
    parent = subprocess.Popen([sys.executable, str(script)])
    pid_file = tmp_path / ".plumbline/work/toy/pid"
    try:
        _until(lambda: pid_file.exists() and pid_file.read_text() != "")
        child = int(pid_file.read_text())
        assert psutil.pid_exists(child)
    finally:
        parent.kill()
        parent.wait()
    _until(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE)


@pytest.mark.parametrize("trains", [False, True])
def test_modules_in_the_current_folder_take_no_ones_place(tmp_path: Path, trains: bool) -> None:
    """Of a workspace with files named as our packages and Python's own, only what params name is imported."""
    for name in ("plumbline", "tasks", "flows", "data_contracts", "random", "multiprocessing"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a file of the user was imported')")
    (tmp_path / "house_rewards.py").write_text("def told(): return 'hello'")
    script = tmp_path / "elsewhere" / "parent.py"
    script.parent.mkdir()
    script.write_text(
        textwrap.dedent(f"""
        import sys, pathlib
        sys.path.append({str(Path(__file__).parent)!r})
        from plumbline.flows.graph import environment
        import dataclasses, test_isolation as t
        if __name__ == "__main__":
            environment.prepare()
            stage = dataclasses.replace(t.toy_stage(t.call_a_function_of_the_workspace), trains={trains})
            root = pathlib.Path({str(tmp_path)!r})
            print(t.run_isolated(stage, root, t.ToyParams(), root / "log").facts)
        """)
    )
    given = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=given, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "'told': 'hello'" in done.stdout
    assert str(tmp_path) not in done.stdout


_PARENT = """
import sys, pathlib
sys.path.insert(0, {here!r})
import test_isolation as t
from plumbline.tasks.pipeline import isolation
if __name__ == "__main__":
    root = pathlib.Path({root!r})
    try:
        isolation.warm_up()
        print("started", flush=True)
        {work}
    except KeyboardInterrupt:
        sys.exit(3)
"""
_RUN = "t.run_isolated(t.toy_stage(t.write_word), root, t.ToyParams(toy=t.Toy(wait_s=600)), root / 'log')"


def _parent(tmp_path: Path, work: str, **environment: str) -> subprocess.Popen[bytes]:
    """A program that started the fork server and is at work, in a session of its own."""
    (tmp_path / "parent.py").write_text(_PARENT.format(here=str(Path(__file__).parent), root=str(tmp_path), work=work))
    process = subprocess.Popen(
        [sys.executable, tmp_path / "parent.py"],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_a_fork_server_that_still_imports_ends_with_its_starter(tmp_path: Path) -> None:
    """It loads torch and trl for seconds and would hear of the end behind them."""
    with _parent(tmp_path, "__import__('time').sleep(600)") as parent:
        family = psutil.Process(parent.pid).children()
        parent.kill()
    _until(lambda: not any(_runs(process) for process in family), seconds=3.0)


def test_ctrl_c_in_a_terminal_is_heard_by_the_run_alone(tmp_path: Path) -> None:
    """A terminal sends it to the whole group: to the fork server and to a stage amid their imports, too."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys, time\n"
        "if 'spawn_main' in ' '.join(sys.orig_argv):\n"
        f"    open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    )
    with _parent(tmp_path, _RUN, PYTHONPATH=str(tmp_path)) as parent:
        _until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
        os.killpg(parent.pid, signal.SIGINT)
        _, said = parent.communicate(timeout=30)
    assert (parent.returncode, said.decode()) == (3, "")
    _until(lambda: not psutil.pid_exists(int((tmp_path / "pid").read_text())))


def test_a_stage_of_dvc_repro_ends_with_it_also_behind_a_shell(tmp_path: Path) -> None:
    """DVC runs the command through a shell; here the shell waits, as some do."""
    child = tmp_path / "child.py"
    child.write_text(
        "import os, time; from plumbline.tasks.pipeline.isolation import end_with_driver; end_with_driver(); "
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    )
    run = f"import subprocess; subprocess.run(['sh', '-c', '{sys.executable} {child}; true'])"
    with subprocess.Popen([sys.executable, "-c", run]) as driver:
        _until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
        stage = psutil.Process(int((tmp_path / "pid").read_text()))
        assert _runs(stage)
        driver.kill()
    _until(lambda: not _runs(stage), seconds=10.0)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _until(condition: object, seconds: float = 30.0) -> None:
    until = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.1)
