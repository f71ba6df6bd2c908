"""Where results and remarks go: results to stdout, as text or one JSON object; remarks to stderr."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import orjson
from rich.console import Console, RenderableType


class Output:
    """One command's output. With `json`, stdout carries exactly one JSON object."""

    def __init__(self, json: bool) -> None:
        self.json = json
        self.remarks = Console(stderr=True, soft_wrap=True)

    def result(self, payload: dict[str, Any], renderable: RenderableType) -> None:
        """Print the command's result, once."""
        if self.json:
            sys.stdout.write(orjson.dumps(payload, option=orjson.OPT_INDENT_2).decode() + "\n")
        else:
            Console(highlight=False, markup=not isinstance(renderable, str)).print(renderable, soft_wrap=True)

    def working(self, on: str) -> AbstractContextManager[object]:
        """Show a spinner on stderr while the block runs; nothing where stderr is not a terminal."""
        return self.remarks.status(on) if self.remarks.is_terminal else nullcontext()

    def remark(self, text: str) -> None:
        """Say something beside the result, on stderr."""
        self.remarks.print(text, markup=False, highlight=False)
