"""`plumbline validate FILE --base MODEL`: what a run could do with a file and a model, told before any training."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from plumbline.tasks.models.loading import save_model
from tests.flows.conftest import Done, Workspace, write_hh_pairs
from tests.tasks.models.test_control_tokens import MARKED, byte_level
from tests.tasks.models.tiny_llama import build_model

pytestmark = pytest.mark.slow

ALMOST = ("--set", "evaluation.max_new_tokens=8", "--set", "finetune.dpo.validation.max_new_tokens=8")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with a chat template of its own and a context of 128 tokens."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = byte_level()
    tokenizer.chat_template = MARKED
    save_model(build_model(len(tokenizer)), tokenizer, folder)
    return folder


def _validate(place: Path, *arguments: object) -> Done:
    return Workspace(place, "http://127.0.0.1:9/api").run("validate", *arguments)


def test_a_gate_that_cannot_pass_is_told_before_any_training(tmp_path: Path, model: Path) -> None:
    """Of 60 pairs, each on a prompt of its own, 15 % are 9 test prompts, where the gate asks for 200."""
    file = write_hh_pairs(tmp_path / "pairs.jsonl", 60, seed=3)
    done = _validate(tmp_path, file, "--base", model, *ALMOST, "--set", "curation.split.by=size", "--json")
    assert done.code == 1, done.err
    fit = done.payload["fit"]
    assert {name: split["prompts"] for name, split in fit["splits"].items()} == {
        "train": 48,
        "validation": 3,
        "test": 9,
    }
    (stop,) = (need for need in fit["needs"] if need["stops"])
    assert (stop["key"], stop["found"], stop["needed"]) == ("gate.min_prompts", 9, 200)
    assert "gate.min_prompts: the evaluation would judge 9 test prompts" in done.err
    assert fit["model"]["context_length"] == 128
    assert set(fit["minutes"]) == {"reference", "reward", "finetune", "evaluate"}
    assert fit["minutes_how"] == "measured with this model"
    assert fit["disk"]["added_bytes"] > 4 * 4 * fit["model"]["parameters"]
    assert "Not inside a workspace" in done.err
    assert {path.name for path in tmp_path.iterdir()} == {"pairs.jsonl"}


def test_what_a_run_can_do_is_shown_to_a_person(tmp_path: Path, model: Path) -> None:
    file = write_hh_pairs(tmp_path / "pairs.jsonl", 60, seed=3)
    done = _validate(tmp_path, "human_pairs", file, "--base", model, *ALMOST, "--set", "gate.min_prompts=9")
    assert done.code == 0, done.err
    assert "a context of 128 tokens" in done.out
    assert "Time:    about" in done.out
    assert "Disk:" in done.out
    assert "finetune.dpo.vali" in done.out


def test_pairs_beyond_the_context_are_counted_by_who_sets_them_aside(tmp_path: Path, model: Path) -> None:
    """Five of 60 responses have 400 letters, which no 128 tokens of a byte-level tokenizer hold."""
    file = write_hh_pairs(tmp_path / "pairs.jsonl", 60, seed=3)
    rows = [orjson.loads(line) for line in file.read_bytes().splitlines()]
    for row in rows[:5]:
        row["chosen"] += " " + "xyzw" * 100
    file.write_bytes(b"\n".join(map(orjson.dumps, rows)))
    splits = _validate(tmp_path, file, "--base", model, *ALMOST, "--json").payload["fit"]["splits"]
    assert sum(split["pairs_too_long"]["reward"] for split in splits.values()) == 5
    assert splits["test"]["pairs_too_long"]["evaluation"] == splits["test"]["pairs_too_long"]["reward"]
    assert max(split["tokens"]["longest"] for split in splits.values()) > 128


def test_what_the_contract_stops_is_not_read_by_a_model(tmp_path: Path, model: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(b"no json\nno json\n")
    done = _validate(tmp_path, file, "--base", model, "--json")
    assert done.code == 1
    assert "fit" not in done.payload


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("pairs.jsonl", "--base", "nowhere/at/all"), 3, "neither a folder"),
        (("human_pears", "pairs.jsonl"), 2, "human_pears: unknown source"),
        (("missing.jsonl",), 2, "missing.jsonl"),
        (("pairs.jsonl", "-C", "no-workspace"), 2, "not inside a Plumbline workspace"),
        (("pairs.jsonl", "--set", "sead=1"), 2, "sead: unknown key"),
    ],
)
def test_wrong_usage_is_named(tmp_path: Path, arguments: tuple[str, ...], code: int, said: str) -> None:
    write_hh_pairs(tmp_path / "pairs.jsonl", 60, seed=3)
    done = _validate(tmp_path, *arguments)
    assert done.code == code
    assert said in done.err
    assert "Traceback" not in done.err


def test_real_feedback_and_a_real_model(shared: Path, tmp_path: Path) -> None:
    """867 pairs made to fool length; a context of 512 tokens is too short for many of them."""
    for needed in ("data/llmbar_pairs.jsonl.gz", "models/stories260K/config.json"):
        if not (shared / needed).is_file():
            pytest.skip(f"../shared/{needed} is not on this machine")
    file, base = shared / "data/llmbar_pairs.jsonl.gz", shared / "models/stories260K"
    given = (tmp_path, file, "--base", base, "--set", "feedback.on_single_label=warn", "--json")
    done = _validate(*given, "--set", "evaluation.max_new_tokens=512")
    assert done.code == 1
    fit = done.payload["fit"]
    assert fit["model"]["parameters"] == 260_032
    assert fit["model"]["context_length"] == 512
    assert fit["splits"]["train"]["pairs_too_long"]["reward"] > 100
    assert [need["key"] for need in fit["needs"] if need["stops"]] == ["evaluation.max_new_tokens", "gate.min_prompts"]
    follows = _validate(*given).payload["fit"]  # half of the context is left to prompts
    assert follows["assumed_completion_length"] == 256
    assert [need["key"] for need in follows["needs"] if need["stops"]] == ["gate.min_prompts"]
