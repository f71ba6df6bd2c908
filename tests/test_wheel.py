"""The wheel, installed where no repository is: it holds all that a workspace needs.

It is built from what the image copies, without a network, by the setuptools of this environment. The new environment
holds the wheel alone and finds the dependencies of this one by a path file, which leaves out this one's editable
install. So these tests do not show that pip resolves the declared dependencies, nor that those suffice (deptry holds
that in `make check`).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import orjson
import pytest

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "tests/flows/tiny.yaml"
SHADOWS = ("tasks.py", "flows/__init__.py", "data_contracts.py")
_WHERE = "import plumbline, plumbline.tasks, torch; print(plumbline.__file__, plumbline.tasks.__file__)"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of what `infra/Dockerfile` copies: an own build leaves nothing in the repository."""
    source = tmp_path_factory.mktemp("source")
    for line in re.findall(r"^COPY (.+) \S+$", (ROOT / "infra/Dockerfile").read_text(), re.MULTILINE):
        for name in line.split():
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, source / name, symlinks=True)
            else:
                shutil.copy(ROOT / name, source)
    command = ["wheel", ".", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", "dist"]
    built = subprocess.run([sys.executable, "-m", "pip", *command], cwd=source, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (found,) = (source / "dist").glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of a new environment with the wheel."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=False, symlinks=True)
    command = ["--python", str(home / "bin/python"), "install", "--no-deps", "--no-index", str(wheel)]
    done = subprocess.run([sys.executable, "-m", "pip", *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (packages,) = home.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return home / "bin"


def _run(installed: Path, folder: Path, *command: str) -> str:
    """Standard output of a program of the new environment, run in a folder as a person would."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    environment = {**kept, "PATH": f"{installed}{os.pathsep}{os.environ['PATH']}"}
    program = str(installed / command[0])
    done = subprocess.run([program, *command[1:]], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_it_holds_every_file_that_git_keeps_of_the_package(wheel: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "flows", "tasks", "data_contracts", "plumbline"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode != 0:
        pytest.skip("no git repository here")
    files = [ROOT / name for name in listed.stdout.splitlines()]
    kept = {str(path.relative_to(ROOT)) for path in files if path.is_file() and not path.is_symlink()}
    expected = {name if name.startswith("plumbline/") else f"plumbline/{name}" for name in kept}
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == expected


@pytest.mark.training
@pytest.mark.timeout(1800)
def test_a_workspace_is_made_trained_and_audited_beside_modules_of_our_folders_names(
    installed: Path, tmp_path: Path
) -> None:
    for name in SHADOWS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise ImportError('a module of the user')\n")
    places = _run(installed, tmp_path, "python", "-c", _WHERE).split()
    assert all(Path(place).is_relative_to(installed.parent) for place in places), places
    _run(installed, tmp_path, "plumbline", "init", "x")
    told = orjson.loads(_run(installed, tmp_path, "plumbline", "retrain", "-C", "x", "--params", str(TINY), "--json"))
    assert told["model_uri"] == "models:/assistant/1"
    assert told["gate"]["passed"]
    audit = orjson.loads(_run(installed, tmp_path, "plumbline", "audit", "assistant", "-C", "x", "--json"))
    assert audit["verified"] is True, audit["problems"]
