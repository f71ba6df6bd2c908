"""Self-play as `plumbline self-play` runs it: a new batch of judged pairs, once, that the next retraining reads."""

from __future__ import annotations

import shutil

import orjson
import pytest

from tests.flows.conftest import Workspace

# The tiny world's reward model hardly agrees with anybody, and its policies seldom end an answer.
LENIENT = ("--set", "judge.min_kappa=-1", "--set", "judge.max_position_bias=1")


@pytest.mark.long
def test_a_judged_batch_is_ingested_once_and_retrained_on(copy: Workspace) -> None:
    before = copy.hashes()
    first = copy.run("self-play", "--prompts", 120, *LENIENT, "--json")
    assert first.code == 0, first.err
    answer = first.payload
    counts, rows = answer["counts"], copy.lines(answer["batch"])
    assert answer["new"] is True
    assert counts["prompts"] == 120
    assert counts["pairs"] == len(rows) > 0
    assert answer["judge"]["judge"] == "reward_model"
    assert rows[0]["annotator"].startswith("reward_model:")
    changed = {path for path, digest in copy.hashes().items() if digest != before[path]}
    assert changed == {"data/raw"}
    assert orjson.loads(copy.shell("dvc", "status", "--json", "data/raw.dvc").out) == {}

    again = copy.run("self-play", *LENIENT)
    assert again.code == 0, again.err
    assert "already there" in again.out
    assert copy.hashes()["data/raw"] != before["data/raw"]
    assert len(list((copy.root / "data/raw/judged_pairs").iterdir())) == 1

    done = copy.run("retrain", "--json")
    assert done.code == 0, done.err
    assert done.payload["counts"]["read"] == 534 + len(rows)
    sources = [
        pair["source"] for name in ("train", "validation", "test") for pair in copy.lines(f"data/curated/{name}.jsonl")
    ]
    assert sources.count("judged_pairs") > 0


def test_a_judge_that_agrees_with_nobody_is_not_asked(copy: Workspace) -> None:
    done = copy.run("self-play", "--set", "judge.min_kappa=0.99", "--json")
    assert (done.code, done.payload["error"]["kind"]) == (1, "JudgeRefused")
    assert "judge.min_kappa 0.99" in done.err
    assert not (copy.root / "data/raw/judged_pairs").exists()


def test_without_a_policy_it_says_what_to_run(copy: Workspace) -> None:
    shutil.rmtree(copy.root / "models/policy")
    done = copy.run("self-play", "--json")
    assert (done.code, done.payload["error"]["kind"]) == (2, "UsageError")
    assert "plumbline retrain" in done.err
