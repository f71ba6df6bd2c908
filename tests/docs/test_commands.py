"""Every `plumbline …` that a page shows parses, without being run; every `make …` and setting is one that there is."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer._click.exceptions import ClickException

from plumbline.flows.cli.main import app
from plumbline.tasks.params.whole import Params

PROGRAM: Any = typer.main.get_command(app)
ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
_BLOCK = re.compile(r"^```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`((?:plumbline|make) [a-z][^`]*)`")
_EXAMPLE = re.compile(r"^Example: (plumbline .*)$", re.MULTILINE)
_PLACEHOLDER = re.compile(r"[A-Z_]+")


def shown(*, whole: bool = False) -> Iterator[tuple[str, list[str]]]:
    """Each command line of a page: where it stands, and its words. `whole`: without those in a sentence."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        blocks = "\n".join(_BLOCK.findall(text)).replace("\\\n", " ")
        lines = [*blocks.splitlines(), *_EXAMPLE.findall(text)]
        for line in lines if whole else [*lines, *_INLINE.findall(_BLOCK.sub("", text))]:
            if line.startswith(("plumbline ", "make ")):
                yield f"{page.relative_to(ROOT)}: {line}", shlex.split(line, comments=True)


def resolved(command: Any, words: list[str]) -> tuple[Any, list[str]]:
    """The command of a command line, and the words behind its name. Raises `LookupError`."""
    while words and words[0] != "--help" and hasattr(command, "commands"):
        if words[0] not in command.commands:
            if not hasattr(command, "default_command"):
                raise LookupError(f"no command {words[0]}")
            words = [command.default_command, *words]
        command, words = command.commands[words[0]], words[1:]
    return command, words


def problem(words: list[str]) -> str | None:
    """Why a command line is not whole: no such command or option, a value too many, missing or of a wrong kind."""
    try:
        command, words = resolved(PROGRAM, words[1:])
        context = command.context_class(command, info_name="plumbline")
        given, left, _ = command.make_parser(context).parse_args(list(words))
        for parameter in command.params:
            value = given.get(parameter.name)
            if not isinstance(value, str) or not _PLACEHOLDER.fullmatch(value):
                parameter.process_value(context, value)
    except (LookupError, ClickException) as error:
        return str(error)
    return f"{left[0]} is too much" if left else None


def unknown_option(words: list[str]) -> str | None:
    """As `problem`, of a command line in a sentence, where values may be left out."""
    try:
        command, words = resolved(PROGRAM, words[1:])
    except LookupError as error:
        return str(error)
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    unknown = [word for word in words if re.match(r"--?[a-zA-Z]", word) and word not in {*known, "--help"}]
    return f"no option {unknown[0]}" if unknown else None


def test_every_command_line_of_a_block_parses() -> None:
    found = [(line, words) for line, words in shown(whole=True) if words[0] == "plumbline"]
    assert len(found) > 100
    assert [f"{line}: {why}" for line, words in found if words[1:] != ["--help"] and (why := problem(words))] == []


def test_every_command_and_option_in_a_sentence_is_there() -> None:
    found = [(line, words) for line, words in shown() if words[0] == "plumbline"]
    assert len(found) > 200
    assert [f"{line}: {why}" for line, words in found if (why := unknown_option(words))] == []


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("plumbline ingets FILE", "no command ingets"),
        ("plumbline ingest", "Missing parameter: words"),
        ("plumbline retrain FILE", "FILE is too much"),
        ("plumbline retrain --sett seed=1", "No such option: --sett"),
        ("plumbline retrain --set", "Option '--set' requires an argument."),
        ("plumbline self-play --prompts many", "Input should be a valid integer"),
        ("plumbline self-play --prompts NUMBER", None),
    ],
)
def test_what_does_not_parse_is_found(line: str, why: str | None) -> None:
    assert (problem(line.split()) or "None").startswith(str(why))


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
