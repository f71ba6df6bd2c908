"""Git: the commit and uncommitted changes of a workspace, and which program is running."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from plumbline.data_contracts.errors import VersioningError

PACKAGES = ("data_contracts", "flows", "tasks")
# Written by the program itself, and recorded by hash elsewhere: not a person's change.
_OWN_FILES = (":(exclude,glob)**/dvc.lock", ":(exclude,glob)**/*.dvc", ":(exclude,glob)**/.gitignore")
# A commit that the program makes: nobody is there to answer a hook, to sign or to fill in a template.
_PLAIN = (
    "-c",
    "core.hooksPath=/dev/null",
    "-c",
    "commit.gpgSign=false",
    "-c",
    "commit.template=",
    "-c",
    "commit.status=0",
)
_MAX_DIFF_BYTES = 4 << 20
_TIMEOUT_S = 120


@dataclass(frozen=True, slots=True)
class WorkspaceState:
    """Commit of a workspace (None before the first) and what a person changed since, as a diff."""

    commit: str | None
    dirty: bool
    diff: str

    def as_dict(self) -> dict[str, Any]:
        """As JSON-able facts."""
        return asdict(self)


# What only reads also works in a repository of another user, and runs no program that its configuration names.
_READS = {"safe.directory": "*", "core.fsmonitor": "false", "core.hooksPath": os.devnull}
# An object that is missing is not fetched from a remote that the repository names (a partial clone): that runs the
# remote's programs. The first is understood by every git, and no configuration overrules it.
_ALONE = {"GIT_ALLOW_PROTOCOL": "none", "GIT_NO_LAZY_FETCH": "1"}


def read_git(root: Path, *arguments: str) -> str:
    """As `run_git`, for what changes nothing: also where the repository belongs to another user."""
    settings = {**_ALONE, "GIT_CONFIG_COUNT": str(len(_READS)), "GIT_OPTIONAL_LOCKS": "0"}
    for place, (name, value) in enumerate(_READS.items()):
        settings |= {f"GIT_CONFIG_KEY_{place}": name, f"GIT_CONFIG_VALUE_{place}": value}
    return run_git(root, *arguments, env=settings)


def run_git(
    root: Path, *arguments: str, env: dict[str, str] | None = None, told: str = "", fine: Sequence[int] = (0,)
) -> str:
    """Run git in `root`, independent of the caller's GIT_* variables, and return its output.

    `told` goes to its standard input; `fine` are the exit codes that are no refusal. Raises `VersioningError` when git
    is missing or refuses.
    """
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", os.fspath(root), *arguments],
            env={**clean, "LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0", **(env or {})},
            input=os.fsencode(told),
            capture_output=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise VersioningError("git: expected on PATH, found none. Install git and run again.") from error
    except subprocess.TimeoutExpired as error:
        raise VersioningError(f"git {arguments[0]} in {root}: no answer within {_TIMEOUT_S} s.") from error
    if done.returncode not in fine:
        note = done.stderr.decode(errors="replace").strip()[:400]
        raise VersioningError(f"git {' '.join(arguments)} in {root} failed: {note}")
    return done.stdout.decode(errors="replace")


def head_commit(root: Path) -> str | None:
    """The commit of HEAD, or None before the first one."""
    try:
        return read_git(root, "rev-parse", "--verify", "--quiet", "HEAD^{commit}").strip()
    except VersioningError:
        return None


def is_dirty(root: Path) -> bool:
    """True if a person changed anything since the last commit; files that the program writes do not count."""
    return bool(run_git(root, "status", "--porcelain", "--untracked-files=all", "--", ".", *_OWN_FILES).strip())


def workspace_state(root: Path) -> WorkspaceState:
    """Commit, and the diff that leads from it to the present files, untracked ones included."""
    dirty = is_dirty(root)
    return WorkspaceState(head_commit(root), dirty, _diff(root) if dirty else "")


def _diff(root: Path) -> str:
    """`git diff` of everything not ignored, through an index and objects of its own: the repository is not touched."""
    objects = run_git(root, "rev-parse", "--path-format=absolute", "--git-path", "objects").strip()
    with tempfile.TemporaryDirectory() as scratch:
        env = {
            "GIT_INDEX_FILE": f"{scratch}/index",
            "GIT_OBJECT_DIRECTORY": scratch,
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": objects,
        }
        base = head_commit(root) or run_git(root, "hash-object", "-w", "-t", "tree", os.devnull, env=env).strip()
        run_git(root, "read-tree", base, env=env)
        run_git(root, "add", "--all", "--", ".", env=env)
        diff = run_git(root, "diff", "--cached", "--binary", base, "--", ".", *_OWN_FILES, env=env)
    if len(diff) > _MAX_DIFF_BYTES:
        raise VersioningError(
            f"{root}: uncommitted changes are {len(diff) >> 20} MiB as a diff, expected at most "
            f"{_MAX_DIFF_BYTES >> 20} MiB. Commit them, or name large files in .gitignore, and run again."
        )
    return diff


def init_git(root: Path) -> None:
    """Make `root` a repository, without the hooks of a person's own template; one that is there stays as it is."""
    if not (root / ".git").exists():
        run_git(root, "init", "--quiet", "--template=")


def ignoring_rules(root: Path, paths: Iterable[str]) -> dict[str, str]:
    """Of these paths, there or not, those that git ignores, each with the rule: its text, file and line."""
    # -z: source, line, pattern, path, each ended by a zero; exit code 1: none is ignored
    answer = run_git(root, "check-ignore", "--verbose", "-z", "--stdin", told="\0".join(paths) + "\0", fine=(0, 1))
    fields = answer.split("\0")
    found = zip(fields[0::4], fields[1::4], fields[2::4], fields[3::4], strict=False)
    return {
        path: f"the rule {rule} in {_place(root, source)}, line {line}"
        for source, line, rule, path in found
        if not rule.startswith("!")
    }


def _place(root: Path, source: str) -> str:
    """The file of a rule as a person opens it: git names those of the repository by their path in it."""
    return os.fspath(root / source)


def commit_git(root: Path, message: str, paths: Sequence[str] = (".",)) -> str:
    """Commit these paths, as far as they are there and not ignored, and return the commit; no change keeps its commit.

    No hook, template or signature of a person's own stands in the way. Where no identity is configured, a neutral one
    is used for this commit only.
    """
    there = [path for path in paths if (root / path).exists()]
    run_git(root, "add", "--all", "--", *there)
    head = head_commit(root)
    if head is not None and not run_git(root, "status", "--porcelain", "--", *there).strip():
        return head
    run_git(root, *_PLAIN, *_identity(root), "commit", "--quiet", "--no-verify", "--message", message, "--", *there)
    return run_git(root, "rev-parse", "HEAD").strip()


def _identity(root: Path) -> list[str]:
    identity = []
    for key, value in (("user.name", "plumbline"), ("user.email", "plumbline@localhost")):
        if not run_git(root, "config", "--get", key, fine=(0, 1)).strip():
            identity += ["-c", f"{key}={value}"]
    return identity


def why_unsound(root: Path, commit: str) -> str | None:
    """Git's complaint about a commit or anything it reaches; None if every object is whole."""
    try:
        read_git(root, "cat-file", "-e", f"{commit}^{{commit}}")
        read_git(root, "fsck", "--full", "--no-dangling", "--no-reflogs", "--no-progress", commit)
    except VersioningError as error:
        return " ".join(str(error).split())
    return None


@cache
def program_identity() -> dict[str, str | None]:
    """The running program: version, SHA-256 over its source files (path and content), commit if in a checkout."""
    home = Path(__file__).resolve().parents[3]
    digest = hashlib.sha256()
    for package in PACKAGES:
        for file in sorted((home / package).rglob("*.py")):
            digest.update(f"{file.relative_to(home).as_posix()} ".encode())
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    try:
        number: str | None = version("plumbline")
    except PackageNotFoundError:
        number = None
    return {
        "version": number,
        "source_sha256": digest.hexdigest(),
        "git_commit": head_commit(home) if (home / ".git").exists() else None,
    }


def read_git_objects(root: Path) -> bytes:
    """The content of everything in git's store, history included, one object after the other."""
    return read_git(root, "cat-file", "--batch", "--batch-all-objects", "--unordered").encode("utf-8", "replace")
