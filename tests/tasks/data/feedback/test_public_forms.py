"""The same twenty judgements in the shapes of tools and public sets, read to the same pairs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plumbline.data_contracts.records import PreferencePair, UnpairedResponse, load_jsonl
from plumbline.tasks.data.feedback.batches import store_batch
from plumbline.tasks.data.feedback.validate import raw_batches, sort_rows
from plumbline.tasks.params.feedback import FeedbackParams

SINGLES = ("kto_std.jsonl", "thumbs_app.jsonl")
LISTS = ("nectar.jsonl", "ranking_simple.jsonl")  # with a third response between the two
PAIRS = (
    *("arena_55k.csv", "array_std.json", "helpsteer2.jsonl", "label_words.jsonl", "labelstudio_pairwise.json"),
    *("openai_preference.jsonl", "pairs.csv", "pku_saferlhf.jsonl", "rating5.jsonl", "sharegpt_gpt_human.jsonl"),
    *("shp.jsonl", "trl_conv_system.jsonl", "uf_binarized_h4.jsonl", "uf_binarized_h4.parquet", "utf16.jsonl"),
    *("votes_many.jsonl", "wrapped.json"),
)


def read_form(forms: Path, name: str, tmp_path: Path) -> tuple[dict[str, list[str]], dict[str, int]]:
    if not (forms / name).is_file():
        pytest.skip(f"{forms / name} is not on this machine")
    store_batch(forms / name, None, tmp_path / "raw")
    report = sort_rows(raw_batches(tmp_path / "raw", tmp_path), FeedbackParams(), tmp_path)
    return json.loads((forms / "truth.json").read_text()), report["reasons"]


@pytest.mark.parametrize("name", [*PAIRS, *LISTS])
def test_pairs_agree_with_the_truth(shared: Path, tmp_path: Path, name: str) -> None:
    truth, reasons = read_form(shared / "forms", name, tmp_path)
    found = [
        (pair.prompt[-1].content, [pair.chosen, pair.rejected])
        for pair in load_jsonl(tmp_path / "accepted.jsonl", PreferencePair)
    ]
    assert reasons == {}
    assert len(found) == len(truth) * (2 if name in LISTS else 1)
    assert dict(pair for pair in found if pair[1] == truth[pair[0]]) == truth
    assert all(chosen == truth[prompt][0] for prompt, (chosen, _) in found)


@pytest.mark.parametrize("name", SINGLES)
def test_single_responses_agree_with_the_truth(shared: Path, tmp_path: Path, name: str) -> None:
    truth, reasons = read_form(shared / "forms", name, tmp_path)
    found = list(load_jsonl(tmp_path / "unpaired.jsonl", UnpairedResponse))
    assert (len(found), reasons) == (2 * len(truth), {})
    assert all(truth[each.prompt[-1].content][not each.desirable] == each.response for each in found)


def test_tool_conversations_are_set_aside_by_name(shared: Path, tmp_path: Path) -> None:
    truth, reasons = read_form(shared / "forms", "trl_conv_tools.jsonl", tmp_path)
    assert reasons == {"tool_calls": len(truth)}
