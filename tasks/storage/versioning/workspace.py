"""A workspace under version control: its set-up, and what DVC knows about each stage.

A stage goes `require_clean_inputs` -> `reuse` or (run, `commit_stage`). Then `dvc repro` has
nothing to do, because both drivers keep the same `dvc.lock` and cache.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plumbline.data_contracts.artifact import verify_artifact, write_bytes
from plumbline.data_contracts.errors import ArtifactError, InputsChangedError, VersioningError
from plumbline.tasks.params.section import RESOLVED_FILE
from plumbline.tasks.storage.database.location import REMOTE
from plumbline.tasks.storage.versioning.git import init_git
from plumbline.tasks.storage.versioning.lock import read_tracked
from plumbline.tasks.storage.versioning.objects import ObjectStore, md5_of
from plumbline.tasks.storage.versioning.readers import is_read
from plumbline.tasks.storage.versioning.remote import (
    NAME,
    default_remote,
    name_origin,
    own_remote,
    settle_memory,
    settle_remote,
)
from plumbline.tasks.storage.versioning.repo import BUSY_WAIT_S, Result, read_repo, with_repo
from plumbline.tasks.storage.versioning.silence import silence
from plumbline.tasks.storage.versioning.standing import (
    Standing,
    is_params,
    outputs_at_hand,
    restore_from_run_cache,
    standings,
)

if TYPE_CHECKING:
    from dvc.output import Output
    from dvc.repo import Repo
    from dvc.stage import Stage

_TRANSFER_ATTEMPTS = 3
_EXAMPLES = 3
_MEND = (
    "`plumbline doctor --fix` brings back recorded files that changed or vanished, sets changed ones aside, and leaves "
    "what was added."
)


def init_versioning(root: Path, remote: str | None = None) -> None:
    """Put `root` under git and DVC, with a default remote. What is there already is kept.

    Files are copied (or reflinked) between cache and workspace: a write through a hardlink would
    change the cache. `remote` is a DVC remote URL; a folder inside the workspace by default, named relative to it, so
    that a copy never uses the original's. In a clone, that one's remote is named `origin`, to pull from.
    """
    silence()
    from dvc.config import Config
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    root.mkdir(parents=True, exist_ok=True)
    init_git(root)
    try:
        if not (root / ".dvc" / "config").exists():
            Repo.init(os.fspath(root), force=(root / ".dvc").exists()).close()
        with Config(os.fspath(root / ".dvc"), validate=False).edit("repo") as config:
            config["core"].setdefault("analytics", False)
            config["core"].setdefault("check_update", False)
            config["cache"].setdefault("type", "reflink,copy")
            if remote is not None or "remote" not in config["core"]:
                config["remote"][NAME] = {"url": own_remote(root) if remote is None else _absolute(root, remote)}
                config["core"]["remote"] = NAME
        found = default_remote(root)
        if found is not None and found[1]["url"] == os.fspath(root.resolve() / REMOTE):
            (root / REMOTE).mkdir(parents=True, exist_ok=True)
        settle_remote(root)
        settle_memory(root)
        name_origin(root)
    except DvcException as error:
        raise VersioningError(f"{root}: cannot set up DVC: {error}") from error


def _absolute(root: Path, remote: str) -> str:
    return remote if "://" in remote else os.fspath((root.resolve() / remote).resolve())


class Versions:
    """DVC's view of one workspace. Safe to use from several threads of one process.

    Every method raises `VersioningError`, also when another process keeps the workspace busy for
    longer than `wait_s` seconds.
    """

    def __init__(self, root: Path, *, wait_s: float = BUSY_WAIT_S) -> None:
        self.root = root.resolve()
        self._wait_s = wait_s
        self._params_seen: dict[str, Any] = {}
        self._inputs_seen: dict[str, dict[str, str]] = {}

    def require_clean_inputs(self, name: str) -> None:
        """Refuse to run on, or to overwrite, what a person edited by hand.

        1. A dependency that DVC versions must be exactly what `dvc.lock` or its `.dvc` file says.
        2. The stage's own output must be as recorded, or be a whole artifact: that is what a run
           leaves that was killed after writing and before committing.
        """

        def check(repo: Repo) -> None:
            stage = _load_stage(repo, name)
            for dep in stage.deps:
                self._require_clean_dep(repo, dep, name)
            for out in stage.outs:
                self._require_replaceable(repo, out, name)
            self._params_seen[name] = _params_of(stage)
            self._inputs_seen[name] = _inputs_of(stage)

        self._locked(check)

    def standings(
        self,
        names: Sequence[str],
        *,
        values: Mapping[str, Any] | None = None,
        changing: Mapping[str, str] | None = None,
    ) -> dict[str, Standing]:
        """The next step of each stage, in the order of the graph, and the reasons. Nothing in the workspace is changed.

        Refuses what `require_clean_inputs` would: an output that a person edited by hand. `values` and `changing` are
        as of `tasks.storage.versioning.standing.standings`.
        """

        def look(repo: Repo) -> dict[str, Standing]:
            stages = _load_stages(repo, names)
            for name, stage in stages.items():
                for out in stage.outs:
                    self._require_replaceable(repo, out, name)
            return standings(repo, list(stages.values()), values, changing)

        return read_repo(self.root, look)

    def reuse(self, name: str) -> bool:
        """True if the outputs for the present dependencies and params are at hand, without running.

        A clean stage is reused as it is; one whose output is missing from the cache alone is recorded
        again. Otherwise DVC's cache and run-cache are asked (a stage that ran before with these inputs,
        or outputs that were deleted): its outputs are checked out and recorded. Call after
        `require_clean_inputs`, which checks what is replaced.
        """

        def attempt(repo: Repo) -> bool:
            stage = _load_stage(repo, name)
            at_hand = outputs_at_hand(stage)
            if at_hand == "reuse":
                return True
            if at_hand is None and not restore_from_run_cache(stage):
                return False
            _commit(repo, name)
            return True

        return self._locked(attempt)

    def commit_stage(self, name: str) -> None:
        """Record what is on disk as the stage's result: cache, `dvc.lock` and run-cache.

        Refuses when a dependency or param changed while the stage ran, since the record would then
        claim inputs that the output was not made from: `InputsChangedError` where an input is another, clean
        version by now, as the raw store is when feedback was ingested meanwhile.
        """

        def commit(repo: Repo) -> None:
            stage = _load_stage(repo, name)
            for dep in stage.deps:
                self._require_clean_dep(repo, dep, name)
            seen = self._params_seen.get(name)
            if seen is not None and seen != _params_of(stage):
                raise VersioningError(
                    f"stage {name}: {RESOLVED_FILE} changed while it ran, so its output cannot be recorded under the "
                    f"new values. Run again; leave that file alone during a run."
                )
            self._require_same_inputs(stage, name)
            _commit(repo, name)

        self._locked(commit)

    def record(self, name: str) -> None:
        """Record a stage that was made here, as it is on disk, unless `dvc.lock` has it so."""

        def commit(repo: Repo) -> None:
            if _load_stage(repo, name).status():
                _commit(repo, name)

        self._locked(commit)

    def track(self, path: str, before: Callable[[], None] | None = None) -> str | None:
        """Version a folder of immutable files (raw batches) as one; return its DVC hash.

        The folder is append-only: a recorded file that changed or vanished is refused by name. `before` adds files to
        it under the same lock; where a `dvc` command that somebody runs by hand reads the folder now, nothing happens
        and None is returned.
        """

        def add(repo: Repo) -> str | None:
            if before is not None:
                if is_read(repo, self.root / path):
                    return None
                before()
            known = _find_out(repo, self.root / path)
            if known is not None and known.hash_info and not known.workspace_status() and not known.changed_cache():
                return str(known.hash_info.value)
            if known is not None and known.hash_info:
                self._require_append_only(repo, known)
            (stage,) = repo.add(os.fspath(self.root / path))
            return str(stage.outs[0].hash_info.value)

        return self._locked(add)

    def retrack(self, path: str, change: Callable[[], None]) -> str:
        """Change an append-only folder under the repository's lock and version what it then is; return its DVC hash.

        Only for an erasure, which signs what it changed. Raises `VersioningError` while somebody reads the folder by a
        `dvc` command, before anything was changed.
        """

        def add(repo: Repo) -> str:
            if is_read(repo, self.root / path):
                raise VersioningError(f"{path}: a dvc command reads it. Wait for it to end, then run again.")
            change()
            (stage,) = repo.add(os.fspath(self.root / path))
            return str(stage.outs[0].hash_info.value)

        return self._locked(add)

    def changed_tracked(self, path: str) -> list[str]:
        """Recorded files of an append-only folder that changed or vanished, for whoever may read: it takes no lock."""
        entry = read_tracked(self.root).get(path)
        recorded = ObjectStore(self.root).files(str(entry["md5"])) if entry is not None else {}
        places = {name: self.root / path / name for name in recorded}
        return [name for name, place in places.items() if not place.is_file() or md5_of(place) != recorded[name]]

    def mend_tracked(self, path: str, aside: Path) -> list[str]:
        """Bring back recorded files of an append-only folder that changed or vanished; return their names.

        Changed ones are moved into `aside` first, and files that were added stay. Raises `VersioningError` if no
        intact copy of a file is left in cache and remote.
        """
        objects = ObjectStore(self.root)

        def mend(repo: Repo) -> list[str]:
            damaged, present = self._damage(repo, path)
            for name, digest in damaged.items():
                data, target = objects.read(digest), self.root / path / name
                if name in present:
                    aside.mkdir(parents=True, exist_ok=True, mode=0o700)
                    target.rename(_free(aside / target.name))
                target.parent.mkdir(parents=True, exist_ok=True)
                write_bytes(target, data)
                target.chmod(target.stat().st_mode & 0o444)
            return sorted(damaged)

        return self._locked(mend)

    def _damage(self, repo: Repo, path: str) -> tuple[dict[str, str], dict[str, str]]:
        """Files of a tracked folder that are not as recorded, with the hash that they had; and all that are there."""
        out = _find_out(repo, self.root / path)
        if out is None or not out.hash_info or not out.workspace_status():
            return {}, {}
        recorded, present = _listings(repo, out) if out.exists else (_files_of(out.get_obj()), {})
        return {name: digest for name, digest in recorded.items() if present.get(name) != digest}, present

    def push_tracked(self, path: str) -> None:
        """Copy a tracked path alone to the default remote: what `push` cannot do hours later fails at once."""
        self._transfer("dvc push", lambda repo: repo.push(targets=[os.fspath(self.root / f"{path}.dvc")]))

    def push(self) -> None:
        """Copy every recorded object, and the run-cache, to the default remote."""
        self._transfer("dvc push", lambda repo: repo.push(run_cache=True))

    def pull(self) -> None:
        """Fetch every recorded object, and the run-cache, from the default remote into cache and workspace."""
        self._transfer("dvc pull", lambda repo: repo.pull(run_cache=True))

    def checkout(self) -> None:
        """Make the workspace what `dvc.lock` says, from the cache. Refuses to overwrite unsaved files."""
        self._locked(lambda repo: repo.checkout())

    def _locked(self, action: Callable[[Repo], Result]) -> Result:
        return with_repo(self.root, action, wait_s=self._wait_s)

    def _transfer(self, what: str, action: Callable[[Repo], Any]) -> None:
        for attempt in range(1, _TRANSFER_ATTEMPTS + 1):
            try:
                self._locked(action)
                return
            except (VersioningError, OSError) as error:
                if attempt == _TRANSFER_ATTEMPTS:
                    raise VersioningError(
                        f"{what} failed {attempt} times, last: {error} Check the remote (`dvc remote list`, its "
                        f"access and free space) and run again: finished stages, and what was moved already, are kept. "
                        f"registry.push=false registers without it."
                    ) from error
                time.sleep(2.0 ** (attempt - 1) / 2)

    def _name(self, entry: Output) -> str:
        return os.path.relpath(entry.fs_path, self.root)

    def _require_clean_dep(self, repo: Repo, dep: Output, stage: str) -> None:
        if is_params(dep):
            return
        producer = _find_out(repo, Path(dep.fs_path), containing=True)
        name = self._name(producer or dep)
        if not dep.exists:
            raise VersioningError(
                f"stage {stage}: its input {self._name(dep)} is missing. Bring it back with `dvc checkout "
                f"{self._name(dep)}` or `dvc pull`, or make it with `plumbline retrain`."
            )
        if producer is None or not producer.workspace_status():
            return
        if not producer.hash_info:
            raise VersioningError(f"stage {stage}: its input {name} was never recorded. Run `plumbline retrain`.")
        if producer.stage.is_data_source and not self._damage(repo, name)[0]:
            raise InputsChangedError(
                f"stage {stage}: its input {name} was added to while it is being read: "
                f"{self._differences(repo, producer)}. Nothing is lost: the next run takes it in. Run again."
            )
        if producer.stage.is_data_source:
            raise VersioningError(
                f"stage {stage}: its input {name} is not what DVC recorded: {self._differences(repo, producer)}. "
                f"{_MEND} Ingest corrected feedback as a new file."
            )
        raise VersioningError(
            f"stage {stage}: its input {name} is not what DVC recorded: {self._differences(repo, producer)}. "
            f"A run starts on clean inputs. `dvc checkout {name}` brings the recorded version back; to keep the edit, "
            f"make it where {name} comes from and run that stage."
        )

    def _require_same_inputs(self, stage: Stage, name: str) -> None:
        seen = self._inputs_seen.get(name)
        if seen is None:
            return
        now = _inputs_of(stage)
        other = sorted(path for path in now if now[path] != seen.get(path))
        if other:
            names = ", ".join(os.path.relpath(path, self.root) for path in other)
            raise InputsChangedError(
                f"stage {name}: its input {names} got another version while it ran, as when feedback is "
                f"ingested; its output may not hold that and is not recorded. Run again."
            )

    def _require_replaceable(self, repo: Repo, out: Output, stage: str) -> None:
        if not out.exists or not out.workspace_status():
            return
        path = Path(out.fs_path)
        if path.is_dir() and not any(path.iterdir()):
            return
        try:
            problems = verify_artifact(path)
        except ArtifactError:
            problems = None
        if problems == []:
            return
        named = ", ".join(problem.path for problem in (problems or [])[:_EXAMPLES]) or self._differences(repo, out)
        raise VersioningError(
            f"stage {stage}: its output {self._name(out)} was edited by hand ({named}) and would be replaced. "
            f"`dvc checkout {self._name(out)}` brings the recorded version back; or move the edited folder away. "
            f"Then run again."
        )

    def _require_append_only(self, repo: Repo, out: Output) -> None:
        changed = sorted(self._damage(repo, self._name(out))[0])
        if changed:
            raise VersioningError(
                f"{self._name(out)} is append-only, but {len(changed)} recorded file(s) changed or vanished: "
                f"{', '.join(changed[:_EXAMPLES])}. {_MEND} Ingest corrected feedback as a new file."
            )

    def _differences(self, repo: Repo, out: Output) -> str:
        """Up to three files that differ from the record."""
        if not out.hash_info or not out.exists:
            return "never recorded" if out.exists else "missing"
        recorded, present = _listings(repo, out)
        names = sorted(name for name in {*recorded, *present} if recorded.get(name) != present.get(name))
        words = {(True, True): "changed", (True, False): "missing", (False, True): "added"}
        shown = [f"{name} {words[name in recorded, name in present]}" for name in names[:_EXAMPLES]]
        more = f" and {len(names) - _EXAMPLES} more" if len(names) > _EXAMPLES else ""
        return (", ".join(shown) or "changed") + more


def _free(path: Path) -> Path:
    """A path beside `path` that nothing has."""
    number, free = 1, path
    while free.exists():
        free, number = path.with_name(f"{number}-{path.name}"), number + 1
    return free


def _load_stages(repo: Repo, names: Sequence[str]) -> dict[str, Stage]:
    """As `_load_stage`, for several: DVC reads `dvc.yaml` and the params that it names once."""
    found = {stage.name: stage for stage in repo.stage.load_all(os.path.join(repo.root_dir, "dvc.yaml"))}
    return {name: found[name] if name in found else _load_stage(repo, name) for name in names}


def _load_stage(repo: Repo, name: str) -> Stage:
    from dvc.stage.exceptions import StageFileDoesNotExistError, StageNotFound

    try:
        return repo.stage.load_one(os.path.join(repo.root_dir, "dvc.yaml"), name)
    except (StageNotFound, StageFileDoesNotExistError) as error:
        raise VersioningError(
            f"stage {name}: expected it in {repo.root_dir}/dvc.yaml, found no such stage. "
            f"`plumbline migrate` writes the graph of the installed program."
        ) from error


def _commit(repo: Repo, name: str) -> None:
    # A bare name would be looked up in the current directory's dvc.yaml.
    repo.commit(os.path.join(repo.root_dir, f"dvc.yaml:{name}"), force=True, with_deps=False)


def _params_of(stage: Stage) -> list[Any]:
    return [dep.read_params() for dep in stage.deps if is_params(dep)]


def _inputs_of(stage: Stage) -> dict[str, str]:
    """Path of each input -> the hash of what is there now."""
    inputs = [dep for dep in stage.deps if not is_params(dep)]
    return {dep.fs_path: str(dep.get_hash().value) for dep in inputs}


def _find_out(repo: Repo, path: Path, *, containing: bool = False) -> Output | None:
    """The output or tracked path at `path`, or the one that contains it."""
    from dvc.exceptions import OutputNotFoundError

    try:
        return repo.find_outs_by_path(os.fspath(path), strict=not containing)[0]
    except OutputNotFoundError:
        return None


def _listings(repo: Repo, out: Output) -> tuple[dict[str, str], dict[str, str]]:
    """Files of an output as recorded and as on disk: relative path -> md5. A single file is named "."."""
    from dvc_data.hashfile.build import build

    _, _, present = build(repo.cache.local, out.fs_path, out.fs, "md5", ignore=repo.dvcignore, dry_run=True)
    recorded = out.get_obj()
    return _files_of(recorded), _files_of(present)


def _files_of(obj: Any) -> dict[str, str]:
    from dvc_data.hashfile.tree import Tree

    if obj is None:
        return {}
    if isinstance(obj, Tree):
        return {"/".join(key): str(info.value) for key, _, info in obj}
    return {".": str(obj.hash_info.value)}
