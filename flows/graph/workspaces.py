"""Workspaces: what `plumbline init` writes, and how a command finds the one it stands in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

from filelock import FileLock, Timeout

from plumbline.data_contracts.artifact import FULL_DISK, write_bytes
from plumbline.data_contracts.errors import UsageError, WorkspaceBusy
from plumbline.data_contracts.secrets import has_password, mask
from plumbline.flows.graph.half_made import undone_on_failure
from plumbline.tasks.params.section import PARAMS_FILE, RECIPES, RESOLVED_FILE, SCHEMA_FILE

_IGNORE_ALL = b"*\n"  # state, logs and databases of this machine, whatever a .gitignore that was there says
SAMPLE_WORLD = "sample_world"
"""The recipe of the sample world."""

_NO_RECIPE = "# recipe: sample_world"  # the line of the fresh params.yaml that a recipe takes the place of
MADE = (RESOLVED_FILE, SCHEMA_FILE)
"""Files of a workspace that are made from its params."""

_OWN_FOLDERS = (".git", ".dvc", ".plumbline", "params", "data", "data/raw", ".git/index", ".plumbline/.gitignore")
_LOOK_EVERY_S = 1.0  # how often a run that waits looks whether the workspace is free


def template_files(recipe: str | None = None) -> dict[str, bytes]:
    """Every file of a fresh workspace by its relative path, but those made from them (`MADE`)."""
    from plumbline.flows.graph.stages import (
        render_dvc_yaml,  # every stage's module; commands that only look for a workspace need none
    )

    folder = files("plumbline.flows.graph") / "workspace"
    choices = (folder / PARAMS_FILE).read_text(encoding="utf-8")
    if recipe is not None:
        choices = choices.replace(_NO_RECIPE, f"recipe: {recipe}")
    templates = {PARAMS_FILE: choices.encode(), "dvc.yaml": render_dvc_yaml().encode()}
    for item in sorted((folder / "params").iterdir(), key=lambda entry: entry.name):
        templates[f"params/{item.name}"] = item.read_bytes()
    templates[".gitignore"] = (folder / "gitignore").read_bytes()
    return templates


def recipes() -> list[str]:
    """The names of the recipes that a fresh workspace gets."""
    return sorted(Path(name).stem for name in template_files() if name.startswith(f"{RECIPES}/"))


def init_workspace(root: Path, remote: str | None = None, recipe: str | None = None) -> list[str]:
    """Make `root` a workspace: params, graph, git, DVC and a remote. Existing files are kept.

    `recipe` is the one that a fresh `params.yaml` names. Returns the files written. Raises `UsageError` when `root` is
    a file or not writable, `remote` carries a password, or the recipe is none of `recipes`.
    """
    if recipe is not None and recipe not in recipes():
        raise UsageError(f"--recipe {recipe}: unknown recipe; expected one of {', '.join(recipes())}.")
    if root.exists() and not root.is_dir():
        raise UsageError(f"{root}: expected a folder or a new name, found a file. Choose another folder.")
    if remote is not None and has_password(remote):
        raise UsageError(
            f"{mask(remote)}: expected a remote URL without a password, because git keeps it. Leave it out, then run "
            f"`dvc remote modify --local storage password …` in the workspace."
        )
    _refuse_foreign(root)
    with undone_on_failure(root, (*_OWN_FOLDERS, *_versioned_files())):
        return _make_workspace(root, remote, recipe)


def _make_workspace(root: Path, remote: str | None, recipe: str | None) -> list[str]:
    from plumbline.tasks.data.validate_feedback import RAW
    from plumbline.tasks.storage.versioning.git import commit_git, head_commit, init_git
    from plumbline.tasks.storage.versioning.workspace import Versions, init_versioning

    try:
        root.mkdir(parents=True, exist_ok=True)
        init_git(root)
        _refuse_ignored(root)
        (root / RAW).mkdir(parents=True, exist_ok=True)
        written = [name for name, data in template_files(recipe).items() if write_missing(root / name, data)]
        written += write_made(root)
        write_missing(root / ".plumbline" / ".gitignore", _IGNORE_ALL)
    except OSError as error:
        if error.errno in FULL_DISK:
            raise
        raise UsageError(f"{root}: cannot write there ({error.strerror}). Choose another folder.") from error
    init_versioning(root, remote)
    if not (root / f"{RAW}.dvc").exists():
        Versions(root).track(RAW)
    if head_commit(root) is None:
        commit_git(root, "Start a Plumbline workspace", _versioned_files())
    return written


def write_made(root: Path) -> list[str]:
    """Write what is made from the params, and return the names of what was not there so."""
    from plumbline.flows.graph.params_stage import values_for_dvc
    from plumbline.tasks.params.layers import load_params
    from plumbline.tasks.params.resolved import write_resolved
    from plumbline.tasks.params.schema import render_schema

    written = [RESOLVED_FILE] if write_resolved(root, values_for_dvc(load_params(root)[0])) else []
    schema = render_schema()
    if not (root / SCHEMA_FILE).is_file() or (root / SCHEMA_FILE).read_bytes() != schema:
        write_bytes(root / SCHEMA_FILE, schema)
        written.append(SCHEMA_FILE)
    return written


def _versioned_files() -> list[str]:
    """The files of a workspace that git keeps, by relative path; some of them come with the first run."""
    from plumbline.flows.graph.stages import STAGES
    from plumbline.tasks.data.validate_feedback import RAW

    outs = {f"{Path(stage.out).parent.as_posix()}/.gitignore" for stage in STAGES.values()}
    by_dvc = {".dvc/config", ".dvc/.gitignore", ".dvcignore", "dvc.lock", f"{RAW}.dvc", "data/.gitignore"}
    return sorted({*template_files(), *MADE, *by_dvc, *outs})


def _refuse_ignored(root: Path) -> None:
    """Name the rule that hides from git what it has to keep: DVC refuses it, or clones would lack it."""
    from plumbline.tasks.storage.versioning.git import ignoring_rules

    rules = ignoring_rules(root, _versioned_files())
    if rules:
        path, rule = next(iter(rules.items()))
        more = f" and {len(rules) - 1} more" if len(rules) > 1 else ""
        raise UsageError(
            f"{root}: expected git to keep {path}{more}, found it ignored by {rule}. Remove that line or narrow it "
            f"(DVC itself ignores the data), or choose another folder. Nothing was changed."
        )


def _refuse_foreign(root: Path) -> None:
    """Name a `params.yaml` or `dvc.yaml` of another program: it would be kept, and no command could use it."""
    from plumbline.tasks.params.whole import Params

    for name, expected in (
        (PARAMS_FILE, set(Params.model_fields)),
        ("dvc.yaml", _names(template_files()["dvc.yaml"])),
    ):
        path = root / name
        if path.is_file() and not _names(path.read_bytes()) & expected:
            raise UsageError(
                f"{path}: expected Plumbline's file, found one of another program, which uses the same name. "
                f"Choose another folder, such as one inside of this. Nothing was changed."
            )


def _names(text: bytes) -> set[str]:
    """The names by which a `params.yaml` or `dvc.yaml` is recognised: the keys of it, or its stages."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        loaded = YAML(typ="safe").load(text)
    except YAMLError:
        return set()
    found = loaded.get("stages", loaded) if isinstance(loaded, dict) else None
    return set(found) if isinstance(found, dict) else set()


def find_workspace(start: Path) -> Path:
    """The nearest folder at or above `start` that holds `params.yaml`, `dvc.yaml` and `.dvc`."""
    for folder in (start, *start.parents):
        if all((folder / name).exists() for name in (PARAMS_FILE, "dvc.yaml", ".dvc")):
            return folder
    raise UsageError(
        f"{start}: not inside a Plumbline workspace (expected {PARAMS_FILE}, dvc.yaml and .dvc here or above). "
        f"Make one with `plumbline init DIR`, then run the command there or with `-C DIR`."
    )


@contextmanager
def exclusive_run(root: Path, wait_s: float = 0.0) -> Iterator[None]:
    """Hold the workspace for one run; the operating system lets go of it however the process ends.

    Raises `WorkspaceBusy` when another run still holds it after `wait_s` seconds.
    """
    lock = root / ".plumbline" / "run.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(lock, timeout=wait_s, poll_interval=_LOOK_EVERY_S if wait_s else 0.05)
    try:
        claim = held.acquire()
    except Timeout:
        raise WorkspaceBusy(
            f"{root}: another run is under way in this workspace. Wait for it to end, or use another workspace "
            f"(`plumbline init DIR`, or a git clone, `plumbline init` in it and `dvc pull -r origin`): two runs never "
            f"share one."
        ) from None
    with claim:  # outside of the `try`: another lock's Timeout in the run does not make this one busy
        yield


def write_missing(path: Path, data: bytes) -> bool:
    """Write a file that is not there; False if it is."""
    if path.exists():
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, data)
    return True


if __name__ == "__main__":
    for name, data in template_files().items():
        write_missing(Path(name), data)
