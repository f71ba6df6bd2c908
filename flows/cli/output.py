"""Output: results to stdout, as text or one JSON object; remarks and failures to stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, ClassVar

import orjson
from rich.console import Console, RenderableType

from plumbline.data_contracts.errors import PlumblineError
from plumbline.data_contracts.secrets import mask

if TYPE_CHECKING:
    from plumbline.tasks.pipeline.stage import Stage


class Output:
    """One command's output. With `json`, stdout carries exactly one JSON object."""

    printed: ClassVar[bool] = False  # whether the command of this process has printed its result

    def __init__(self, json: bool) -> None:
        self.json = json
        self.remarks = Console(stderr=True, soft_wrap=True)

    def result(self, payload: dict[str, Any], renderable: RenderableType | Callable[[], RenderableType]) -> None:
        """Print the command's result, once.

        What is given as a function is built only where it is shown. A mistake in it costs the view alone: the result
        is printed as JSON instead, and the exit code stays that of the command.
        """
        if self.json:
            Output.printed = True
            _write_json(payload)
            return
        try:
            shown = renderable() if callable(renderable) else renderable
        except Exception as error:  # whatever a view does with a figure that it did not expect
            self.remark(f"the tables could not be made ({type(error).__name__}: {error}). The result as JSON:")
            _write_json(payload)
        else:
            _Stdout(highlight=False, markup=not isinstance(shown, str)).print(shown, soft_wrap=True)
        Output.printed = True

    def raw(self, data: bytes) -> None:
        """Print a result that is a document of its own, as it is."""
        Output.printed = True
        text = data.decode()
        if _can_show(text):
            _write(text)
        else:  # a document's bytes are what its name says, whatever alphabet the terminal has
            sys.stdout.flush()
            sys.stdout.buffer.write(data)

    def working(self, on: str) -> AbstractContextManager[object]:
        """Show a spinner on stderr while the block runs; nothing if stderr is not a terminal."""
        return self.remarks.status(on) if self.remarks.is_terminal else nullcontext()

    def display(self, stages: list[Stage]) -> AbstractContextManager[object]:
        """Show these stages live on stderr while the block runs; nothing where stderr is not a terminal."""
        from plumbline.flows.cli.display import Display

        return Display(stages)

    def remark(self, text: str) -> None:
        """Say something beside the result, on stderr."""
        self.remarks.print(text, markup=False, highlight=False)


class _Stdout(Console):
    """Results as text. A reader that has seen enough (`plumbline history | head -1`) is no failure of the command."""

    def on_broken_pipe(self) -> None:
        """Print to nowhere from now on. Rich's own would end the process with exit code 1."""
        self.quiet = True
        _let_stdout_lead_nowhere()


def report_failure(error: PlumblineError, *, as_json: bool) -> None:
    """Say on stderr what went wrong; with `as_json`, say it on stdout too where no result was printed before it."""
    message = mask(str(error))
    notes = [mask(note) for note in getattr(error, "__notes__", ())]
    with suppress(OSError, ValueError):  # nobody reads it; the exit code says it too
        sys.stderr.write("\n".join([f"plumbline: {message}", *notes]) + "\n")
        sys.stderr.flush()
    if as_json:
        report_as_json(error)


def report_as_json(error: PlumblineError) -> None:
    """Say on stdout what went wrong, where no result was printed before it."""
    if Output.printed:
        return
    message = " ".join(map(mask, [str(error), *getattr(error, "__notes__", ())]))
    _write_json({"error": {"kind": type(error).__name__, "message": message, "exit_code": error.exit_code}})


def _write_json(payload: dict[str, Any]) -> None:
    """One object, whatever stdout can show: JSON has an ASCII form of every character."""
    try:
        text = orjson.dumps(payload, option=orjson.OPT_INDENT_2).decode()
    except TypeError:  # a path whose bytes are no UTF-8
        text = json.dumps(payload, indent=2, default=str)
    _write((text if _can_show(text) else json.dumps(orjson.loads(text), indent=2)) + "\n")


def _can_show(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _write(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        _let_stdout_lead_nowhere()


def _let_stdout_lead_nowhere() -> None:
    """Else Python's last flush, while it ends, would say that the pipe is broken."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
