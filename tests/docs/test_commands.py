"""Every `plumbline …` and `make …` that a page shows is one that there is, with these options and settings."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from plumbline.flows.cli.main import app
from plumbline.tasks.params.whole import Params

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
_BLOCK = re.compile(r"^```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`((?:plumbline|make) [a-z][^`]*)`")


def shown() -> Iterator[tuple[str, list[str]]]:
    """Each command line of a page: where it stands, and its words."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        lines = [line for block in _BLOCK.findall(text) for line in block.splitlines()]
        for line in [*lines, *_INLINE.findall(_BLOCK.sub("", text))]:
            if line.startswith(("plumbline ", "make ")):
                yield f"{page.relative_to(ROOT)}: {line}", shlex.split(line, comments=True)


def problem(command: Any, words: list[str]) -> str | None:
    while words and hasattr(command, "commands"):
        if words[0] == "--help":
            return None
        if words[0] not in command.commands:
            if not hasattr(command, "default_command"):
                return f"no command {words[0]}"
            words = [command.default_command, *words]
        command, words = command.commands[words[0]], words[1:]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    unknown = [word for word in words if re.match(r"--?[a-zA-Z]", word) and word not in known]
    return f"no option {unknown[0]}" if unknown else None


def test_every_command_and_option_is_there() -> None:
    found = [(line, words) for line, words in shown() if words[0] == "plumbline"]
    assert len(found) > 100
    program = typer.main.get_command(app)
    assert [f"{line}: {why}" for line, words in found if (why := problem(program, words[1:]))] == []


def test_every_target_of_make_is_there() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    named = {words[1] for _, words in shown() if words[0] == "make"}
    assert named - set(targets) == set()


def test_every_setting_is_a_key_of_params() -> None:
    """The value may be a placeholder; the key is looked up, section by section."""
    params = Params()
    for line, words in shown():
        settings = [words[place + 1] for place, word in enumerate(words) if word in ("--set", "--once")]
        settings += words[3:] if words[1:3] in (["params", "set"], ["params", "unset"]) else []
        for setting in (each for each in settings if not each.startswith("KEY")):
            value: Any = params
            for part in setting.partition("=")[0].split("."):
                assert part in type(value).model_fields, line
                value = getattr(value, part)
