"""The house: one name for everything, found wherever it is installed, and no name that means two things."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
_OVERRIDES = """
import importlib, inspect, sys
ours = ("plumbline", "builtins", "pydantic", "typing", "abc", "enum")
for name in sys.argv[1:]:
    for own in vars(importlib.import_module(name)).values():
        if not inspect.isclass(own) or own.__module__ != name:
            continue
        for member in vars(own):
            for base in own.__mro__:
                foreign = base.__module__.partition(".")[0] not in ours
                if member.startswith("_") and not member.startswith("__") and foreign and member in vars(base):
                    print(f"{own.__name__}.{member}")
"""
_MADE_BY_THE_LIBRARY = {"_backward_cls", "_abc_impl"}  # by torch.autograd.Function and by abc
PACKAGES = ("data_contracts", "flows", "tasks")


def sources(*folders: str) -> Iterator[tuple[str, ast.Module]]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def test_no_public_class_is_defined_twice() -> None:
    found = defaultdict(list)
    for path, tree in sources(*PACKAGES):
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].append(path)
    assert len(found) > 200
    assert {name: paths for name, paths in found.items() if len(paths) > 1} == {}


def test_our_modules_are_imported_under_one_name() -> None:
    """`tasks.x` and `plumbline.tasks.x` would be two modules of the same file, each with a state of its own."""
    wrong = []
    for path, tree in sources(*PACKAGES, "plumbline", "benchmarks", "tests"):
        for node in ast.walk(tree):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            wrong += [f"{path}:{node.lineno}" for name in names if name.split(".")[0] in PACKAGES]
    assert wrong == []


def test_a_folder_with_modules_of_our_folders_names_starts_the_command_line_and_a_script(tmp_path: Path) -> None:
    """A user's own `tasks.py`, `flows/` and `data_contracts.py` stay theirs, and stand in nobody's way."""
    (tmp_path / "tasks.py").write_text("MINE = 'tasks'\n")
    (tmp_path / "data_contracts.py").write_text("MINE = 'contracts'\n")
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows/__init__.py").write_text("MINE = 'flows'\n")
    script = tmp_path / "script.py"
    script.write_text(
        "import tasks, flows, data_contracts, plumbline.flows.cli.main\n"
        "from plumbline.tasks.operations import promote_model\n"
        "print(tasks.MINE, flows.MINE, data_contracts.MINE)\n"
    )
    hiding = ("PYTHONSAFEPATH", "PYTHONPATH")
    environment = {name: value for name, value in os.environ.items() if name not in hiding}
    for command in ([sys.executable, str(script)], [sys.executable, "-m", "script"]):
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, "tasks flows contracts\n"), done.stderr
    listed = subprocess.run(
        [sys.executable, "-m", "plumbline", "--help"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (listed.returncode, "retrain" in listed.stdout) == (0, True), listed.stderr


def test_what_overrides_a_private_name_of_a_library_says_so() -> None:
    """A library that renames the method would leave ours uncalled, without a word: `require_names` ends the import."""
    guarded, modules = set(), []
    for path, tree in sources("tasks", "flows"):
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.bases]
        if classes:
            modules.append("plumbline." + path.removesuffix(".py").replace("/", ".").removesuffix(".__init__"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "require_names":
                guarded |= {name.value for name in node.args[2:] if isinstance(name, ast.Constant)}
    done = subprocess.run([sys.executable, "-c", _OVERRIDES, *modules], capture_output=True, text=True, check=True)
    overridden = {line for line in done.stdout.split() if line.split(".")[1] not in _MADE_BY_THE_LIBRARY}
    assert "PPOTrainer._clip_grad_norm" in overridden
    assert {line for line in overridden if line.split(".")[1] not in guarded} == set()
