"""What the verb refuses before any work; the whole way is in tests/flows/test_self_play.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from plumbline.data_contracts.artifact import writing
from plumbline.data_contracts.errors import ArtifactError, UsageError
from plumbline.tasks.evaluation.self_play import STAGE, self_play
from plumbline.tasks.params.section import Section


def _write(path: Path) -> None:
    with writing(path, contract="anything", version=1) as draft:
        (draft.path / "file").write_text("text")


def test_without_a_policy_it_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"models/policy: expected what `plumbline retrain` makes, found nothing"):
        self_play(tmp_path, Section())


def test_a_model_that_was_changed_by_hand_is_refused(tmp_path: Path) -> None:
    for path in STAGE.deps.values():
        _write(tmp_path / path)
    (tmp_path / "models/reference/file").write_text("other")
    with pytest.raises(ArtifactError, match=r"models/reference: expected it as it was made, found file changed"):
        self_play(tmp_path, Section())
    assert not (tmp_path / "data/raw").exists()
