"""Exit codes, one line for a failure, and what streams, signals and accounts do to a command."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from plumbline.data_contracts.errors import CheckFailed
from plumbline.flows.cli.ending import TRACEBACK, exit_code_of, until_ended
from plumbline.flows.cli.main import app
from plumbline.flows.graph.workspaces import init_workspace

PLUMBLINE = Path(sys.executable).with_name("plumbline")
POSIX = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ending") / "workspace"
    init_workspace(root)
    return root


@pytest.fixture
def run(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run a function as the command of a command line in the workspace."""

    def run(command: Callable[[], object], *arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(workspace)
        monkeypatch.setattr(sys, "argv", ["plumbline", *arguments])
        code = exit_code_of(command)
        return code, *capsys.readouterr()

    return run


def raising(error: BaseException) -> Callable[[], None]:
    def command() -> None:
        raise error

    return command


# --- failures --------------------------------------------------------------------------------------------------------


def test_what_nobody_foresaw_is_one_line_and_a_traceback_in_the_log(run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = run(raising(RuntimeError("inner\nworks of postgresql://ann:secret@db")), "history")
    log = Path.cwd() / ".plumbline/logs/plumbline.log"
    assert (code, out) == (3, "")
    assert err.startswith("plumbline: unexpected RuntimeError: inner works of postgresql://")
    assert err.count("\n") == 1
    assert str(log) in err
    assert "secret" not in err + log.read_text()
    assert "plumbline history\nTraceback" in log.read_text()
    assert stat.S_IMODE(log.stat().st_mode) & 0o077 == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["validate", "--json"], "Missing argument"),
        (["nonsense", "--json"], "No such command 'nonsense'."),
        (["history", "--json", "--nope"], "No such option: --nope"),
        (["self-play", "--prompts", "0", "--json"], "Invalid value for '--prompts'"),
    ],
)
def test_a_command_line_that_cannot_be_read_is_told_as_json_too(
    run: Callable[..., tuple[int, str, str]], arguments: list[str], said: str
) -> None:
    code, out, err = run(lambda: app(prog_name="plumbline"), *arguments)
    told = orjson.loads(out)["error"]
    assert code == told["exit_code"] == 2
    assert told["kind"] == "UsageError"
    assert said in told["message"]
    assert said in err
    assert run(lambda: app(prog_name="plumbline"), *[each for each in arguments if each != "--json"])[1] == ""


def test_json_has_the_object_alone(run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = run(raising(KeyError("dpo")), "history", "--json")
    told = orjson.loads(out)["error"]
    assert (code, told["kind"], told["exit_code"]) == (3, "UnexpectedError", 3)
    assert "KeyError" in told["message"]
    assert "Traceback" not in err


def test_outside_of_a_workspace_the_log_is_a_file_of_its_own(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    _, _, err = run(raising(RuntimeError("inner works")), "history", "-C", "/")
    (log,) = tmp_path.glob("plumbline-*.log")
    assert str(log) in err
    assert "RuntimeError: inner works" in log.read_text()


def test_a_developer_sees_the_traceback(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TRACEBACK, "1")
    assert "Traceback" in run(raising(RuntimeError("inner works")))[2]


def test_a_thread_that_fails_says_so_in_the_log_alone(run: Callable[..., tuple[int, str, str]]) -> None:
    def command() -> None:
        thread = threading.Thread(target=raising(RuntimeError("of a thread")))
        thread.start()
        thread.join()

    assert run(command) == (0, "", "")
    assert "RuntimeError: of a thread" in (Path.cwd() / ".plumbline/logs/plumbline.log").read_text()


# --- signals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_one_line_whatever_a_library_makes_of_it(
    run: Callable[..., tuple[int, str, str]], number: signal.Signals
) -> None:
    before = signal.getsignal(number)

    def command() -> None:
        try:
            os.kill(os.getpid(), number)
            time.sleep(10)
        except KeyboardInterrupt:
            raise ValueError("could not serialise: KeyboardInterrupt") from None

    code, _, err = run(command)
    assert code == 3
    assert err.startswith(f"plumbline: interrupted ({number.name})")
    assert err.count("\n") == 1
    assert signal.getsignal(number) is before


def test_it_is_the_good_end_of_what_works_until_it_is_told_to_end(run: Callable[..., tuple[int, str, str]]) -> None:
    def command() -> None:
        with until_ended():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)

    assert run(command) == (0, "", "")


def test_ctrl_c_while_the_command_line_is_imported_is_quiet(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGINT)")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([PLUMBLINE, "history"], env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")


# --- streams ---------------------------------------------------------------------------------------------------------

_PRINT = """
import sys
from plumbline.flows.cli.ending import exit_code_of
from plumbline.flows.cli.output import Output
text = "\\u03c0_ref \\u2713 caf\\udce9 " * int(sys.argv[2])
sys.exit(exit_code_of(lambda: Output(sys.argv[1] == "json").result({"text": text}, text)))
"""


def printing(form: str, environment: dict[str, str], count: int = 1) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-c", _PRINT, form, str(count)]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, check=False)


@pytest.mark.parametrize("environment", [POSIX, {"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"}])
def test_characters_that_stdout_does_not_have_are_replaced(environment: dict[str, str]) -> None:
    text = printing("text", environment)
    assert (text.returncode, text.stderr, text.stdout) == (0, b"", b"?_ref ? caf? \n")
    told = printing("json", environment)
    assert (told.returncode, told.stderr) == (0, b"")
    assert "π_ref ✓" in json.loads(told.stdout)["text"]


def test_bytes_in_a_path_that_are_no_utf8_are_replaced_in_utf8_too() -> None:
    assert printing("text", {"PYTHONUTF8": "1"}).stdout.decode() == "π_ref ✓ caf? \n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "command"), [(POSIX, "doctor"), (POSIX, "history"), ({"PYTHONIOENCODING": "latin-1"}, "doctor")]
)
def test_commands_print_on_any_terminal(workspace: Path, environment: dict[str, str], command: str) -> None:
    done = subprocess.run(
        [PLUMBLINE, command], cwd=workspace, env={**os.environ, **environment}, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.slow
def test_a_reader_that_leaves_early_is_no_failure(workspace: Path) -> None:
    for form in ("text", "json"):
        reading, writing = os.pipe()
        os.close(reading)
        with os.fdopen(writing, "wb") as nobody:
            command = [sys.executable, "-c", _PRINT, form, "9999"]
            done = subprocess.run(command, stdout=nobody, stderr=subprocess.PIPE, check=False)
        assert (done.returncode, done.stderr) == (0, b"")


def test_the_exit_code_stays_where_nobody_reads(run: Callable[..., tuple[int, str, str]]) -> None:
    script = (
        "import sys; from plumbline.flows.cli.ending import exit_code_of\n"
        "from plumbline.flows.cli.output import Output\n"
        "from plumbline.data_contracts.errors import CheckFailed\n"
        "def command():\n    Output(False).result({}, 'x' * 999999)\n    raise CheckFailed('no')\n"
        "sys.exit(exit_code_of(command))"
    )
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as nobody:
        done = subprocess.run([sys.executable, "-c", script], stdout=nobody, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (CheckFailed.exit_code, b"plumbline: no\n")


@pytest.mark.slow
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&- <&-"])
def test_closed_streams_end_nothing_and_take_no_files_place(workspace: Path, closed: str) -> None:
    """SQLite's file would get number 1, and what is printed would be written into it."""
    rows = [{"prompt": f"What is {n}?", "chosen": f"The number {n}.", "rejected": closed} for n in ("one", "two")]
    (workspace / "pairs.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    done = subprocess.run(  # a command that writes into the database
        ["sh", "-c", f"{PLUMBLINE} ingest human_pairs pairs.jsonl {closed}"],
        cwd=workspace,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert (workspace / ".plumbline/operations.db").read_bytes().startswith(b"SQLite format 3")


# --- accounts --------------------------------------------------------------------------------------------------------

_STRANGER = ("setpriv", "--reuid", "54321", "--regid", "54321", "--clear-groups")
_READING = ("--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search")  # Python itself lies under /root


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(os.getuid() != 0 or shutil.which("setpriv") is None, reason="needs root and setpriv")
@pytest.mark.parametrize("home", [None, "/proc/none"])
def test_a_user_that_the_system_does_not_know_and_no_home(home: str | None) -> None:
    """A number in a container: no entry in passwd, no HOME or one that is not there."""
    kept = {key: value for key, value in os.environ.items() if key not in ("HOME", "USER", "LOGNAME", "TMPDIR")}
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chown(folder, 54321, 54321)
        pairs = Path(folder) / "pairs.jsonl"
        pairs.write_text('{"prompt": "what is this?", "chosen": "a pair", "rejected": "nothing"}\n')
        environment = {**kept, "TMPDIR": folder, **({} if home is None else {"HOME": home})}
        environment.pop("XDG_CONFIG_HOME", None)
        for command in (["init", "w"], ["ingest", "human_pairs", "pairs.jsonl", "-C", "w"], ["history", "-C", "w"]):
            done = subprocess.run(
                [*_STRANGER, *_READING, PLUMBLINE, *command], cwd=folder, env=environment, capture_output=True
            )
            assert (done.returncode, done.stderr) == (0, b""), command
        assert (Path(folder) / "plumbline-home-54321").stat().st_mode & 0o077 == 0
