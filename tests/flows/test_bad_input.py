"""Bad input through the command line: a message that says what to do, the documented exit code, nothing half-written.

Commands run inside this process unless a test needs another one (a capability dropped, a limit set, a whole
retraining). An exception that the command line does not turn into a message fails the test by itself.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest

from plumbline.data_contracts.artifact import read_artifact, writing
from plumbline.data_contracts.errors import ParamsError
from plumbline.data_contracts.records import CuratedPair, dump_jsonl, load_jsonl
from plumbline.flows.cli.main import main
from plumbline.flows.graph.stages import STAGES
from plumbline.tasks.params.document import save_params
from plumbline.tasks.params.layers import load_params
from plumbline.tasks.params.section import PARAMS_FILE
from plumbline.tasks.params.whole import Params

TINY = Path(__file__).with_name("tiny.yaml")
LONG = "A long story"
LONG_PAIRS = 16
DONE, SAID_NO, USAGE, FAILED = 0, 1, 2, 3
_HALF_WRITTEN = (".draft-", ".retired-", ".incoming-", "tmp-checkpoint")


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Place:
    """A workspace and ways to run the command line in it."""

    root: Path

    def set(self, *settings: str, overlay: Path | None = None) -> None:
        save_params(self.root, load_params(self.root, [overlay] if overlay else [], settings)[1])

    def files(self) -> dict[str, str]:
        """Digest of every file that a run hands on."""
        folders = ("data", "models", "reports", PARAMS_FILE, "dvc.lock")
        roots = [self.root / name for name in folders]
        found = [path for top in roots for path in (top.rglob("*") if top.is_dir() else [top]) if path.is_file()]
        return {path.relative_to(self.root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}

    def half_written(self) -> list[str]:
        return [
            path.relative_to(self.root).as_posix()
            for path in self.root.rglob("*")
            if any(mark in path.name for mark in _HALF_WRITTEN)
            or (path.name.startswith("checkpoint-") and not (path / "sealed.json").is_file())
        ]


Run = Callable[..., Ended]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run(place, *arguments)`: the command line inside this process."""

    def call(place: Place, *arguments: object) -> Ended:
        return _in_process(capfd, monkeypatch, place, *arguments)

    return call


def _in_process(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, place: Place, *arguments: object
) -> Ended:
    capfd.readouterr()
    command, *rest = map(str, arguments)
    monkeypatch.setattr(sys, "argv", ["plumbline", command, "-C", str(place.root), *rest])
    with pytest.raises(SystemExit) as ended:
        main()
        sys.exit(DONE)
    out, err = capfd.readouterr()
    return Ended(int(ended.value.code or 0), out, err)


def in_a_process(place: Place, *arguments: object, prefix: tuple[str, ...] = (), **environment: str) -> Ended:
    """The command line in a process of its own."""
    command, *rest = map(str, arguments)
    done = subprocess.run(
        [*prefix, sys.executable, "-m", "plumbline", command, "-C", str(place.root), *rest],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=600,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


@contextmanager
def untouched(place: Place) -> Iterator[None]:
    """The block may change nothing that a run hands on, and leave nothing half-written."""
    before = place.files()
    yield
    assert place.files() == before
    assert place.half_written() == []


def refused(ended: Ended, code: int, *words: str) -> None:
    """The command ended with `code`, said all `words` on stderr, and showed no traceback."""
    assert ended.code == code, ended.err
    assert "Traceback" not in ended.err
    assert ended.err.startswith("plumbline: ")
    missing = [word for word in words if word not in ended.err]
    assert not missing, f"{missing} not in: {ended.err}"


def pairs(count: int, seed: int, **changes: Any) -> list[dict[str, Any]]:
    """Sound rows of made-up words, no two alike."""
    rng = Random(seed)

    def words(number: int) -> str:
        return " ".join("".join(rng.choices("abcdefghiklmnoprstu", k=5)) for _ in range(number))

    return [{"prompt": f"{words(6)}?", "chosen": words(4), "rejected": words(5)} | changes for _ in range(count)]


def labelled(count: int, label: Callable[[int], str]) -> list[dict[str, Any]]:
    return [
        {"prompt": row["prompt"], "response_a": row["chosen"], "response_b": row["rejected"], "label": label(number)}
        for number, row in enumerate(pairs(count, seed=5))
    ]


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def long_pairs() -> list[dict[str, Any]]:
    """Prompts of some 1,500 characters: beyond the 256 tokens of the tiny model, within curation's limits."""
    return [
        row | {"prompt": f"{LONG} {' '.join(other['prompt'] for other in pairs(45, seed=100 + number))}"}
        for number, row in enumerate(pairs(LONG_PAIRS, seed=7))
    ]


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A fresh tiny workspace without the sample world, in which nothing ran. Shared: leave it as it is."""
    from plumbline.flows.graph.workspaces import init_workspace

    place = Place(tmp_path_factory.mktemp("empty") / "workspace")
    init_workspace(place.root, recipe="sample_world")
    place.set("sample_world.enabled=false", "reference.sft.data=curated", "reference.base=given", overlay=TINY)
    return place


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A tiny workspace in which every stage ran, some prompts of its feedback being too long. Shared as well."""
    from plumbline.flows.cli.runner import stage_here
    from plumbline.flows.graph.workspaces import init_workspace
    from plumbline.tasks.data.ingest_feedback import ingest_feedback

    place = Place(tmp_path_factory.mktemp("built") / "workspace")
    init_workspace(place.root, recipe="sample_world")
    place.set(overlay=TINY)
    batch = write_rows(tmp_path_factory.mktemp("feedback") / "long.jsonl", long_pairs())
    ingest_feedback(place.root, "human_pairs", [str(batch)])
    for name in STAGES:
        stage_here(place.root, name)
    return place


def copy_of(place: Place, root: Path) -> Place:
    shutil.copytree(place.root, root, symlinks=True)
    return Place(root)


@pytest.fixture
def fresh(empty: Place, tmp_path: Path) -> Place:
    """A copy of the empty workspace, to change at will."""
    return copy_of(empty, tmp_path / "workspace")


@pytest.fixture
def copy(built: Place, tmp_path: Path) -> Place:
    """A copy of the built workspace, to change at will."""
    return copy_of(built, tmp_path / "workspace")


# Feedback that cannot be read


@pytest.mark.slow
@pytest.mark.parametrize("command", ["ingest", "validate"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ("no such file", "Check the path")),
        (b"", ("feedback.jsonl", "empty")),
        (b"\n \n", ("expected at least one row, found none", "export")),
        (gzip.compress(b""), ("feedback.jsonl", "expected at least one row, found none")),
        (gzip.compress(json.dumps(pairs(50, 1)).encode())[:-20], ("damaged or was cut off", "export it again")),
        (b"\x00\x01\x02", ("found binary data", "Convert")),
        (json.dumps(pairs(2, 1)).encode()[:-5], ("feedback.jsonl", "its last list does not end")),
    ],
    ids=["missing", "empty", "blank", "empty gzip", "cut off", "binary", "array that is cut off"],
)
def test_a_file_that_holds_no_rows(
    run: Run, empty: Place, tmp_path: Path, command: str, content: bytes | None, words: tuple[str, ...]
) -> None:
    file = tmp_path / "feedback.jsonl"
    if content is not None:
        file.write_bytes(content)
    with untouched(empty):
        refused(run(empty, command, "human_pairs", file), USAGE, "feedback.jsonl", *words)


@pytest.mark.slow
def test_a_file_without_permission(empty: Place, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "feedback.jsonl", pairs(4, 1))
    file.chmod(0)
    prefix: tuple[str, ...] = ()
    if os.geteuid() == 0:
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            pytest.skip("root reads every file, and there is no setpriv to give that up")
        prefix = (setpriv, "--bounding-set", "-dac_override,-dac_read_search")
    with untouched(empty):
        ended = in_a_process(empty, "ingest", "human_pairs", file, prefix=prefix)
        refused(ended, USAGE, "feedback.jsonl", "Permission denied")


def test_one_bad_file_of_two_is_named(run: Run, fresh: Place, tmp_path: Path) -> None:
    """The whole one is in the raw store then: a second call with both adds nothing twice."""
    whole = write_rows(tmp_path / "whole.jsonl", pairs(4, 1))
    ended = run(fresh, "ingest", "human_pairs", whole, tmp_path / "absent.jsonl")
    refused(ended, USAGE, "absent.jsonl: no such file")
    assert fresh.half_written() == []
    again = run(fresh, "ingest", "human_pairs", whole, "--json")
    assert again.code == DONE, again.err
    (raw,) = (fresh.root / "data/raw/human_pairs").glob("*.jsonl")
    assert raw.read_bytes() == whole.read_bytes()


def test_no_feedback_at_all(run: Run, fresh: Place) -> None:
    assert run(fresh, "stage", "sample_world").code == DONE
    with untouched(fresh):
        refused(run(fresh, "stage", "validate"), USAGE, "no feedback", "plumbline ingest human_pairs FILE")


# Feedback that breaks its contract


def fed(run: Run, place: Place, tmp_path: Path, rows: list[Any]) -> Place:
    """A workspace in which these rows are ready to be validated."""
    assert run(place, "ingest", "human_pairs", write_rows(tmp_path / "rows.jsonl", rows)).code == DONE
    assert run(place, "stage", "sample_world").code == DONE
    return place


BROKEN = {
    "no valid rows": (
        [{"prompt": "p"}, "{cut o", *pairs(2, 1, chosen=" ")],
        ("no valid row", "found 4 rows", "missing_field", "empty_text"),
    ),
    "one class only": (labelled(12, lambda number: "a"), ("one class only", "(a 12)", "feedback.on_single_label=warn")),
    "over the threshold": (
        [*pairs(8, 1), *pairs(2, 2, rejected="")],
        ("quarantine_threshold", "found 2 of 10", "empty_text"),
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_feedback_stops_with_a_report(run: Run, fresh: Place, tmp_path: Path, name: str) -> None:
    rows, words = BROKEN[name]
    place = fed(run, fresh, tmp_path, rows)
    with untouched(place):
        ended = run(place, "stage", "validate")
        refused(ended, SAID_NO, *words, f"read {len(rows)} = ")
    work = place.root / ".plumbline/work/validate"
    for file in (work / "report.json", work / "quarantine.jsonl"):
        assert str(file) in ended.err
        assert file.is_file()
    assert json.loads((work / "report.json").read_text())["read"] == len(rows)
    assert not (place.root / "data/validated").exists()


@pytest.mark.parametrize("name", BROKEN)
def test_a_dry_run_says_the_same(run: Run, fresh: Place, tmp_path: Path, name: str) -> None:
    rows, words = BROKEN[name]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    with untouched(fresh):
        ended = run(fresh, "validate", "human_pairs", file)
        refused(ended, SAID_NO, *words)
    home = fresh.root / ".plumbline/dry-run"
    assert str(home / "quarantine.jsonl") in ended.err
    assert sorted(path.name for path in home.iterdir()) == ["quarantine.jsonl", "report.json"]


def test_what_curation_sets_aside_counts_as_well(run: Run, fresh: Place, tmp_path: Path) -> None:
    """Two of ten rows contradict one another: each is sound by the contract. As a stage, and as a dry run."""
    turned = {"id": "turned", "prompt": "Is it?", "chosen": "No, it is not.", "rejected": "Yes, it is."}
    rows = [turned, turned | {"id": "again", "chosen": turned["rejected"], "rejected": turned["chosen"]}, *pairs(8, 7)]
    place = fed(run, fresh, tmp_path, rows)
    words = ("expected at most 10.0%", "found 2 of 10 = 20.0%", "contradiction 2", "opposite preference")
    assert run(place, "stage", "validate").code == DONE
    with untouched(place):
        refused(run(place, "stage", "curate"), SAID_NO, *words)
    work = place.root / ".plumbline/work/curate"
    assert json.loads((work / "report.json").read_text())["reasons"] == {"contradiction": 2}
    assert len((work / "quarantine.jsonl").read_text().splitlines()) == 2
    assert not (place.root / "data/curated").exists()

    ended = run(place, "validate", "human_pairs", tmp_path / "rows.jsonl", "--json")
    assert ended.code == SAID_NO
    report = json.loads(ended.out)
    assert report["shares"] == {"quarantined": 0.2, "reasons": {"contradiction": 0.2}}
    assert all(word in report["stopped"] for word in words)

    place.set("feedback.quarantine_thresholds={contradiction: 0.25}")
    assert run(place, "stage", "curate").code == DONE
    table = run(place, "validate", "human_pairs", tmp_path / "rows.jsonl")
    assert table.code == DONE
    assert "20.0%" in table.out


def test_what_stopped_a_run_can_be_allowed(run: Run, fresh: Place, tmp_path: Path) -> None:
    place = fed(run, fresh, tmp_path, [*labelled(12, lambda number: "a"), *pairs(2, 9, rejected="")])
    place.set("feedback.on_single_label=warn", "feedback.quarantine_threshold=0.5")
    assert run(place, "stage", "validate").code == DONE
    assert read_artifact(place.root / "data/validated").facts["accepted"] == 12


@pytest.mark.long
def test_a_whole_retraining_stops_with_the_report(
    run: Run, fresh: Place, built: Place, tmp_path: Path, server: str
) -> None:
    """The stages that need no feedback may end before; none that reads it may begin."""
    rows, words = BROKEN["over the threshold"]
    place = fed(run, fresh, tmp_path, rows)
    base = f"reference.base={built.root / 'models/base'}"
    ended = in_a_process(place, "retrain", "--json", "--set", base, PREFECT_API_URL=server)
    assert ended.code == SAID_NO, ended.err
    assert json.loads(ended.out)["error"]["exit_code"] == ended.code
    assert "Traceback" not in ended.err
    report = place.root / ".plumbline/work/validate/report.json"
    assert all(word in ended.err for word in (*words, str(report)))
    assert report.is_file()
    written = {path.parent.relative_to(place.root).as_posix() for path in place.root.rglob("manifest.json")}
    assert written <= {"data/world", "models/base"}
    assert place.half_written() == []


# Prompts that are longer than the context


def counted_long(place: Place, split: str) -> int:
    records = load_jsonl(place.root / f"data/curated/{split}.jsonl", CuratedPair)
    return Counter(pair.prompt[0].content.startswith(LONG) for pair in records)[True]


def test_prompts_beyond_the_context_are_set_aside_and_counted_by_each_stage(built: Place) -> None:
    """They pass the contract and curation, whose limits are in characters; each training stage counts its own."""
    expected = {split: counted_long(built, split) for split in ("train", "validation", "test")}
    assert sum(expected.values()) == LONG_PAIRS
    assert expected["train"] > 0
    assert expected["test"] > 0
    training = {split: expected[split] for split in ("train", "validation")}
    assert read_artifact(built.root / "models/reward").facts["too_long"] == training
    assert read_artifact(built.root / "models/reward").facts["audit"]["too_long"] == expected["test"]
    assert read_artifact(built.root / "models/policy").facts["too_long"] == training | {"max_length": 256}
    counts = read_artifact(built.root / "reports/evaluation").facts["metrics"]["counts"]
    assert counts["pairs_over_context"] == expected["test"]


def test_long_demonstrations_are_counted_too(run: Run, copy: Place) -> None:
    copy.set("reference.sft.data=curated", "reference.sft.max_examples=null")
    assert run(copy, "stage", "reference").code == DONE
    examples = read_artifact(copy.root / "models/reference").facts["examples"]
    assert examples["too_long"] == counted_long(copy, "train")
    assert examples["given"] == examples["used"] + examples["too_long"]


@pytest.mark.parametrize(
    ("stage", "setting"),
    [
        ("reference", "reference.sft.max_length"),
        ("reward", "reward.max_length"),
        ("finetune", "finetune.dpo.max_length"),
    ],
)
def test_nothing_fits(run: Run, copy: Place, stage: str, setting: str) -> None:
    copy.set(f"{setting}=8")
    with untouched(copy):
        refused(run(copy, "stage", stage), FAILED, "of at most 8 tokens", "found none among", f"Raise {setting}")


def only_long(place: Place, *splits: str) -> None:
    """Leave the splits with prompts beyond the context alone."""
    curated = place.root / "data/curated"
    records = {path.stem: list(load_jsonl(path, CuratedPair)) for path in curated.glob("t*.jsonl")}
    facts = dict(read_artifact(curated).facts)
    shutil.copytree(curated, place.root / "kept")
    with writing(curated, contract="curated_preferences", version=1) as draft:
        shutil.copytree(place.root / "kept", draft.path, dirs_exist_ok=True)
        for split in splits:
            long = [pair for pair in records[split] if pair.prompt[0].content.startswith(LONG)]
            dump_jsonl(draft.path / f"{split}.jsonl", long)
        draft.facts = facts
    shutil.rmtree(place.root / "kept")


@pytest.mark.parametrize(
    ("stage", "split", "words"),
    [
        ("reward", "train", ("Expected training pairs of at most 256 tokens", "found none among")),
        ("reward", "test", ("held-out pairs", "found none")),
        ("finetune", "train", ("Expected training pairs of at most 256 tokens", "found none among")),
        ("evaluate", "test", ("test prompts of at most 247 tokens", "use a model with a longer context")),
    ],
)
def test_every_prompt_is_too_long(run: Run, copy: Place, stage: str, split: str, words: tuple[str, ...]) -> None:
    only_long(copy, split)
    with untouched(copy):
        refused(run(copy, "stage", stage), FAILED, *words)


# Models and tokenizers that are given


def given_model(built: Place, folder: Path) -> Path:
    return shutil.copytree(built.root / "models/base", folder)


def edit_json(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


@pytest.mark.long
@pytest.mark.parametrize("pad", [None, "<|end|>"], ids=["no pad", "pad is eos"])
def test_a_tokenizer_without_a_pad_token_of_its_own_goes_through_every_training_stage(
    run: Run, built: Place, copy: Place, tmp_path: Path, pad: str | None
) -> None:
    model = given_model(built, tmp_path / "given")
    edit_json(model / "tokenizer_config.json", pad_token=pad)
    edit_json(model / "config.json", pad_token_id=None)
    copy.set(f"reference.base={model}")
    for stage in ("base", "reference", "reward", "finetune"):
        ended = run(copy, "stage", stage)
        assert ended.code == DONE, ended.err
    assert "padding is found by position" in read_artifact(copy.root / "models/base").facts["padding"]
    curves = [copy.root / "models" / name / "training.jsonl" for name in ("reference", "reward", "policy")]
    assert all("loss" in curve.read_text() for curve in curves)


def test_a_tokenizer_without_an_end_token_says_what_to_set(run: Run, built: Place, copy: Place, tmp_path: Path) -> None:
    model = given_model(built, tmp_path / "given")
    edit_json(model / "tokenizer_config.json", eos_token=None)
    copy.set(f"reference.base={model}")
    with untouched(copy):
        refused(
            run(copy, "stage", "base"), FAILED, str(model), "no eos token", "Set eos_token in tokenizer_config.json"
        )


def pickled(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


DAMAGE: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "truncated weights": (
        lambda model: os.truncate(model / "model.safetensors", 1000),
        ("model.safetensors", "1000 bytes", "restore it again"),
    ),
    "truncated tail": (
        lambda model: os.truncate(model / "model.safetensors", (model / "model.safetensors").stat().st_size - 1),
        ("model.safetensors", "cut off or changed"),
    ),
    "pickle only": (pickled, ("pickled weights (pytorch_model.bin)", "can run code", "safetensors")),
    "no config": (lambda model: (model / "config.json").unlink(), ("expected config.json", "restore it")),
    "broken config": (lambda model: (model / "config.json").write_text("{"), ("config.json", "restore the folder")),
    "other shapes": (
        lambda model: edit_json(model / "config.json", intermediate_size=48),
        ("other shapes", "Restore the config.json"),
    ),
    "broken tokenizer": (
        lambda model: (model / "tokenizer.json").write_text("{"),
        ("expected a tokenizer", "Copy the tokenizer's files"),
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_model_that_was_given(run: Run, built: Place, copy: Place, tmp_path: Path, name: str) -> None:
    damage, words = DAMAGE[name]
    model = given_model(built, tmp_path / "given")
    damage(model)
    copy.set(f"reference.base={model}")
    with untouched(copy):
        refused(run(copy, "stage", "base"), FAILED, str(model), *words)


@pytest.mark.parametrize("name", ["truncated weights", "pickle only", "no config"])
@pytest.mark.parametrize(
    ("stage", "model"), [("reference", "base"), ("reward", "base"), ("finetune", "reward"), ("evaluate", "policy")]
)
def test_a_damaged_model_of_the_workspace(run: Run, copy: Place, stage: str, model: str, name: str) -> None:
    damage, words = DAMAGE[name]
    damage(copy.root / "models" / model)
    with untouched(copy):
        refused(run(copy, "stage", stage), FAILED, str(copy.root / "models" / model), *words)


@pytest.mark.parametrize(
    ("base", "words"),
    [
        ("nobody/no-such-model", ("nobody/no-such-model", "could not be fetched", "give its folder")),
        ("no/such/folder", ("no/such/folder", "neither a folder", "Check the path")),
        ("data", ("expected config.json",)),
    ],
)
def test_a_base_that_is_no_model(run: Run, copy: Place, base: str, words: tuple[str, ...]) -> None:
    copy.set(f"reference.base={base}")
    with untouched(copy):
        refused(run(copy, "stage", "base"), FAILED, *words)


@pytest.mark.parametrize(
    ("stage", "setting", "words"),
    [
        ("base", "reference.base=null", ("reference.base: expected a model", "set reference.base=MODEL")),
        ("reference", "reference.sft.data=world", ("reference.sft.data: found world", "Set it to curated")),
    ],
)
def test_what_only_the_sample_world_has(
    run: Run, fresh: Place, built: Place, stage: str, setting: str, words: tuple[str, ...]
) -> None:
    assert run(fresh, "stage", "sample_world").code == DONE
    shutil.copytree(built.root / "models/base", fresh.root / "models/base")
    with untouched(fresh):
        refused(run(fresh, "retrain", "--set", setting), USAGE, *words)
    fresh.set(setting)
    with untouched(fresh):
        refused(run(fresh, "stage", stage), USAGE, *words)


# Params


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("finetune.dpo.betta=0.2", ("finetune.dpo.betta: unknown key", "did you mean 'beta'")),
        ("reward.betta=0.1", ("reward.betta: unknown key; known keys: learning_rate",)),
        ("curation.split.trian=0.5", ("did you mean 'curation.split.train'",)),
        (
            "curation.split={train: 0.9, validation: 0.0, test: 0.1}",
            ("curation.split.validation: expected a share above 0", "chooses its best checkpoint"),
        ),
        ("finetune.dpo.beta=-1", ("finetune.dpo.beta", "greater than 0", "found -1")),
        ("seed=abc", ("seed", "valid integer", "found 'abc'")),
        ("reward.eval_steps=30", ("logging_steps (20) must divide eval_steps (30)",)),
        ("finetune.dpo.lr=1", ("finetune.dpo.lr: it is finetune.dpo.learning_rate since 0.2", "plumbline migrate")),
        (
            "finetune.dpo.trainer_args={optim: sgd}",
            ("finetune.dpo.trainer_args: its arguments stand beside the other keys of finetune.dpo since 0.2",),
        ),
        ("finetune.dpo.max_grad_norn=1", ("finetune.dpo.max_grad_norn: unknown key; did you mean 'max_grad_norm'",)),
        ("finetune.dpo.max_grad_norm=big", ("finetune.dpo.max_grad_norm: expected float", "found 'big'")),
        ("finetune.dpo.seed=1", ("finetune.dpo.seed: set by Plumbline",)),
        ("reward.adam_beta_2=0.9", ("reward.adam_beta_2", "did you mean 'adam_beta2'")),
        ("reference.sft.optimm=sgd", ("reference.sft.optimm", "did you mean 'optim'")),
        ("reward.optim=zigzag", ("reward: TRL refuses these arguments", "zigzag")),
    ],
)
def test_wrong_params_are_refused_before_anything_starts(
    run: Run, empty: Place, setting: str, words: tuple[str, ...]
) -> None:
    with untouched(empty):
        ended = run(empty, "retrain", "--json", "--set", setting)
        refused(ended, USAGE, *words)
    assert json.loads(ended.out)["error"]["exit_code"] == ended.code
    assert not (empty.root / ".plumbline/work").exists()


def test_trainer_arguments_that_trl_knows_pass_the_check() -> None:
    from plumbline.flows.graph.preflight import check_trainer_arguments
    from plumbline.tasks.params.whole import Params

    known = {"max_grad_norm": 0.5}
    check_trainer_arguments(
        Params.model_validate({"reference": {"sft": known}, "reward": known, "finetune": {"dpo": known}})
    )


GRPO = "finetune.methods=[grpo]"
PPO = "finetune.methods=[ppo]"
NOWHERE = "[{kind: function, function: nowhere_at_all:f}]"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ((PPO, f"mixture.terms={NOWHERE}"), ("mixture.terms: `function`: nowhere_at_all:f", "ModuleNotFoundError")),
        (
            (PPO, "mixture.terms=[{kind: function, function: os.path:join}]"),
            ("os.path:join: expected TRL's reward signature",),
        ),
        (
            (PPO, "mixture.terms=[{kind: function, function: broken_reward:f}]"),
            ("broken_reward:f", "ZeroDivisionError on import"),
        ),
        ((PPO, "mixture.terms=[{kind: safety, classifier: none_here}]"), ("`safety`: none_here", "config.json")),
        ((PPO, "finetune.ppo.use_vllm=true"), ("vLLM, which is not installed",)),
        ((GRPO, "finetune.grpo.use_vllm=true"), ("vLLM, which is not installed",)),
        ((GRPO, "judge.kind=rule", f"judge.rule.terms={NOWHERE}"), ("judge.rule.terms: `function`: nowhere_at_all:f",)),
        ((GRPO, "judge.reward_model.path=none_here"), ("judge.reward_model.path", "without config.json, reward.json")),
        ((GRPO, "judge.kind=llm", "judge.llm.rubric=kindness"), ("Rubric 'kindness'", "helpfulness-1")),
        ((GRPO, "judge.kind=llm", "judge.llm.api_key_env=NO_SUCH_KEY"), ("variable NO_SUCH_KEY", "unset")),
        (("finetune.methods=[dpo, ppo]", f"mixture.terms={NOWHERE}"), ("nowhere_at_all:f",)),
        (
            (GRPO, "finetune.grpo.reward_weight=0.1", f"mixture.terms={NOWHERE}"),
            ("mixture.terms: `function`: nowhere_at_all:f",),
        ),
    ],
)
def test_what_a_method_trains_by_must_be_there_before_anything_starts(
    run: Run, empty: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: tuple[str, ...], words: Any
) -> None:
    (tmp_path / "broken_reward.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with untouched(empty):
        refused(run(empty, "retrain", *(part for one in settings for part in ("--set", one))), USAGE, *words)


def test_what_no_method_of_the_run_uses_is_not_looked_at(empty: Place) -> None:
    """GRPO without a weight for the mixture leaves it alone, as DPO does; a judge of another kind needs no key."""
    from plumbline.flows.graph.preflight import check_teachers

    unused = {
        "mixture": {"terms": [{"kind": "function", "function": "nowhere_at_all:f"}]},
        "judge": {"llm": {"api_key_env": "NO_SUCH_KEY", "rubric": "kindness"}},
    }
    for methods in (["dpo"], ["grpo"]):
        check_teachers(empty.root, Params.model_validate({**unused, "finetune": {"methods": methods}}))


def test_the_held_out_judge_may_not_rank(empty: Place) -> None:
    from plumbline.flows.graph.preflight import check_teachers

    path = str(empty.root / "models/reward/../reward/held_out")
    given = {"finetune": {"methods": ["grpo"]}, "judge": {"reward_model": {"path": path}}}
    with pytest.raises(ParamsError, match="found the held-out judge"):
        check_teachers(empty.root, Params.model_validate(given))


@pytest.mark.parametrize(
    ("config", "weights", "label", "message"),
    [
        ({"id2label": {"0": "safe", "1": "unsafe"}}, True, "unsafe", None),
        ({}, True, "LABEL_1", None),
        ({"id2label": {"0": "safe", "1": "toxic"}}, True, "unsafe", r"label 'unsafe', found \['safe', 'toxic'\]"),
        ({"id2label": {"1": "unsafe"}}, False, "unsafe", "expected weights"),
        ([], True, "unsafe", "AttributeError"),
    ],
)
def test_a_classifier_is_looked_at_without_its_weights_being_read(
    tmp_path: Path, config: Any, weights: bool, label: str, message: str | None
) -> None:
    from plumbline.flows.graph.preflight import check_teachers

    (tmp_path / "config.json").write_text(json.dumps(config))
    if weights:
        (tmp_path / "model.safetensors").write_bytes(b"not read")
    term = {"kind": "safety", "classifier": str(tmp_path), "classifier_label": label}
    params = Params.model_validate({"finetune": {"methods": ["ppo"]}, "mixture": {"terms": [term]}})
    with pytest.raises(ParamsError, match=message) if message else nullcontext():
        check_teachers(tmp_path, params)


@pytest.mark.slow
def test_what_a_variant_trains_by_is_looked_at_for_a_comparison_alone(run: Run, empty: Place) -> None:
    from plumbline.flows.graph.preflight import settle_params

    settings = ["compare.variants={ppo: {finetune.methods: [ppo]}}", f"mixture.terms={NOWHERE}"]
    with untouched(empty):
        ended = run(empty, "compare", "--set", settings[0], "--set", settings[1])
        refused(ended, USAGE, "compare.variants.ppo: mixture.terms", "nowhere_at_all:f")
        with pytest.raises(ParamsError, match=r"compare\.variants\.ppo"):
            settle_params(empty.root, [], settings, comparing=True)


@pytest.mark.parametrize(
    "command", [("stage", "curate"), ("retrain",), ("validate", "human_pairs", "x"), ("audit", "m")]
)
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"seed: [1\n", ("expected a YAML mapping",)),
        (b"\xff\xfe\x00seed", ("expected a YAML mapping",)),
        (b"- 1\n", ("expected a YAML mapping",)),
        (b"seed: 1\nseed: 2\n", ("seed",)),
        (b"sead: 1\n", (":1: sead: unknown key", "did you mean 'seed'")),
        (b"curation: 3\n", ("curation", "found 3")),
        (b"seed: \x00\n", ("expected a YAML mapping",)),
    ],
    ids=["cut off", "not text", "a list", "twice", "misspelt", "no section", "null byte"],
)
def test_a_broken_params_file(
    run: Run, fresh: Place, command: tuple[str, ...], content: bytes, words: tuple[str, ...]
) -> None:
    (fresh.root / PARAMS_FILE).write_bytes(content)
    with untouched(fresh):
        refused(run(fresh, *command), USAGE, PARAMS_FILE, *words)


@pytest.mark.parametrize(
    "command",
    [
        ("retrain",),
        ("stage", "curate"),
        ("ingest", "human_pairs", "x.jsonl"),
        ("audit", "models:/assistant@champion"),
        ("restore", "models:/assistant@champion", "--to", "elsewhere"),
    ],
    ids=lambda command: command[0],
)
def test_not_a_workspace(run: Run, tmp_path: Path, command: tuple[str, ...]) -> None:
    refused(run(Place(tmp_path), *command), USAGE, str(tmp_path), "not inside a Plumbline workspace", "plumbline init")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("stage", "curat"), ("curat: unknown stage", "curate")),
        (("ingest", "human_pears", "x"), ("human_pears: unknown source", "human_pairs")),
        (("retrain", "--params", "absent.yaml"), ("absent.yaml", "no such params file")),
        (("retrain", "--set", "seed"), ("--set seed", "KEY=VALUE")),
    ],
)
def test_wrong_usage(run: Run, empty: Place, command: tuple[str, ...], words: tuple[str, ...]) -> None:
    with untouched(empty):
        refused(run(empty, *command), USAGE, *words)


# A stage whose inputs are not there


def test_a_stage_before_its_inputs(run: Run, fresh: Place) -> None:
    with untouched(fresh):
        refused(run(fresh, "stage", "curate"), FAILED, "data/validated", "plumbline retrain")


# A full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mount a real file system of so many KiB."""
    mounted: list[Path] = []

    def mount(kib: int) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
        if os.geteuid() != 0 or shutil.which("mount") is None:
            pytest.skip("mounting a small disk needs root")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def size_of(folder: Path) -> int:
    """KiB that a folder takes on a file system of 4 KiB pages."""
    return sum(-(-path.stat().st_size // 4096) * 4 + 4 for path in folder.rglob("*") if path.is_file())


def on_small_disk(built: Place, mount: Callable[[int], Path]) -> Place:
    """The built workspace on a disk of its own, with 4 MiB to spare."""
    return copy_of(built, mount(size_of(built.root) + 4096) / "workspace")


def free_kib(folder: Path) -> int:
    return shutil.disk_usage(folder).free // 1024


def fill(folder: Path, leave_kib: int) -> Path:
    """Take all space but `leave_kib`."""
    ballast = folder / "ballast"
    ballast.write_bytes(b"\0" * max(0, free_kib(folder) - leave_kib) * 1024)
    return ballast


TRAINING = [stage.name for stage in STAGES.values() if stage.trains]


@pytest.mark.slow
@pytest.mark.long(keep=2)
@pytest.mark.parametrize(
    ("stage", "leave_kib"),
    [("sample_world", 0), *((name, 64) for name in STAGES), *((name, 200) for name in TRAINING)],
)
def test_a_full_disk(run: Run, built: Place, small_disk: Callable[[int], Path], stage: str, leave_kib: int) -> None:
    """At whatever point of a stage the space ends; and with space again the same command goes through."""
    place = on_small_disk(built, small_disk)
    ballast = fill(place.root.parent, leave_kib)
    before = place.files()
    ended = run(place, "stage", stage)
    if ended.code != DONE:
        refused(ended, FAILED, "could not be written", "Free disk space")
        assert place.files() == before
    assert place.half_written() == []
    if leave_kib == 0:
        assert ended.code == FAILED
    ballast.unlink()
    assert run(place, "stage", stage).code == DONE


@pytest.mark.slow
@pytest.mark.parametrize("command", ["ingest", "retrain", "validate"])
def test_a_full_disk_outside_of_stages(
    run: Run, built: Place, small_disk: Callable[[int], Path], tmp_path: Path, command: str
) -> None:
    """No space for a raw batch, for the new `params.yaml`, for the quarantine of a dry run."""
    place = on_small_disk(built, small_disk)
    rows = write_rows(tmp_path / "rows.jsonl", pairs(40, 3))
    fill(place.root.parent, 0)
    arguments = ("--set", "seed=3") if command == "retrain" else ("human_pairs", rows)
    with untouched(place):
        refused(run(place, command, *arguments), FAILED, "Free disk space")


@pytest.mark.parametrize("stage", ["base", "reward", "finetune"])
def test_a_limit_on_the_size_of_files(run: Run, copy: Place, stage: str) -> None:
    """64 KiB a file let a model of 45 KiB through but no optimiser of twice that; 16 KiB let neither."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with untouched(copy):
        resource.setrlimit(resource.RLIMIT_FSIZE, ((16 if stage == "base" else 64) * 1024, limits[1]))
        try:
            ended = run(copy, "stage", stage)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        refused(ended, FAILED, "could not be written", "Free disk space")


@pytest.mark.long
def test_a_disk_that_fills_up_during_a_whole_retraining(
    built: Place, small_disk: Callable[[int], Path], server: str
) -> None:
    """Stages, DVC's cache and MLflow's store share the disk; whichever meets its end, the message says so."""
    place = on_small_disk(built, small_disk)
    before = place.files()
    fill(place.root.parent, 512)
    ended = in_a_process(place, "retrain", "--json", PREFECT_API_URL=server)
    assert ended.code == FAILED, ended.err
    assert json.loads(ended.out)["error"]["exit_code"] == ended.code
    assert "Traceback" not in ended.err
    assert "space" in ended.err
    after = place.files()
    assert {name: after.get(name) for name in before if not name.endswith(".gitignore")} == {
        name: digest for name, digest in before.items() if not name.endswith(".gitignore")
    }
    assert place.half_written() == []
