"""The help, its examples and shell completion."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from plumbline.flows.cli.main import AREAS, app
from plumbline.flows.graph.workspaces import init_workspace

PLUMBLINE = Path(sys.executable).with_name("plumbline")


def _commands(group: Any, before: tuple[str, ...] = ()) -> dict[str, Any]:
    """Every command that runs, under its name as it is typed."""
    found = {}
    for name, command in group.commands.items():
        typed = (*before, name)
        found |= _commands(command, typed) if hasattr(command, "commands") else {" ".join(typed): command}
    return found


ROOT: Any = get_command(app)
COMMANDS = _commands(ROOT)


def _plumbline(*arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [PLUMBLINE, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


# --- help ------------------------------------------------------------------------------------------------------------


def test_the_help_fits_a_screen_and_shows_every_command_once_below_its_area() -> None:
    lines = _plumbline("--help", COLUMNS="100").splitlines()
    assert len(lines) <= 50
    titles = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert titles == [*(f"{area}:" for area in AREAS), "Options:"]
    assert len(AREAS) <= 8
    named = [line.split()[0] for line in lines if line.startswith("  ") and line.split()[0] in ROOT.commands]
    assert named == list(ROOT.commands)


@pytest.mark.parametrize("columns", ["80", "100"])
def test_no_line_of_the_help_is_cut(columns: str) -> None:
    lines = _plumbline("--help", COLUMNS=columns).splitlines()[1:]  # the first ends in `[ARGS]...`
    assert [line for line in lines if line.endswith("...")] == []


def test_a_command_line_without_words_shows_the_help() -> None:
    done = subprocess.run([PLUMBLINE], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Train:\n" in done.stdout + done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_ends_with_an_example_of_it(name: str) -> None:
    _, _, example = (COMMANDS[name].epilog or "").partition("Example: ")
    assert shlex.split(example)[: 1 + len(name.split())] == ["plumbline", *name.split()]
    _parse(ROOT, shlex.split(example))
    shown = CliRunner().invoke(app, [*name.split(), "--help"], env={"COLUMNS": "100"}).stdout
    assert shown.rstrip().endswith(example.split()[-1])
    undocumented = [line for line in shown.splitlines() if line.strip().startswith("--") and len(line.split()) < 2]
    assert undocumented == []


def _parse(command: Any, words: list[str], parent: Any = None) -> None:
    """Read words as the command line does, down to the command's own options and arguments, and run nothing."""
    context = command.make_context(words[0], words[1:], parent=parent)
    if hasattr(command, "commands"):
        left = [*context._protected_args, *context.args]
        _, inner, _ = command.resolve_command(context, left)
        _parse(inner, left, context)


def test_an_example_with_an_option_that_does_not_exist_would_be_found() -> None:
    with pytest.raises(Exception, match="No such option: --cron"):
        _parse(ROOT, ["plumbline", "schedule", "--cron", "0 3 * * 1"])
    with pytest.raises(Exception, match="No such command 'lists'"):
        _parse(ROOT, ["plumbline", "keys", "lists"])


# --- completion ------------------------------------------------------------------------------------------------------

SHELL = """
export HOME={home}; mkdir -p $HOME; cd {folder}
{plumbline} --install-completion > /dev/null
source $HOME/.bashrc
export PATH={bin}:$PATH
COMP_WORDS=({words}); COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
_plumbline_completion plumbline
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("completion") / "workspace"
    init_workspace(root)
    return root


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("plumbline re", {"retrain", "reproduce", "restore", "restore-workspace"}),
        ("plumbline keys r", {"rotate", "revoke"}),
        ("plumbline retrain --set trigger.deb", {"trigger.debounce_s="}),
        ("plumbline audit ''", {"assistant", "models:/assistant@champion", "models:/assistant@challenger"}),
        ("plumbline promote --alias c", {"candidate", "challenger", "champion"}),
        ("plumbline serve --alias c", {"challenger", "champion"}),
        ("plumbline stage cur", {"curate"}),
        ("plumbline ingest h", {"human_pairs"}),
        ("plumbline intake token ann --source j", {"judged_pairs"}),
        ("plumbline run poll", {"poll-freshness"}),
        ("plumbline audit --format o", {"openlineage"}),
    ],
)
def test_a_real_shell_completes_a_word(workspace: Path, tmp_path: Path, words: str, offered: set[str]) -> None:
    script = SHELL.format(
        home=tmp_path / "home", folder=workspace, plumbline=PLUMBLINE, bin=PLUMBLINE.parent, words=words
    )
    done = subprocess.run(["bash", "--norc", "-c", script], capture_output=True, text=True, check=True)
    assert offered <= set(done.stdout.split()), done.stderr
    half = shlex.split(words)[-1]
    assert all(word.startswith(half) for word in done.stdout.split())


def test_outside_a_workspace_no_model_is_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = {"_PLUMBLINE_COMPLETE": "complete_bash", "COMP_WORDS": "plumbline audit ", "COMP_CWORD": "2"}
    assert _plumbline(**asked).strip() == ""


def test_the_script_of_this_shell_can_be_shown() -> None:
    done = subprocess.run(
        ["bash", "--norc", "-c", f"{PLUMBLINE} --show-completion; true"], capture_output=True, text=True, check=True
    )
    assert "complete -o default -F _plumbline_completion plumbline" in done.stdout
