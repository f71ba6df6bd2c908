from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plumbline.data_contracts.artifact import sha256_file
from plumbline.data_contracts.errors import StageError
from plumbline.data_contracts.progress import silent
from plumbline.data_contracts.records import CuratedPair
from plumbline.tasks.params.reward import RewardParams
from plumbline.tasks.training.rewards.held_out import RewardTraining, Splits, choose_judge, split_off, train_and_audit
from plumbline.tasks.training.rewards.scoring import RewardModel
from tests.support.training import Killed
from tests.support.world import in_world

Pairs = tuple[list[CuratedPair], list[CuratedPair]]
PARAMS = in_world(
    RewardParams,
    num_train_epochs=2,
    per_device_train_batch_size=8,
    learning_rate=5e-3,
    logging_steps=3,
    eval_steps=3,
    held_out_share=0.5,
)


def clustered(pairs: list[CuratedPair], size: int) -> list[CuratedPair]:
    """The pairs in clusters of `size`."""
    return [pair.model_copy(update={"cluster": str(row // size)}) for row, pair in enumerate(pairs)]


def run_at(init: Path, at: Path, progress: Any = silent) -> RewardTraining:
    (at / "folder").mkdir(parents=True, exist_ok=True)
    return RewardTraining(init, at / "folder", at / "work", seed=7, threads=1, progress=progress)


def digests(folder: Path) -> dict[str, str]:
    return {
        file.relative_to(folder).as_posix(): sha256_file(file) for file in sorted(folder.rglob("*")) if file.is_file()
    }


@pytest.fixture(scope="module")
def splits(pairs: Pairs) -> Splits:
    training, held_out = split_off(pairs[0], PARAMS.held_out_share, seed=7)
    return Splits(training, held_out, pairs[1], pairs[1])


@pytest.fixture(scope="module")
def both(policy_folder: Path, splits: Splits, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    at = tmp_path_factory.mktemp("both")
    return at / "folder", train_and_audit(run_at(policy_folder, at), splits, PARAMS)


def test_a_share_of_whole_clusters_goes_to_the_judge(pairs: Pairs) -> None:
    """72 pairs in clusters of 4: a quarter is 18, of which four clusters (16 pairs) are whole."""
    grouped = clustered(pairs[0], 4)
    rest, held_out = split_off(grouped, 0.25, seed=1)
    assert (len(rest), len(held_out)) == (56, 16)
    assert not {pair.cluster for pair in rest} & {pair.cluster for pair in held_out}
    assert sorted([*rest, *held_out], key=grouped.index) == grouped
    assert held_out == sorted(held_out, key=grouped.index)


def test_the_split_hangs_on_the_seed_and_not_on_the_order_of_pairs(pairs: Pairs) -> None:
    def ids(of: list[CuratedPair], seed: int) -> set[str]:
        return {pair.id for pair in split_off(of, 0.3, seed)[1]}

    shuffled = random.Random(3).sample(pairs[0], len(pairs[0]))
    assert ids(pairs[0], 1) == ids(shuffled, 1)
    assert ids(pairs[0], 1) != ids(pairs[0], 2)


def test_no_share_leaves_the_pairs_as_they_are_and_one_that_holds_no_cluster_is_refused(pairs: Pairs) -> None:
    assert split_off(pairs[0], 0, seed=1) == (pairs[0], [])
    with pytest.raises(StageError, match=r"held_out_share is 0\.1: .* within 7\.2 of 72 training pairs .* among 2\."):
        split_off(clustered(pairs[0], 36), 0.1, seed=1)


def test_both_models_learn_from_pairs_of_their_own_under_seeds_of_their_own(
    both: tuple[Path, dict[str, Any]], splits: Splits
) -> None:
    folder, facts = both
    assert facts["pairs"] == facts["held_out"]["pairs"] == {"train": 36, "validation": 20}
    assert (facts["seed"], facts["held_out"]["seed"]) == (7, 8)
    for model, audit in ((folder, facts["audit"]), (folder / "held_out", facts["held_out"]["audit"])):
        written = json.loads((model / "audit.json").read_text())
        assert {name: written[name] for name in audit} == audit
        assert audit["accuracy"]["value"] >= 0.8
    assert RewardModel.load(folder).digest != RewardModel.load(folder / "held_out").digest


@pytest.mark.training
def test_the_seed_alone_makes_another_judge(policy_folder: Path, splits: Splits, tmp_path: Path) -> None:
    """With the very same pairs the two still differ, so their errors are not one."""
    same = Splits(splits.training[:16], splits.training[:16], splits.validation, splits.test)
    train_and_audit(run_at(policy_folder, tmp_path), same, PARAMS)
    found = [RewardModel.load(tmp_path / "folder" / name).digest for name in ("", "held_out")]
    assert found[0] != found[1]


@pytest.mark.training
def test_who_judges(both: tuple[Path, dict[str, Any]], policy_folder: Path, splits: Splits, tmp_path: Path) -> None:
    assert choose_judge(both[0]) == ("held_out", both[0] / "held_out")
    alone = Splits(splits.training, [], splits.validation, splits.test)
    facts = train_and_audit(run_at(policy_folder, tmp_path), alone, PARAMS)
    assert "held_out" not in facts
    assert choose_judge(tmp_path / "folder") == ("reward_model", tmp_path / "folder")
    # the judge beside it takes nothing from the reward model's own training
    own = {name: digest for name, digest in digests(both[0]).items() if not name.startswith("held_out/")}
    assert digests(tmp_path / "folder") == own


def _kill_at(step: int, of_judge: bool) -> tuple[list[tuple[int, str]], Callable[[int, int, str], None]]:
    seen: list[tuple[int, str]] = []

    def watch(done: int, total: int, note: str) -> None:
        seen.append((done, note))
        if done == step and note.startswith("held-out judge") == of_judge:
            raise Killed

    return seen, watch


@pytest.mark.training
@pytest.mark.parametrize("of_judge", [False, True], ids=["in the first", "in the second"])
def test_a_kill_in_either_training_resumes_to_the_same_bytes(
    both: tuple[Path, dict[str, Any]], policy_folder: Path, splits: Splits, tmp_path: Path, of_judge: bool
) -> None:
    """36 pairs in batches of 8 for 2 epochs are 10 steps; a kill in step 8 resumes from the checkpoint of step 6."""
    _, kill = _kill_at(8, of_judge)
    with pytest.raises(Killed):
        train_and_audit(run_at(policy_folder, tmp_path, kill), splits, PARAMS)
    seen, watch = _kill_at(0, of_judge)
    facts = train_and_audit(run_at(policy_folder, tmp_path, watch), splits, PARAMS)
    assert next(done for done, note in seen if note.startswith("held-out judge") == of_judge) == 7
    assert facts == both[1]
    assert digests(tmp_path / "folder") == digests(both[0])
