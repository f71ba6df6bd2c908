"""The end of a command: its exit code, one line for what went wrong, and a log for the rest.

1. Streams that are closed or cannot show a character end no command.
2. SIGINT and SIGTERM become one exception, and whatever a library makes of it, the command says `interrupted`.
3. What nobody foresaw becomes an `UnexpectedError`: its traceback goes to a log of the workspace, not to the terminal.
"""

from __future__ import annotations

import io
import logging
import os
import shlex
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from plumbline.data_contracts.artifact import full_disk_as_stage_error
from plumbline.data_contracts.errors import Interrupted, PlumblineError, UnexpectedError, UsageError
from plumbline.data_contracts.permissions import permissions_as_errors
from plumbline.data_contracts.secrets import mask
from plumbline.flows.cli.output import Output, report_as_json, report_failure

TRACEBACK = "PLUMBLINE_TRACEBACK"
"""The variable that, set to 1, shows tracebacks on stderr as well."""

_LOG = "plumbline.log"
_STANDARD = (0, 1, 2)
_LONGEST = 300  # characters of a foreign error in the one line


class _Heard:
    """The signal that asked this process to end, if any."""

    def __init__(self) -> None:
        self.number: signal.Signals | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.number = signal.Signals(number)
        raise KeyboardInterrupt


def exit_code_of(command: Callable[[], object]) -> int:
    """Run a command, say what went wrong, and return the exit code that the process ends with."""
    Output.printed = False
    _open_standard_streams()
    with _signals() as heard, _background_errors_to_log():
        try:
            with permissions_as_errors(), full_disk_as_stage_error(Path.cwd()):
                command()
            return 0
        except SystemExit as ended:
            if heard.number is None or ended.code == 0:
                _tell_misuse(ended)
                return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
            error: PlumblineError = _interrupted(heard.number)
        except PlumblineError as failed:
            error = failed if heard.number is None else _interrupted(heard.number)
        except BaseException as failed:
            error = _unexpected(failed) if heard.number is None else _interrupted(heard.number)
        _show_traceback(error)
        report_failure(error, as_json="--json" in sys.argv[1:])
        return error.exit_code


def _tell_misuse(ended: SystemExit) -> None:
    """Say in JSON what the command line's parser said as text before it ended the process: an option, an argument."""
    told = getattr(ended.__context__, "format_message", None)
    if told is not None and "--json" in sys.argv[1:]:
        report_as_json(UsageError(told()))


@contextmanager
def until_ended() -> Iterator[None]:
    """Around a command that works until it is ended: SIGINT and SIGTERM are then its good end."""
    with suppress(KeyboardInterrupt):
        yield


def _open_standard_streams() -> None:
    """Let a stream that was closed lead nowhere, and one with a small alphabet replace what it cannot show.

    The next file that is opened would take the place of a closed one, and receive what is printed.
    """
    for descriptor in _STANDARD:
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number is this one
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  (for as long as we live)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(errors="backslashreplace")
    logging.raiseExceptions = False  # a log line that cannot be written is no traceback


@contextmanager
def _signals() -> Iterator[_Heard]:
    """Catch SIGINT and SIGTERM inside, unless whoever started us has them ignored."""
    heard = _Heard()
    if threading.current_thread() is not threading.main_thread():
        yield heard
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    taken = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}
    for number in taken:
        signal.signal(number, heard)
    try:
        yield heard
    finally:
        for number, handler in taken.items():
            signal.signal(number, handler)


@contextmanager
def _background_errors_to_log() -> Iterator[None]:
    """Send what ends a thread, or fails in a finaliser, to the log: it is no line for a person."""

    def of_thread(failed: threading.ExceptHookArgs) -> None:
        if failed.exc_value is not None:
            _log(failed.exc_value)

    def of_finaliser(failed: sys.UnraisableHookArgs) -> None:
        if failed.exc_value is not None:
            _log(failed.exc_value)

    before = threading.excepthook, sys.unraisablehook
    threading.excepthook, sys.unraisablehook = of_thread, of_finaliser
    try:
        yield
    finally:
        threading.excepthook, sys.unraisablehook = before


def _interrupted(number: signal.Signals) -> Interrupted:
    return Interrupted(
        f"interrupted ({number.name}). What was finished is kept, and training resumes from its last checkpoint: run "
        f"the command again."
    )


def _unexpected(failed: BaseException) -> UnexpectedError:
    place = _log(failed)
    said = " ".join(mask(str(failed)).split())
    said = said if len(said) <= _LONGEST else f"{said[:_LONGEST]}…"
    where = f"The traceback is in {place}" if place is not None else f"Set {TRACEBACK}=1 to see the traceback"
    error = UnexpectedError(f"unexpected {type(failed).__name__}: {said or 'without a message'}. {where}.")
    error.__cause__ = failed
    return error


def _show_traceback(error: PlumblineError) -> None:
    if os.environ.get(TRACEBACK, "") not in ("", "0"):
        sys.stderr.write(mask("".join(traceback.format_exception(error))))


def _log(failed: BaseException) -> Path | None:
    """Append the traceback to the workspace's log, or to a file of its own where that cannot be; None if neither."""
    head = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC, {shlex.join(['plumbline', *sys.argv[1:]])}\n"
    text = mask(head + "".join(traceback.format_exception(failed)) + "\n").encode(errors="backslashreplace")
    for place in (_workspace_log, _own_log):
        try:
            descriptor, path = place()
            with open(descriptor, "wb") as file:
                file.write(text)
            return path
        except (OSError, UsageError):
            continue
    return None


def _workspace_log() -> tuple[int, Path]:
    from plumbline.flows.graph.workspaces import find_workspace

    path = find_workspace(_asked_folder()) / ".plumbline" / "logs" / _LOG
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), path


def _own_log() -> tuple[int, Path]:
    descriptor, name = tempfile.mkstemp(prefix="plumbline-", suffix=".log")
    return descriptor, Path(name)


def _asked_folder() -> Path:
    """The folder of `-C`; read anew, because what failed may have been the reading of the command line."""
    arguments = sys.argv[1:]
    for place, argument in enumerate(arguments):
        if argument in ("-C", "--workspace") and place + 1 < len(arguments):
            return Path(os.path.abspath(arguments[place + 1]))
        if argument.startswith("--workspace="):
            return Path(os.path.abspath(argument.partition("=")[2]))
    return Path.cwd()
