"""Single responses on their way through the stages: raw files, contract, curation, fine-tuning, lineage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from plumbline.data_contracts.artifact import writing
from plumbline.data_contracts.records import CuratedPair, Merged, Quarantined, UnpairedResponse, load_jsonl
from plumbline.tasks.data.curate_preferences import curate_preferences
from plumbline.tasks.data.dry_run import try_files
from plumbline.tasks.data.validate_feedback import validate_feedback
from plumbline.tasks.params.curation import CurationParams
from plumbline.tasks.params.feedback import FeedbackParams
from plumbline.tasks.params.finetuning import FinetuneParams
from plumbline.tasks.pipeline.stage import StageContext
from plumbline.tasks.registry.lineage.records_index import build_index, look_up, read_line
from plumbline.tasks.training.finetune_policy import training_warnings, unpaired_responses
from plumbline.tasks.training.finetuning.methods import needs_of
from tests.support.world import in_world

LENIENT = FeedbackParams(quarantine_threshold=1.0)


def pair(number: int) -> dict[str, Any]:
    return {"id": f"p{number}", "prompt": f"asks{number} about{number}?", "chosen": f"good{number}", "rejected": "bad"}


def thumb(number: int, **changes: Any) -> dict[str, Any]:
    row = {"id": f"u{number}", "prompt": f"lone{number} query{number}?", "response": f"told{number}", "thumb": "up"}
    return row | changes


def store(root: Path, kind: str, rows: list[dict[str, Any]]) -> None:
    folder = root / "data" / "raw" / kind
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "batch.jsonl").write_bytes(b"\n".join(orjson.dumps(row) for row in rows))


def through(root: Path) -> tuple[dict[str, Any], Path]:
    """Validate and curate what the workspace holds; facts and folder of the curated set."""
    world = root / "data" / "world"
    world.mkdir(parents=True, exist_ok=True)
    work = root / "work"
    with writing(root / "data" / "validated", contract="validated_feedback", version=1, parents={}) as draft:
        context = StageContext(root, draft.path, work, {"raw": root / "data" / "raw", "world": world})
        draft.facts = validate_feedback(context, feedback=LENIENT)
    with writing(root / "data" / "curated", contract="curated_preferences", version=1, parents={}) as draft:
        context = StageContext(root, draft.path, work, {"validated": root / "data" / "validated"})
        draft.facts = facts = curate_preferences(context, seed=1, curation=CurationParams())
    return facts, root / "data" / "curated"


@pytest.mark.slow
def test_both_kinds_side_by_side_balance_and_no_test_prompt_is_learned(tmp_path: Path) -> None:
    """40 pairs, and 42 thumbs: one on the prompt of each pair, one that repeats another, one that is broken."""
    pairs = [pair(number) for number in range(40)]
    thumbs = [thumb(number, prompt=each["prompt"]) for number, each in enumerate(pairs)]
    store(tmp_path, "human_pairs", pairs)
    _, alone = through(tmp_path)
    splits = ("train.jsonl", "validation.jsonl", "test.jsonl")
    before = {name: (alone / name).read_bytes() for name in splits}
    assert not (alone / "unpaired.jsonl").exists()

    repeated = {"id": "again", "prompt": pairs[0]["prompt"], "response": "TOLD0", "thumb": "up"}
    store(tmp_path, "unpaired_responses", [*thumbs, repeated, thumb(99, response="")])
    facts, curated = through(tmp_path)
    assert {name: (curated / name).read_bytes() for name in splits} == before, "splits are those of the pairs"
    kept = list(load_jsonl(curated / "unpaired.jsonl", UnpairedResponse))
    held_out = {record.prompt for name in splits[1:] for record in load_jsonl(curated / name, CuratedPair)}
    assert held_out and not held_out & {record.prompt for record in kept}
    train = {record.prompt for record in load_jsonl(curated / "train.jsonl", CuratedPair)}
    assert {record.prompt for record in kept} == train
    assert facts["read"] == 82 == facts["accepted"] + facts["merged"] + facts["quarantined"]
    assert facts["unpaired"] == len(kept) == len(train)
    refused = list(load_jsonl(curated / "quarantine.jsonl", Quarantined))
    # the repeated one is merged where its prompt may be trained on, else both are set aside
    folded = list(load_jsonl(curated / "merged.jsonl", Merged))
    assert len(folded) + len(refused) == 41 - len(kept)
    assert {row.reason for row in refused} == {"held_out_prompt"}
    assert facts["reasons"]["empty_text"] == 1


@pytest.mark.slow
def test_an_index_of_the_dataset_finds_them(tmp_path: Path) -> None:
    store(tmp_path, "human_pairs", [pair(number) for number in range(30)])
    store(tmp_path, "unpaired_responses", [thumb(1), thumb(2, thumb="down")])
    _, curated = through(tmp_path)
    build_index({path.name: path for path in curated.glob("*.jsonl")}, tmp_path / "index.npy")
    (place,) = look_up(tmp_path / "index.npy", "u2")
    assert place.file == "unpaired.jsonl"
    line = read_line(curated / place.file, place, "u2")
    assert line is not None and line["desirable"] is False
    assert line["origin"] == {"file": "data/raw/unpaired_responses/batch.jsonl", "line": 2}


def test_kto_is_given_them_and_other_methods_say_that_they_are_not(tmp_path: Path) -> None:
    store(tmp_path, "human_pairs", [pair(number) for number in range(30)])
    store(tmp_path, "unpaired_responses", [thumb(1), thumb(2, thumb="down")])
    file = through(tmp_path)[1] / "unpaired.jsonl"
    found, facts = unpaired_responses(file, needs_of(in_world(FinetuneParams, methods=("sft", "kto"))))
    assert [(each.id, each.desirable) for each in found] == [("u1", True), ("u2", False)]
    assert facts == {}
    found, facts = unpaired_responses(file, needs_of(in_world(FinetuneParams, methods=("dpo",))))
    assert (found, facts) == ([], {"unpaired_ignored": 2})
    (said,) = training_warnings({**facts, "method": "dpo", "optimised_against_judge": False}, [])
    assert "2 single responses (unpaired.jsonl) are not learned from: only kto" in said
    assert unpaired_responses(tmp_path / "absent.jsonl", needs_of(in_world(FinetuneParams, methods=("dpo",)))) == (
        [],
        {},
    )


def test_a_dry_run_of_single_responses_alone(tmp_path: Path) -> None:
    file = tmp_path / "thumbs.jsonl"
    rows = [thumb(1), thumb(1, id="again"), thumb(2, thumb=None)]
    file.write_bytes(b"\n".join(orjson.dumps(row) for row in rows))
    counts = try_files(tmp_path, "unpaired_responses", [str(file)], LENIENT, CurationParams(), 1).report
    assert counts["stopped"] is None
    assert (counts["read"], counts["accepted"], counts["merged"], counts["quarantined"]) == (3, 1, 1, 1)
    assert counts["reasons"] == {"no_opinion": 1}
