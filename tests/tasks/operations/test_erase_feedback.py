"""`erase` removes what is named from every place, proves it by a search, and completes what a crash left."""

from __future__ import annotations

import gzip
import hashlib
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from filelock import FileLock

from plumbline.data_contracts.errors import PlumblineError, UsageError, VersioningError, WorkspaceBusy
from plumbline.data_contracts.interactions import Interaction, ServedCompletion
from plumbline.data_contracts.records import Message
from plumbline.flows.graph.workspaces import init_workspace
from plumbline.tasks.data.feedback.validate import raw_batches, sort_rows
from plumbline.tasks.data.feedback.withdrawals import Withdrawal
from plumbline.tasks.data.ingest_feedback import ERASURE, fixed_raw, ingest_feedback, withdraw_from_raw, withdrawals_of
from plumbline.tasks.data.validate_feedback import RAW
from plumbline.tasks.operations import erase_feedback
from plumbline.tasks.operations.erase_feedback import LeftOver, erase, resume
from plumbline.tasks.operations.erasure.journal import ErasureRequest
from plumbline.tasks.operations.erasure.plan import ErasureReport
from plumbline.tasks.operations.serving import log
from plumbline.tasks.params.feedback import FeedbackParams
from plumbline.tasks.params.layers import load_params
from plumbline.tasks.registry.ledger.ledger import history, read_ledger, verify_chain
from plumbline.tasks.registry.signing.keys import verifying_key
from plumbline.tasks.registry.store.client import Store
from plumbline.tasks.registry.trace_lineage import audit_record
from plumbline.tasks.storage.database import open_database
from plumbline.tasks.storage.versioning.lock import current_hashes
from plumbline.tasks.storage.versioning.tombstones import load_tombstones, record_name
from plumbline.tasks.storage.versioning.workspace import Versions

pytestmark = pytest.mark.slow

SECRET = "the blue house at the river"


def row(number: int, **more: Any) -> dict[str, Any]:
    said = {"prompt": f"question number {number} of all", "chosen": f"a long answer {number}", "rejected": "no answer"}
    return {"id": f"r{number}", "annotator": f"person-{number % 2}", **said, **more}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    data = b"".join(orjson.dumps(each) + b"\n" for each in rows)
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two batches of 12 rows, one of them compressed, pushed. r3 of the first has the secret, r15 says the same."""
    folder = tmp_path_factory.mktemp("made")
    root = folder / "workspace"
    init_workspace(root)
    first = [row(n, **({"chosen": SECRET} if n == 3 else {})) for n in range(12)]
    second = [row(n) for n in range(12, 24)]
    second[3] |= {"prompt": first[3]["prompt"], "chosen": SECRET}
    ingest_feedback(root, "human_pairs", [write(folder / "one.jsonl", first), write(folder / "two.jsonl.gz", second)])
    Versions(root).push()
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(made, tmp_path / "workspace", symlinks=True)
    return tmp_path / "workspace"


def run(root: Path, kind: str = "record", value: str = "r3", **more: Any) -> ErasureReport:
    given: dict[str, Any] = {"reason": "asked for it", "by": "officer", "confirm": lambda plan: True, **more}
    return erase(root, load_params(root)[0], ErasureRequest(kind, value), **given)


def places_of(root: Path, text: str) -> list[str]:
    """Files with a text, the naive way: every file as bytes, and as gzip where it is."""
    found = []
    for path in sorted(root.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            data += gzip.decompress(data) if data[:2] == b"\x1f\x8b" else b""
            found += [path.relative_to(root).as_posix()] if text.encode() in data else []
    return found


def records(root: Path, folder: Path) -> dict[str, tuple[str, int]]:
    folder.mkdir(exist_ok=True)
    sort_rows(raw_batches(root / RAW, root), FeedbackParams(), folder)
    lines = map(orjson.loads, (folder / "accepted.jsonl").read_bytes().splitlines())
    return {line["id"]: (line["chosen"], line["origin"]["line"]) for line in lines}


def snapshot(root: Path) -> dict[str, bytes]:
    """Raw feedback, DVC's objects and records; tombstones without their clock and signature."""
    folders = (root / "data", root / ".dvc/cache/files", root / ".plumbline/remote")
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def test_a_record_and_what_says_the_same_is_gone_everywhere(root: Path, tmp_path: Path) -> None:
    """Two lines go: r3, and r15 with the same content in the other, compressed batch. All others keep their lines."""
    before = records(root, tmp_path / "before")
    assert len(places_of(root, SECRET)) == 6  # each of both batches: the store, cache, remote
    done = run(root)
    assert (done.done, done.rows, done.left) == (True, 2, [])
    assert [batch["lines"] for batch in done.batches] == [[4], [4]]
    assert places_of(root, SECRET) == []
    assert records(root, tmp_path / "after") == {
        name: found for name, found in before.items() if name not in ("r3", "r15")
    }
    assert not (root / ERASURE).exists()
    with fixed_raw(root):  # DVC takes the store for what it recorded
        pass


def test_the_tombstone_is_signed_and_holds_no_content(root: Path) -> None:
    old = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (root / RAW).rglob("*.*") if path.is_file()
    }
    run(root)
    (tombstone,) = load_tombstones(root, verifying_key(root, load_params(root)[0].registry).accepts)
    assert (tombstone.by, tombstone.reason) == ("officer", "asked for it")
    assert [batch.old_sha256 for batch in tombstone.batches] == [
        old[Path(batch.old).name] for batch in tombstone.batches
    ]
    for batch in tombstone.batches:
        assert batch.new is not None
        assert hashlib.sha256((root / batch.new).read_bytes()).hexdigest() == batch.new_sha256
    assert {record_name("r3"), record_name("r15")} <= set(tombstone.records)
    (path,) = (root / RAW).glob(".erasure-*.json")
    assert SECRET.encode() not in path.read_bytes() and b'"r3"' not in path.read_bytes()
    path.chmod(0o600)
    path.write_bytes(path.read_bytes().replace(b"officer", b"nobody!"))
    with pytest.raises(PlumblineError, match="expected the record of an erasure, found: its bytes"):
        load_tombstones(root)
    report_of_change = load_params(root)[0].registry
    with pytest.raises(PlumblineError, match="expected the record of an erasure"):
        audit_record(root, "r3", report_of_change)


def test_an_audit_says_that_a_record_was_erased(root: Path) -> None:
    run(root)
    found = audit_record(root, "r3", load_params(root)[0].registry)
    assert not found.found
    (text,) = found.erased
    assert text.startswith("erased on 20") and text.endswith("by officer, because asked for it.")
    assert audit_record(root, "r4", load_params(root)[0].registry).erased == []


def test_an_annotator_s_rows_go_and_the_others_stay(root: Path, tmp_path: Path) -> None:
    done = run(root, "annotator", "person-1")
    assert done.rows == 12
    assert set(records(root, tmp_path / "after")) == {f"r{n}" for n in range(0, 24, 2)}
    assert places_of(root, '"annotator":"person-1"') == []


def test_a_pattern_is_a_text_or_between_slashes_an_expression(root: Path, tmp_path: Path) -> None:
    assert run(root, "matching", "blue house").rows == 2
    assert run(root, "matching", r"/answer 1[67]\b/").rows == 2
    assert set(records(root, tmp_path / "after")) == {f"r{n}" for n in range(24)} - {"r3", "r15", "r16", "r17"}


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("record", "r3333", "no feedback and no captured traffic has it. Nothing was erased. Did you mean r3"),
        ("annotator", "persen-1", "Did you mean person-1"),
        ("matching", "nowhere at all", "no feedback and no captured traffic has it"),
        ("matching", "answer", r"matches at most 10% of all rows, found 24 of 24 \(100%\). Nothing was erased"),
        ("matching", "/(/", "expected a text or a /regular expression/"),
        ("matching", "/x*/", "found one that matches nothing"),
    ],
)
def test_what_cannot_be_meant_is_refused(root: Path, kind: str, value: str, message: str) -> None:
    before = snapshot(root)
    with pytest.raises(UsageError, match=message):
        run(root, kind, value)
    assert snapshot(root) == before


def test_a_plan_changes_nothing_and_a_large_one_can_be_meant(root: Path) -> None:
    before, seen = snapshot(root), list[ErasureReport]()
    plan = run(root, "matching", "answer", large=True, confirm=lambda report: bool(seen.append(report)))
    assert (plan.done, plan.rows, seen) == (False, 24, [plan])
    assert snapshot(root) == before
    assert run(root, "matching", "answer", large=True).rows == 24
    assert list(raw_batches(root / RAW, root)) == []


def test_texts_that_other_rows_have_too_stay_there(root: Path, tmp_path: Path) -> None:
    """`no answer` is too short to be looked for; the prompt of r3 is also that of a row that stays."""
    prompt = row(3)["prompt"]
    ingest_feedback(root, "human_pairs", [write(tmp_path / "three.jsonl", [row(30, prompt=prompt)])])
    done = run(root)
    assert (done.done, done.shared > 0, done.short) == (True, True, 1)
    assert len(places_of(root, prompt)) == 2  # the new batch, and its object in the cache


def test_captured_traffic_goes_with_its_answers(root: Path) -> None:
    params = load_params(root)[0]
    engine = open_database(root, params.operations, log.METADATA)
    for name, text in (("one", SECRET), ("two", "something else entirely")):
        answer = ServedCompletion(
            side="champion",
            model_uri="models:/a/1",
            text=text,
            tokens=3,
            latency_ms=1.0,
            finish_reason="stop",
            refusal=False,
            violation=False,
        )
        prompt = (Message(role="user", content="What is it?"),)
        seen = Interaction(id=name, received_at=datetime.now(UTC), canary=False, prompt=prompt, answers=(answer,))
        log.record(engine, seen)
    done = run(root)
    assert (done.done, done.traffic) == (True, 1)
    assert [item.id for item, _ in log.interactions(engine)] == ["two"]
    engine.dispose()
    assert places_of(root, SECRET) == []


def test_logs_lose_lines_and_caches_files(root: Path) -> None:
    (root / ".plumbline/logs").mkdir(exist_ok=True)
    (root / ".plumbline/logs/validate.log").write_text(f"started\nread {SECRET}\nended\n")
    (root / ".plumbline/dry-run").mkdir()
    (root / ".plumbline/dry-run/quarantine.jsonl").write_bytes(orjson.dumps({"raw": SECRET}))
    assert run(root).done
    assert (root / ".plumbline/logs/validate.log").read_text() == "started\nended\n"
    assert not (root / ".plumbline/dry-run/quarantine.jsonl").exists()


def test_a_file_of_a_person_s_own_is_named_and_a_rerun_completes(root: Path, tmp_path: Path) -> None:
    notes = root / "notes.txt"
    notes.write_text(f"remember {SECRET}")
    with pytest.raises(LeftOver, match=r"found it in notes.txt.*--resume") as left:
        run(root)
    assert left.value.report.left == ["notes.txt"] and not left.value.report.done
    with pytest.raises(WorkspaceBusy, match="erase --resume"), fixed_raw(root):
        pass
    with pytest.raises(WorkspaceBusy, match="erase --resume"):
        ingest_feedback(root, "human_pairs", [write(tmp_path / "three.jsonl", [row(31)])])
    notes.unlink()
    assert resume(root, load_params(root)[0]).done
    assert places_of(root, SECRET) == []
    with pytest.raises(UsageError, match="no erasure was cut off"):
        resume(root, load_params(root)[0])


class Killed(BaseException):
    """As SIGKILL: nothing catches it."""


STEPS = [step.__name__ for step in erase_feedback.STEPS]


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("name", STEPS)
def test_a_kill_around_any_step_is_completed_by_a_rerun(
    root: Path, name: str, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same request again, or `--resume`: one tombstone, one ledger line at most, and nothing left."""

    def dying(step: Callable[..., None]) -> Callable[..., None]:
        def killed(*arguments: Any) -> None:
            if moment == "after":
                step(*arguments)
            raise Killed

        return killed

    steps = tuple(dying(step) if step.__name__ == name else step for step in erase_feedback.STEPS)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(erase_feedback, "STEPS", steps)
        run(root)
    assert (root / ERASURE).exists()
    done = run(root) if moment == "before" else resume(root, load_params(root)[0])
    assert (done.done, done.rows, places_of(root, SECRET)) == (True, 2, [])
    assert len(load_tombstones(root)) == 1


@pytest.mark.parametrize("call", range(6))
def test_a_kill_between_files_of_the_raw_store_is_completed(
    root: Path, call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at the call-th file that is written or removed while batches are exchanged."""
    from plumbline.tasks.data.feedback import removal

    calls = 0

    def counted(original: Callable[..., Any], below: Path | None = None) -> Callable[..., Any]:
        def count(*arguments: Any, **named: Any) -> Any:
            nonlocal calls
            mine = below is None or below in arguments[0].parents
            calls += mine
            if mine and calls == call + 1:
                raise Killed
            return original(*arguments, **named)

        return count

    with monkeypatch.context() as patch:
        patch.setattr(removal, "write_read_only", counted(removal.write_read_only))
        patch.setattr(erase_feedback, "keep_tombstone", counted(erase_feedback.keep_tombstone))
        patch.setattr(erase_feedback, "remove_objects", counted(erase_feedback.remove_objects))
        patch.setattr(Path, "unlink", counted(Path.unlink, below=root / RAW))
        with pytest.raises(Killed):
            run(root)
    done = resume(root, load_params(root)[0]) if (root / ERASURE).exists() else run(root)
    assert (done.done, places_of(root, SECRET)) == (True, [])
    assert len(load_tombstones(root)) == 1


def test_a_remote_that_cannot_be_reached_is_said_before_and_completed_after(root: Path) -> None:
    """At the plan nothing is done. Later a rerun goes on: the remote is away between the plan and its turn."""
    from plumbline.tasks.storage.versioning import objects

    remote, away = root / ".plumbline/remote", root / ".plumbline/away"
    before = snapshot(root)

    def unreachable(*_: Any) -> Any:
        raise VersioningError("remote: no route to host")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(VersioningError, match="no route"):
        patch.setattr(objects, "_open_default_remote", unreachable)
        run(root)
    assert snapshot(root) == before and not (root / ERASURE).exists()

    with pytest.MonkeyPatch.context() as patch, pytest.raises(VersioningError, match="no route"):
        patch.setattr(erase_feedback, "remove_objects", unreachable)
        run(root)
    assert (root / ERASURE).exists() and places_of(remote, SECRET) != [] and not away.exists()
    assert resume(root, load_params(root)[0]).done
    assert places_of(root, SECRET) == []


def test_an_erased_batch_does_not_come_back(root: Path, made: Path) -> None:
    run(root)
    with pytest.raises(UsageError, match=r"found a batch with rows that were erased on .* by officer"):
        ingest_feedback(root, "human_pairs", [made.parent / "one.jsonl"])
    assert places_of(root, SECRET) == []


def test_a_withdrawn_batch_stays_withdrawn_and_its_senders_known(root: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "sent.jsonl", [row(n, chosen=f"answer of app {n}") for n in range(40, 43)])
    (batch,) = ingest_feedback(root, "human_pairs", [path], senders=["app", "bot", "app"])
    name = batch.path.relative_to(root).as_posix()
    withdraw_from_raw(root, Withdrawal("batch", name, "bought", "ops", "2026-01-01"))
    done = run(root, "record", "r41")
    new = done.batches[0]["new"]
    assert withdrawals_of(root).find("batch", new) is not None
    source, origin, stored = next(each for each in raw_batches(root / RAW, root) if each[1] == new)
    from plumbline.tasks.data.feedback import SOURCES

    origins = [found.outcome.origin for found in SOURCES[source](stored, origin)]  # type: ignore[union-attr]
    assert [(each.line, each.senders) for each in origins] == [(1, ("app",)), (3, ("app",))]


def test_a_run_at_work_is_not_disturbed(root: Path) -> None:
    with FileLock(root / ".plumbline/raw.lock"), pytest.raises(WorkspaceBusy, match="a run reads the raw store"):
        run(root)


def test_versions_that_used_it_are_named_and_their_audit_says_erased(world: Any) -> None:
    """Version 1 of the small world trained on a record of raw line 1; its raw batch has that line alone."""
    batch = world.root / "data/raw/human_pairs/0123456789abcdef.jsonl"
    batch.unlink()
    shutil.rmtree(world.root / "data/raw")
    (world.root / "data/raw.dvc").unlink()
    (world.root / "data/raw/human_pairs").mkdir(parents=True)
    write(batch, [row(1, prompt="question r1", chosen="yes", rejected="no", id="r1"), row(2)])
    Versions(world.root).track("data/raw")
    world.register()
    done = erase(
        world.root,
        load_params_like(world),
        ErasureRequest("record", "r1"),
        reason="asked for it",
        by="officer",
        confirm=lambda plan: True,
    )
    assert done.done
    assert done.retrain == ["models:/assistant/1"]
    assert {(each["model_uri"], each["use"]) for each in done.versions} >= {("models:/assistant/1", "trained on")}
    from plumbline.tasks.registry.audit_lineage import audit_model

    report = audit_model(world.root, "models:/assistant/1", world.registry)
    assert report.problems == []
    assert report.verified
    notes = [note for note in report.notes if "erased on" in note]
    assert any(note.startswith("data/curated/train.jsonl: erased on") for note in notes)
    engine, store = read_ledger(world.root, load_params_like(world).operations), Store(world.root, world.registry)
    assert [entry.action for entry in history(engine, "assistant")][-1] == "erase"
    assert verify_chain(engine, store) == []
    (path,) = (world.root / RAW).glob(".erasure-*.json")
    path.unlink()
    assert "lacks the record of the erasure" in verify_chain(engine, store)[0]
    assert current_hashes(world.root)["data/curated"]


def load_params_like(world: Any) -> Any:
    """The default params with the registry of the small world, whose params.yaml is none of ours."""
    from plumbline.tasks.params.whole import Params

    return Params(registry=world.registry)
