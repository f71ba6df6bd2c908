"""What `init` makes of folders and repositories that are there, and the lock that lets one run at a time in."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import Timeout

from plumbline.data_contracts.errors import UsageError, VersioningError, WorkspaceBusy
from plumbline.flows.graph.workspaces import exclusive_run, find_workspace, init_workspace
from plumbline.tasks.storage.versioning.git import run_git

pytestmark = pytest.mark.slow


def test_a_second_run_is_refused_and_the_next_one_let_in(tmp_path: Path) -> None:
    with (
        exclusive_run(tmp_path),
        pytest.raises(WorkspaceBusy, match="another run is under way"),
        exclusive_run(tmp_path),
    ):
        pytest.fail("two runs in one workspace")
    with exclusive_run(tmp_path):
        pass


def test_the_timeout_of_another_lock_is_not_told_as_a_busy_workspace(tmp_path: Path) -> None:
    with pytest.raises(Timeout), exclusive_run(tmp_path):
        raise Timeout("other.lock")
    with exclusive_run(tmp_path):  # and the workspace was let go of
        pass


# --- init ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of a person who has their own settings of git; none of them yet."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def repository(home: Path, tmp_path: Path) -> Path:
    """A repository of a person, with a file of theirs and no commit."""
    root = tmp_path / "repository"
    root.mkdir()
    git(root, "init", "--quiet")
    (root / "own.txt").write_text("mine")
    return root


def git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True).stdout


def everything(root: Path) -> dict[str, bytes | None]:
    """All that is there but for git's own objects, which an undone step may leave."""
    found = {path.relative_to(root).as_posix(): path for path in root.rglob("*")}
    return {
        name: path.read_bytes() if path.is_file() else None
        for name, path in sorted(found.items())
        if ".git/objects/" not in name
    }


@pytest.mark.parametrize(
    ("place", "rule", "hidden"),
    [
        (".gitignore", "data/", "data/"),
        (".gitignore", "*.dvc", ".dvc/"),
        (".git/info/exclude", "*.lock", "dvc.lock"),
        ("global", "params*", "params"),
    ],
)
def test_a_rule_that_hides_what_git_has_to_keep_is_named_with_file_and_line(
    repository: Path, home: Path, rule: str, hidden: str, place: str
) -> None:
    file = home / ".config/git/ignore" if place == "global" else repository / place
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"# of a template\n\n{rule}\n")
    before = everything(repository)
    with pytest.raises(UsageError) as refused:
        init_workspace(repository)
    said = str(refused.value)
    assert f"the rule {rule} in {file}, line 3" in said
    assert hidden in said
    assert everything(repository) == before
    file.write_text("")
    init_workspace(repository)
    assert find_workspace(repository) == repository


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("params.yaml", "lr: 1\ntrain: {epochs: 3}\n"),
        ("params.yaml", ""),
        ("params.yaml", "no: [yaml"),
        ("dvc.yaml", "stages:\n  train:\n    cmd: python train.py\n"),
    ],
)
def test_a_file_of_another_program_with_our_name_is_named(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=f"{name}: expected Plumbline's file, found one of another program"):
        init_workspace(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == text


def test_own_files_are_completed(tmp_path: Path) -> None:
    init_workspace(tmp_path)
    (tmp_path / "dvc.yaml").unlink()
    assert init_workspace(tmp_path) == ["dvc.yaml"]


def test_a_rule_that_is_taken_back_hides_nothing(repository: Path) -> None:
    (repository / ".gitignore").write_text("data/*\n!data/raw.dvc\n!data/.gitignore\n")
    init_workspace(repository)


@pytest.mark.parametrize("given", [None, "*.pyc\n", "!.plumbline/\n"])
def test_the_state_of_this_machine_is_ignored_in_every_case(repository: Path, given: str | None) -> None:
    if given is not None:
        (repository / ".gitignore").write_text(given)
    (repository / "below").mkdir()
    for root in (repository, repository / "below" / "workspace"):
        init_workspace(root)
        (root / ".plumbline/services").mkdir(parents=True)
        (root / ".plumbline/services/secret").write_text("x")
        assert ".plumbline" not in run_git(root, "status", "--porcelain", "--untracked-files=all")
        assert ".plumbline" not in run_git(root, "ls-files")
    assert given is None or (repository / ".gitignore").read_text() == given


def _sign_without_key(root: Path, home: Path) -> None:
    (home / ".gitconfig").write_text("[commit]\n gpgsign = true\n[user]\n signingkey = none\n[gpg]\n program = false\n")


def _failing_hooks(root: Path, home: Path) -> None:
    for name in ("pre-commit", "prepare-commit-msg", "commit-msg", "post-commit"):
        hook = root / ".git/hooks" / name
        hook.parent.mkdir(exist_ok=True)
        hook.write_text("#!/bin/sh\nexit 1\n")
        hook.chmod(0o755)


def _missing_template(root: Path, home: Path) -> None:
    (home / ".gitconfig").write_text("[commit]\n template = ~/not-there\n verbose = true\n")


def _no_identity(root: Path, home: Path) -> None:
    (home / ".gitconfig").write_text("[user]\n useConfigOnly = true\n name =\n")


@pytest.mark.parametrize("settings", [_sign_without_key, _failing_hooks, _missing_template, _no_identity])
def test_a_persons_settings_of_git_do_not_stop_the_first_commit(
    repository: Path, home: Path, settings: Callable[[Path, Path], None]
) -> None:
    settings(repository, home)
    (repository / "staged.txt").write_text("not yet committed")
    git(repository, "add", "staged.txt")
    init_workspace(repository)
    assert "data/raw.dvc" in run_git(repository, "ls-tree", "-r", "--name-only", "HEAD").splitlines()
    left = run_git(repository, "status", "--porcelain").splitlines()
    assert sorted(left) == ["?? own.txt", "A  staged.txt"]  # theirs to commit


@pytest.mark.parametrize(
    ("place", "step"),
    [
        ("new", "plumbline.tasks.storage.versioning.workspace.Versions.track"),
        ("folder", "plumbline.flows.graph.workspaces.template_files"),
        ("repository", "plumbline.tasks.storage.versioning.git.commit_git"),
    ],
)
def test_a_failure_leaves_nothing_half_made_and_what_was_there(
    repository: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    step: str,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    root = {"new": tmp_path / "a/b/new", "repository": repository, "folder": tmp_path / "folder"}[place]
    if place != "new":
        (root / "params").mkdir(parents=True, exist_ok=True)
        (root / "data").mkdir()
        (root / "params/own.yaml").write_text("seed: 1")
        (root / "data/.gitignore").write_text("/mine")

    def fail(*_: object, **__: object) -> None:
        raise VersioningError("no space for it")

    before = everything(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(VersioningError):
        patch.setattr(step, fail)
        init_workspace(root)
    assert everything(tmp_path) == before
    init_workspace(root)
    assert find_workspace(root) == root
