"""Where results, remarks and failures go: results to stdout, as text or one JSON object; the rest to stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import orjson
from rich.console import Console, RenderableType

from data_contracts.errors import PlumblineError
from data_contracts.secrets import mask


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
            Console(highlight=False, markup=not isinstance(shown, str)).print(shown, soft_wrap=True)
        Output.printed = True

    def raw(self, data: bytes) -> None:
        """Print a result that is a document of its own, as it is."""
        Output.printed = True
        sys.stdout.write(data.decode())

    def working(self, on: str) -> AbstractContextManager[object]:
        """Show a spinner on stderr while the block runs; nothing where stderr is not a terminal."""
        return self.remarks.status(on) if self.remarks.is_terminal else nullcontext()

    def remark(self, text: str) -> None:
        """Say something beside the result, on stderr."""
        self.remarks.print(text, markup=False, highlight=False)


def report_failure(error: PlumblineError, *, json: bool) -> None:
    """Say on stderr what went wrong; with `json`, say it on stdout too where no result was printed before it."""
    message = mask(str(error))
    sys.stderr.write(f"plumbline: {message}\n")
    if json and not Output.printed:
        kind = type(error).__name__
        _write_json({"error": {"kind": kind, "message": message, "exit_code": error.exit_code}})


def _write_json(payload: dict[str, Any]) -> None:
    sys.stdout.write(orjson.dumps(payload, option=orjson.OPT_INDENT_2).decode() + "\n")
