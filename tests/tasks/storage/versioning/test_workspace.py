"""Real DVC and git in small workspaces; stages of one file each, with commands that `dvc repro` can run."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from plumbline.data_contracts.artifact import writing
from plumbline.data_contracts.errors import InputsChangedError, VersioningError
from plumbline.tasks.storage.versioning.git import (
    commit_git,
    head_commit,
    is_dirty,
    program_identity,
    run_git,
    workspace_state,
)
from plumbline.tasks.storage.versioning.lock import current_hashes, read_lock
from plumbline.tasks.storage.versioning.objects import ObjectStore
from plumbline.tasks.storage.versioning.workspace import Versions, init_versioning

pytestmark = pytest.mark.slow

DVC_YAML = """\
stages:
  upper:
    cmd: {python} run.py upper
    deps: [data/raw]
    params: [suffix]
    outs: [data/upper]
  double:
    cmd: {python} run.py double
    deps: [data/upper]
    params: [times]
    outs: [data/double]
"""
# What DVC runs: the very method that our driver calls in-process.
RUN = f"""\
import sys
sys.path[:0] = [{str(Path(__file__).parent)!r}]
from pathlib import Path
from {Path(__file__).stem} import Chain
Chain(Path.cwd()).run(sys.argv[1])
"""


class Chain:
    """data/raw -> upper -> double, by our driver (`flow`) or by DVC's (`dvc("repro")`)."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.versions = Versions(root, wait_s=5)

    def dvc(self, *arguments: str) -> str:
        program = Path(sys.executable).with_name("dvc")
        done = subprocess.run([program, *arguments], cwd=self.root, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    def run(self, stage: str) -> None:
        """`upper` writes the raw text in capitals with params' suffix, `double` repeats that `times` times."""
        params = dict(line.split(": ") for line in (self.root / "params.yaml").read_text().splitlines())
        source, target = {"upper": ("raw", "upper"), "double": ("upper", "double")}[stage]
        text = (self.root / f"data/{source}/a.txt").read_text()
        text = text.upper() + params["suffix"] if stage == "upper" else text * int(params["times"])
        with writing(self.root / f"data/{target}", contract="text", version=1) as draft:
            (draft.path / "a.txt").write_text(text)

    def flow(self) -> list[str]:
        """Bring both stages up to date; return those that really ran."""
        ran = []
        for stage in ("upper", "double"):
            self.versions.require_clean_inputs(stage)
            if not self.versions.reuse(stage):
                self.run(stage)
                self.versions.commit_stage(stage)
                ran.append(stage)
        return ran

    def set(self, suffix: str = "x", times: int = 2) -> None:
        (self.root / "params.yaml").write_text(f"suffix: {suffix}\ntimes: {times}\n")


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    root = tmp_path / "work space"
    (root / "data/raw").mkdir(parents=True)
    (root / "data/raw/a.txt").write_text("abc")
    (root / "dvc.yaml").write_text(DVC_YAML.format(python=sys.executable))
    (root / "run.py").write_text(RUN)
    (root / ".gitignore").write_text("/.plumbline/\n")
    chain = Chain(root)
    chain.set()
    init_versioning(root)
    chain.versions.track("data/raw")
    return chain


def test_init_is_idempotent_and_never_hardlinks(chain: Chain) -> None:
    config = (chain.root / ".dvc/config").read_text()
    init_versioning(chain.root)
    assert (chain.root / ".dvc/config").read_text() == config
    assert 'type = "reflink,copy"' in config
    assert "analytics = False" in config
    assert "url = ../.plumbline/remote\n" in config


def test_a_given_remote_replaces_the_default_one(chain: Chain, tmp_path: Path) -> None:
    init_versioning(chain.root, str(tmp_path / "elsewhere"))
    chain.flow()
    chain.versions.push()
    assert (tmp_path / "elsewhere/files/md5").is_dir()


def test_dvc_repro_after_our_driver_is_up_to_date_and_the_other_way_round(chain: Chain) -> None:
    assert chain.flow() == ["upper", "double"]
    assert "Data and pipelines are up to date" in chain.dvc("repro")
    chain.set(times=3)
    assert "Running stage 'double'" in chain.dvc("repro")
    assert chain.flow() == []
    assert (chain.root / "data/double/a.txt").read_text() == "ABCx" * 3


def test_one_changed_param_reruns_only_what_depends_on_it(chain: Chain) -> None:
    chain.flow()
    chain.set(times=3)
    assert chain.versions.reuse("upper")
    assert not chain.versions.reuse("double")
    assert chain.flow() == ["double"]


def test_a_stage_that_never_ran_is_not_reused(chain: Chain) -> None:
    assert not chain.versions.reuse("upper")


def test_an_unknown_stage_is_named(chain: Chain) -> None:
    with pytest.raises(VersioningError, match="stage nosuch: expected it in"):
        chain.versions.reuse("nosuch")


def test_going_back_to_earlier_params_reuses_the_run_cache(chain: Chain) -> None:
    """Param 2, then 3, then 2 again: the third run finds the first one's output, byte for byte."""
    chain.flow()
    first = current_hashes(chain.root)["data/double"]
    chain.set(times=3)
    assert chain.flow() == ["double"]
    assert current_hashes(chain.root)["data/double"] != first
    chain.set(times=2)
    assert chain.flow() == []
    assert current_hashes(chain.root)["data/double"] == first
    assert (chain.root / "data/double/a.txt").read_text() == "ABCxABCx"
    assert "Data and pipelines are up to date" in chain.dvc("repro")


def test_a_changed_input_never_takes_the_old_output_for_the_answer(chain: Chain) -> None:
    """New params are not in the run-cache, though the recorded outputs are in the cache."""
    chain.flow()
    chain.set(suffix="y")
    assert not chain.versions.reuse("upper")
    assert chain.flow() == ["upper", "double"]
    assert (chain.root / "data/double/a.txt").read_text() == "ABCyABCy"


def test_a_deleted_output_comes_back_from_the_cache(chain: Chain) -> None:
    chain.flow()
    shutil.rmtree(chain.root / "data/double")
    assert chain.flow() == []
    assert (chain.root / "data/double/a.txt").read_text() == "ABCxABCx"


def test_an_output_missing_from_the_cache_alone_is_recorded_again_without_running(chain: Chain) -> None:
    chain.flow()
    shutil.rmtree(chain.root / ".dvc/cache")
    assert chain.flow() == []
    chain.versions.track("data/raw")
    assert "Data and pipelines are up to date" in chain.dvc("status")


@pytest.mark.parametrize(
    ("edited", "stage", "words"),
    [
        ("data/upper/a.txt", "double", "its input data/upper is not what DVC recorded: a.txt changed"),
        ("data/upper/a.txt", "upper", r"its output data/upper was edited by hand \(a.txt\)"),
        ("data/upper/new.txt", "double", "new.txt added"),
        ("data/raw/a.txt", "upper", "its input data/raw is not what DVC recorded: a.txt changed"),
    ],
)
def test_a_hand_edit_is_refused_by_name_and_left_alone(chain: Chain, edited: str, stage: str, words: str) -> None:
    chain.flow()
    (chain.root / edited).write_text("edited by hand")
    chain.set(suffix="z", times=5)
    with pytest.raises(VersioningError, match=words):
        chain.versions.require_clean_inputs(stage)
    assert (chain.root / edited).read_text() == "edited by hand"


def test_a_folder_nobody_recorded_is_not_overwritten(chain: Chain) -> None:
    (chain.root / "data/upper").mkdir()
    (chain.root / "data/upper/notes.txt").write_text("mine")
    with pytest.raises(VersioningError, match=r"its output data/upper was edited by hand \(never recorded\)"):
        chain.versions.require_clean_inputs("upper")


def test_a_missing_input_says_how_to_get_it(chain: Chain) -> None:
    chain.flow()
    shutil.rmtree(chain.root / "data/upper")
    with pytest.raises(
        VersioningError, match=r"input data/upper is missing. Bring it back with `dvc checkout data/upper`"
    ):
        chain.versions.require_clean_inputs("double")


def test_a_kill_between_write_and_commit_and_a_rerun_give_the_same_hashes(chain: Chain) -> None:
    chain.flow()
    chain.set(times=4)
    chain.run("double")  # killed here: written, not committed
    assert chain.flow() == ["double"]
    killed = current_hashes(chain.root)
    shutil.rmtree(chain.root / ".dvc/cache")
    shutil.rmtree(chain.root / "data/double")
    (chain.root / "dvc.lock").unlink()
    shutil.rmtree(chain.root / "data/upper")
    assert chain.flow() == ["upper", "double"]
    assert current_hashes(chain.root) == killed


def test_params_edited_during_a_stage_are_not_recorded_for_its_output(chain: Chain) -> None:
    chain.versions.require_clean_inputs("upper")
    chain.run("upper")
    chain.set(suffix="late")
    with pytest.raises(VersioningError, match=r"params\.resolved\.yaml changed while it ran"):
        chain.versions.commit_stage("upper")
    assert "upper" not in read_lock(chain.root)


def test_an_input_edited_during_a_stage_is_not_recorded_for_its_output(chain: Chain) -> None:
    chain.flow()
    chain.set(times=7)
    chain.versions.require_clean_inputs("double")
    chain.run("double")
    (chain.root / "data/upper/a.txt").write_text("late")
    with pytest.raises(VersioningError, match=r"a.txt changed"):
        chain.versions.commit_stage("double")


def test_a_batch_ingested_during_a_stage_is_not_recorded_as_read(chain: Chain) -> None:
    """The raw store is clean before and after, and another: a record would claim a batch that nothing read."""
    chain.versions.require_clean_inputs("upper")
    chain.run("upper")
    (chain.root / "data/raw/b.txt").write_text("more")
    Versions(chain.root).track("data/raw")
    with pytest.raises(InputsChangedError, match=r"data/raw got another version while it ran"):
        chain.versions.commit_stage("upper")
    assert "upper" not in read_lock(chain.root)
    assert chain.flow() == ["upper", "double"]
    assert "Data and pipelines are up to date" in chain.dvc("repro")


def test_raw_data_is_append_only(chain: Chain) -> None:
    before = current_hashes(chain.root)["data/raw"]
    (chain.root / "data/raw/b.txt").write_text("more")
    after = chain.versions.track("data/raw")
    assert after != before
    assert after == chain.versions.track("data/raw")
    (chain.root / "data/raw/a.txt").write_text("rewritten")
    with pytest.raises(VersioningError, match=r"append-only, but 1 recorded file\(s\) changed or vanished: a.txt"):
        chain.versions.track("data/raw")
    assert current_hashes(chain.root)["data/raw"] == after


def test_a_second_clone_pulls_the_same_bytes_and_reruns_nothing(chain: Chain, tmp_path: Path) -> None:
    chain.flow()
    chain.versions.push()
    commit_git(chain.root, "Run")
    run_git(tmp_path, "clone", "--quiet", str(chain.root), "clone")
    clone = Chain(tmp_path / "clone")
    init_versioning(clone.root)
    untouched = {path: path.stat().st_mtime_ns for path in (chain.root / ".plumbline").rglob("*")}
    assert "file" in clone.dvc("pull", "-r", "origin")
    clone.versions.push()
    assert {path: path.stat().st_mtime_ns for path in (chain.root / ".plumbline").rglob("*")} == untouched
    assert (clone.root / "data/double/a.txt").read_bytes() == (chain.root / "data/double/a.txt").read_bytes()
    assert current_hashes(clone.root) == current_hashes(chain.root)
    assert clone.flow() == []


def test_a_remote_that_cannot_be_reached_is_a_clear_error_after_bounded_retries(chain: Chain) -> None:
    (chain.root / "blocked").write_text("a file, not a folder")
    init_versioning(chain.root, str(chain.root / "blocked"))
    chain.flow()
    with pytest.raises(VersioningError, match="dvc push failed 3 times"):
        chain.versions.push()


def test_a_tracked_path_alone_is_pushed_and_what_takes_nothing_is_named(chain: Chain) -> None:
    chain.versions.push_tracked("data/raw")
    raw = ObjectStore(chain.root)
    assert {check.where for check in raw.check_path(current_hashes(chain.root)["data/raw"], "raw", "raw")} >= {
        "cache",
        "remote",
    }
    init_versioning(chain.root, "http://127.0.0.1:9/dvc")
    with pytest.raises(VersioningError, match=r"dvc push failed 3 times.*registry\.push=false"):
        chain.versions.push_tracked("data/raw")


def test_a_cache_that_is_named_as_a_remote_is_found(chain: Chain, tmp_path: Path) -> None:
    """DVC's deprecated `cache.local`: what DVC itself put there is read there."""
    assert chain.dvc("remote", "add", "kept", str(tmp_path / "kept")) == ""
    assert chain.dvc("config", "cache.local", "kept") == ""
    chain.flow()
    digest = current_hashes(chain.root)["data/double"]
    assert {check.where for check in ObjectStore(chain.root).check_path(digest, "double", "data")} == {"cache"}
    assert ObjectStore(chain.root).cache_path(digest).is_relative_to(tmp_path / "kept")
    assert chain.dvc("config", "cache.local", "nowhere") == ""
    with pytest.raises(VersioningError, match=r"cannot read DVC's configuration: .*nowhere"):
        ObjectStore(chain.root).cache_path(digest)


def test_what_a_kill_cut_short_in_dvcs_own_files_holds_nothing_up(chain: Chain) -> None:
    """The table of readers and writers, cut short, is made anew; `dvc.lock` is never cut short."""
    chain.flow()
    (chain.root / ".dvc/tmp/rwlock").write_text('{"read": {"a')
    chain.set(times=3)
    before = (chain.root / "dvc.lock").stat().st_ino
    assert chain.flow() == ["double"]
    assert (chain.root / "dvc.lock").stat().st_ino != before
    assert "up to date" in chain.dvc("repro")


def test_a_busy_workspace_is_waited_for_and_then_refused(chain: Chain) -> None:
    import zc.lockfile

    chain.flow()
    held = zc.lockfile.LockFile(str(chain.root / ".dvc/tmp/lock"))
    try:
        with pytest.raises(VersioningError, match="another DVC process has held the workspace"):
            Versions(chain.root, wait_s=1).reuse("upper")
        threading.Timer(1.0, held.close).start()
        assert Versions(chain.root, wait_s=30).reuse("upper")
    finally:
        held.close()


def test_threads_of_one_process_take_turns(chain: Chain) -> None:
    chain.flow()
    results: list[object] = []

    def work(stage: str) -> None:
        try:
            for _ in range(2):
                chain.versions.require_clean_inputs(stage)
                results.append(chain.versions.reuse(stage))
        except VersioningError as error:
            results.append(error)

    threads = [threading.Thread(target=work, args=(stage,)) for stage in ("upper", "double", "upper")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 6


def test_dvc_says_nothing_on_our_streams(chain: Chain, capfd: pytest.CaptureFixture[str]) -> None:
    chain.flow()
    chain.versions.push()
    chain.versions.checkout()
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


def test_git_state_counts_what_a_person_changed(chain: Chain) -> None:
    assert head_commit(chain.root) is None
    before = workspace_state(chain.root)
    assert before.commit is None
    assert "+suffix: x" in before.diff
    commit = commit_git(chain.root, "Start")
    assert workspace_state(chain.root).as_dict() == {"commit": commit, "dirty": False, "diff": ""}
    chain.flow()  # writes dvc.lock and .gitignore files
    assert not is_dirty(chain.root)
    (chain.root / "notes.md").write_text("new file\n")
    chain.set(suffix="q")
    state = workspace_state(chain.root)
    assert state.dirty
    assert "+suffix: q" in state.diff
    assert "+new file" in state.diff
    assert "dvc.lock" not in state.diff
    assert "notes.md" in run_git(chain.root, "status", "--porcelain"), "recording a diff must not stage anything"


def test_the_diff_leads_from_the_commit_to_the_present_files(chain: Chain, tmp_path: Path) -> None:
    commit_git(chain.root, "Start")
    chain.set(suffix="w")
    (chain.root / "binary.bin").write_bytes(bytes(range(256)))
    state = workspace_state(chain.root)
    run_git(tmp_path, "clone", "--quiet", str(chain.root), "clone")
    (tmp_path / "changes.diff").write_text(state.diff)
    run_git(tmp_path / "clone", "apply", str(tmp_path / "changes.diff"))
    for name in ("params.yaml", "binary.bin"):
        assert (tmp_path / "clone" / name).read_bytes() == (chain.root / name).read_bytes()


def test_program_identity_names_version_and_source() -> None:
    identity = program_identity()
    assert identity["version"]
    assert len(str(identity["source_sha256"])) == 64


def test_a_corrupt_lock_is_named(chain: Chain) -> None:
    (chain.root / "dvc.lock").write_text("stages: [unclosed")
    with pytest.raises(VersioningError, match=r"dvc.lock: expected a YAML file written by DVC"):
        read_lock(chain.root)


def test_half_a_draft_is_no_output(chain: Chain) -> None:
    """A writer killed inside `writing` leaves a draft folder beside the output: swept by the next run."""
    chain.flow()
    (chain.root / "data/.double.draft-killed").mkdir()
    chain.set(times=9)
    assert chain.flow() == ["double"]
    assert not list((chain.root / "data").glob(".double.draft-*"))


def test_a_whole_artifact_that_was_never_recorded_may_be_replaced(chain: Chain) -> None:
    with writing(chain.root / "data/upper", contract="text", version=1) as draft:
        (draft.path / "a.txt").write_text("whole, never committed")
    chain.versions.require_clean_inputs("upper")
