"""`withdraw` finds what is named, keeps a record, and lists the models whose data hold it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from plumbline.data_contracts.artifact import read_artifact
from plumbline.data_contracts.errors import UsageError
from plumbline.flows.graph.workspaces import init_workspace
from plumbline.tasks.data.feedback.withdrawals import load_withdrawals
from plumbline.tasks.data.ingest_feedback import ingest_feedback
from plumbline.tasks.data.validate_feedback import RAW
from plumbline.tasks.operations.count_fresh import batch_contents
from plumbline.tasks.operations.intake.tokens import create_token, token_file
from plumbline.tasks.operations.withdraw_feedback import withdraw
from plumbline.tasks.params.layers import load_params
from plumbline.tasks.storage.versioning.lock import current_hashes
from tests.tasks.conftest import World

pytestmark = pytest.mark.slow

BATCH = "data/raw/human_pairs/0123456789abcdef.jsonl"


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A workspace with one batch of ann and ben, sent with the tokens app and bot."""
    root = tmp_path / "workspace"
    init_workspace(root)
    rows = [
        {"prompt": f"p{n}", "chosen": "x", "rejected": "y", "annotator": name} for n, name in enumerate(("ann", "ben"))
    ]
    path = tmp_path / "given.jsonl"
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    ingest_feedback(root, "human_pairs", [path], senders=["app", "bot"])
    return root


def call(root: Path, kind: Any, name: str, **more: Any) -> Any:
    return withdraw(root, load_params(root)[0].registry, kind, name, **{"reason": "bought", "by": "ops", **more})


def test_a_withdrawal_changes_the_store_s_version_and_repeating_it_nothing(workspace: Path) -> None:
    before = current_hashes(workspace)[RAW]
    done = call(workspace, "token", "bot")
    after = current_hashes(workspace)[RAW]
    assert (done.changed, done.rows, done.entry.reason, done.entry.by) == (True, 1, "bought", "ops")
    assert before != after  # so that the stages that read it run anew
    again = call(workspace, "token", "bot", reason="another", by="somebody")
    assert (again.changed, again.entry) == (False, done.entry)
    assert current_hashes(workspace)[RAW] == after
    back = call(workspace, "token", "bot", undo=True, reason="a mistake")
    assert (back.changed, back.entry.undone, back.entry.reason) == (True, True, "a mistake")
    assert not call(workspace, "token", "bot", undo=True).changed
    assert [entry.undone for entry in load_withdrawals(workspace / RAW).entries] == [False, True]


@pytest.mark.parametrize(
    ("kind", "name", "told"),
    [
        ("annotator", "bn", "Did you mean ben"),
        ("token", "apps", "Did you mean app"),
        ("annotator", "zz", "There are: ann, ben"),
        ("batch", "ffffffff", "There are: data/raw/human_pairs/"),
    ],
)
def test_an_unknown_name_is_refused_with_those_near(workspace: Path, kind: str, name: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        call(workspace, kind, name)
    assert load_withdrawals(workspace / RAW).entries == ()


def test_a_token_that_sent_nothing_yet_can_be_withdrawn(workspace: Path) -> None:
    create_token(token_file(workspace), "new")
    assert (call(workspace, "token", "new").changed, call(workspace, "token", "new").rows) == (True, 0)


@pytest.mark.parametrize("given", ["path", "digest", "start of the digest", "file name"])
def test_a_batch_goes_by_path_or_digest(workspace: Path, given: str) -> None:
    (batch,) = (workspace / RAW / "human_pairs").glob("*.jsonl")
    path = batch.relative_to(workspace).as_posix()
    name = {
        "path": path,
        "digest": batch.stem + "0" * 48,
        "start of the digest": batch.stem[:8],
        "file name": batch.name,
    }
    assert call(workspace, "batch", name[given]).entry.name == path


@pytest.mark.parametrize("reason", ["", "  \n", "x" * 2000, "a\x00b"])
def test_it_needs_a_reason(workspace: Path, reason: str) -> None:
    with pytest.raises(UsageError, match="--reason: expected"):
        call(workspace, "annotator", "ann", reason=reason)


def test_what_was_withdrawn_is_not_fresh(workspace: Path) -> None:
    (batch,) = (workspace / RAW / "human_pairs").glob("*.jsonl")
    params, _ = load_params(workspace)

    def fresh() -> int:
        return len(batch_contents(workspace, "human_pairs", batch, params.feedback, params.curation))

    assert fresh() == 2
    call(workspace, "annotator", "ann")
    assert fresh() == 1
    call(workspace, "batch", batch.stem)
    assert fresh() == 0
    for kind, name in (("annotator", "ann"), ("batch", batch.stem)):
        call(workspace, kind, name, undo=True)
    assert fresh() == 2


def test_the_models_that_used_it_are_listed(world: World) -> None:
    world.register()
    (world.root / "data/raw/human_pairs/fedcba9876543210.jsonl").write_text(
        '{"prompt": "p", "chosen": "x", "rejected": "y", "annotator": "annotator-1"}\n'
    )
    done = withdraw(world.root, world.registry, "annotator", "annotator-1", reason="bought", by="ops")
    assert [row["model_uri"] for row in done.versions] == ["models:/assistant/1"]
    assert done.versions[0]["aliases"] == ["candidate", "champion"]
    assert "trained on" in done.versions[0]["use"]
    by_batch = withdraw(world.root, world.registry, "batch", BATCH, reason="bought", by="ops")
    assert [row["model_uri"] for row in by_batch.versions] == ["models:/assistant/1"]
    assert read_artifact(world.root / "models/policy").digest  # a model is not changed by it
