from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from plumbline.data_contracts.errors import ModelError, ParamsError
from plumbline.tasks.models.checkpoints import weights_digest
from plumbline.tasks.models.curve import write_curve
from plumbline.tasks.params.finetuning import DpoParams, FinetuneParams, ImitationParams
from plumbline.tasks.params.method_sections import FormatParams, LoraParams, ValidationParams
from plumbline.tasks.training.finetuning import dpo, stack
from plumbline.tasks.training.finetuning.adapters import ADAPTER
from plumbline.tasks.training.finetuning.methods import METHODS, FinetuneInputs
from tests.support.training import Killed, rows
from tests.support.world import in_world

QUICK: dict[str, Any] = {
    "learning_rate": 1e-2,
    "num_train_epochs": 1.0,
    "per_device_train_batch_size": 8,
    "logging_steps": 1,
    "eval_steps": 2,
    "early_stopping": None,
    "best_within_kl": None,
    "validation": in_world(ValidationParams, pairs=8, prompts=6, max_new_tokens=8),
}
REAL = in_world(
    FinetuneParams,
    methods=("sft", "dpo"),
    sft=in_world(ImitationParams, **QUICK),
    dpo=in_world(DpoParams, **QUICK, beta=0.1),
)
"""Two stages of six steps."""


@dataclasses.dataclass
class Double:
    """A method that adds 1 to every weight, and remembers what it was given."""

    name: str
    beta: float | None = None
    given: list[FinetuneInputs] = dataclasses.field(default_factory=list)
    dies: bool = False

    def section(self, params: FinetuneParams) -> Any:
        return getattr(params, self.name)

    def check(self, params: FinetuneParams) -> None:
        """Nothing to refuse."""

    def run(self, inputs: FinetuneInputs, params: FinetuneParams) -> dict[str, Any]:
        self.given.append(inputs)
        if self.dies:
            raise Killed
        if inputs.reward is not None:
            inputs.reward.calibrate(None)  # type: ignore[arg-type]
        weights = load_file(inputs.start / "model.safetensors")
        (inputs.folder / "config.json").write_bytes((inputs.start / "config.json").read_bytes())
        save_file({name: tensor + 1 for name, tensor in weights.items()}, inputs.folder / "model.safetensors")
        write_curve(inputs.folder, [{"step": 2, "loss": 0.5}, {"step": 3, "loss": 0.25}])
        (inputs.folder / ADAPTER).mkdir()
        inputs.progress(1, 3, "training")
        facts = {"method": self.name, "settings": {"learning_rate": 1.0}, "seed": inputs.seed}
        facts |= {"too_long": {"train": len(self.name)}, "tokens": {"seen": 100, "generated": len(self.name)}}
        return facts | ({"implied_beta": self.beta} if self.beta else {})


@pytest.fixture
def doubles(monkeypatch: pytest.MonkeyPatch) -> dict[str, Double]:
    """Every method replaced by a quick one; dpo and kto imply a reward."""
    methods = {name: Double(name, {"dpo": 0.1, "kto": 0.2}.get(name)) for name in METHODS}
    monkeypatch.setattr(stack, "METHODS", methods)
    return methods


class Learning:
    """A reward whose state is how often it was calibrated."""

    digest = "reward"
    max_length = None

    def __init__(self) -> None:
        self.times = 0
        self.seen: list[int] = []

    def calibrate(self, answers: Any) -> None:
        self.seen.append(self.times)
        self.times += 1

    def state(self) -> dict[str, Any]:
        return {"times": self.times}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.times = state["times"]


def contents(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.training
def test_a_stack_of_one_is_the_method_itself(inputs: FinetuneInputs, elsewhere: Callable[..., FinetuneInputs]) -> None:
    alone = elsewhere("alone")
    facts = dpo.run(alone, REAL.dpo)
    assert stack.run(inputs, REAL.model_copy(update={"methods": ("dpo",)})) == facts
    assert contents(inputs.folder) == contents(alone.folder)
    assert facts["implied_beta"] == 0.1
    assert sorted(path.name for path in inputs.work.iterdir()) == sorted(path.name for path in alone.work.iterdir())


@pytest.mark.long
@pytest.mark.training
def test_stages_train_on_and_a_killed_stack_goes_on_with_its_stage(
    inputs: FinetuneInputs, elsewhere: Callable[..., FinetuneInputs]
) -> None:
    """SFT then DPO, killed in the second step behind DPO's first checkpoint: the same bytes, SFT not trained again."""
    facts = stack.run(inputs, REAL)
    assert json.loads(json.dumps(facts)) == facts
    sft, second = facts["stages"]["1-sft"], facts["stages"]["2-dpo"]
    assert facts["method"] == "sft+dpo"
    assert facts["implied_beta"] == 0.1
    assert second["start_weights"] == sft["policy_weights"] != sft["start_weights"]
    assert second["reference_weights"] == sft["reference_weights"] == weights_digest(inputs.reference)
    assert second["policy_weights"] == weights_digest(inputs.folder)
    assert [(row["step"], row["stage"]) for row in rows(inputs.folder)] == [
        *((step, "1-sft") for step in range(1, 7)),
        *((step, "2-dpo") for step in range(7, 13)),
    ]

    def kill(done: int, total: int, note: str) -> None:
        if note.startswith("2-dpo: loss") and done == 4:
            raise Killed

    killed = elsewhere("killed", progress=kill)
    with pytest.raises(Killed):
        stack.run(killed, REAL)
    seen: list[tuple[int, str]] = []
    again = elsewhere("again", progress=lambda done, total, note: seen.append((done, note)))
    assert stack.run(dataclasses.replace(again, work=killed.work), REAL) == facts
    assert contents(again.folder) == contents(inputs.folder)
    assert not any(note.startswith("1-sft") for _, note in seen)
    assert next(done for done, note in seen if note.startswith("2-dpo: loss")) in (3, 4)


@pytest.mark.parametrize(("tie", "tied"), [("reference", [0, 0, 0]), ("previous", [0, 1, 2])])
def test_each_stage_starts_where_the_one_before_it_ended(
    tie: Any, tied: list[int], inputs: FinetuneInputs, doubles: dict[str, Double]
) -> None:
    """Each stage adds 1 to every weight: starts are π_ref + 0, 1 and 2, references as params say."""
    params = in_world(FinetuneParams, methods=("sft", "dpo", "sft"), stage_reference=tie)
    facts = stack.run(inputs, params)
    given = [doubles["sft"].given[0], doubles["dpo"].given[0], doubles["sft"].given[1]]
    truth = load_file(inputs.reference / "model.safetensors")

    def shift(folder: Path) -> float:
        found = load_file(folder / "model.safetensors")
        return float((found["model.norm.weight"] - truth["model.norm.weight"]).mean())

    assert [shift(each.start) for each in given] == pytest.approx([0, 1, 2])
    assert [shift(each.reference) for each in given] == pytest.approx(tied)
    assert shift(inputs.folder) == pytest.approx(3)
    assert [each.work.name for each in given] == ["1-sft", "2-dpo", "3-sft"]
    assert list(facts["stages"]) == ["1-sft", "2-dpo", "3-sft"]
    assert facts["implied_beta"] is None, "the last stage imitates"
    assert facts["too_long"] == {"train": 3}
    assert facts["tokens"] == {"seen": 300, "generated": 9}
    assert [(row["step"], row["stage"], row["loss"]) for row in rows(inputs.folder)] == [
        (2, "1-sft", 0.5),
        (3, "1-sft", 0.25),
        (5, "2-dpo", 0.5),
        (6, "2-dpo", 0.25),
        (8, "3-sft", 0.5),
        (9, "3-sft", 0.25),
    ]
    assert not (inputs.folder / ADAPTER).exists(), "its base is a policy that nobody keeps"


def test_without_an_implied_reward_there_is_no_beta(inputs: FinetuneInputs, doubles: dict[str, Double]) -> None:
    assert stack.run(inputs, in_world(FinetuneParams, methods=("ppo",)))["implied_beta"] is None


@pytest.mark.parametrize(
    ("methods", "tie", "beta"),
    [
        (("dpo", "kto"), "reference", 0.2),
        (("dpo", "kto", "sft"), "reference", None),
        (("dpo", "kto"), "previous", None),
        (("kto",), "previous", 0.2),
    ],
)
def test_beta_is_that_of_the_last_stage_if_it_implies_a_reward_against_pi_ref(
    inputs: FinetuneInputs, doubles: dict[str, Double], methods: Any, tie: Any, beta: float | None
) -> None:
    """SFT implies no reward; tied to the policy before it, a stage implies one that π_ref cannot tell."""
    assert stack.run(inputs, in_world(FinetuneParams, methods=methods, stage_reference=tie))["implied_beta"] == beta


def test_too_long_is_that_of_the_stage_that_set_aside_the_most(
    inputs: FinetuneInputs, doubles: dict[str, Double]
) -> None:
    """Doubles set aside as many examples as their names have letters."""
    facts = stack.run(inputs, in_world(FinetuneParams, methods=("sft", "orpo", "dpo")))
    assert facts["too_long"] == {"train": 4}
    assert facts["tokens"] == {"seen": 300, "generated": 10}


def killed_in_the_last(
    inputs: FinetuneInputs, doubles: dict[str, Double], methods: tuple[Any, ...] = ("sft", "dpo")
) -> FinetuneParams:
    params = in_world(FinetuneParams, methods=methods)
    doubles["dpo"].dies = True
    with pytest.raises(Killed):
        stack.run(inputs, params)
    doubles["dpo"].dies = False
    return params


def test_a_sealed_policy_is_taken_as_it_is(inputs: FinetuneInputs, doubles: dict[str, Double]) -> None:
    params = killed_in_the_last(inputs, doubles)
    stack.run(inputs, params)
    assert (len(doubles["sft"].given), len(doubles["dpo"].given)) == (1, 2)


@pytest.mark.parametrize("harm", ["changed", "not sealed"])
def test_a_policy_that_is_not_whole_is_trained_again(
    harm: str, inputs: FinetuneInputs, doubles: dict[str, Double]
) -> None:
    params = killed_in_the_last(inputs, doubles)
    (folder,) = inputs.work.glob("1-sft/sealed/run-*")
    whole = contents(folder)
    if harm == "changed":
        (folder / "policy" / "model.safetensors").write_bytes(b"cut off")
    else:
        (folder / "sealed.json").unlink()
    (folder / "policy" / "left over").write_text("from before")
    stack.run(inputs, params)
    assert len(doubles["sft"].given) == 2
    assert contents(folder) == whole


@pytest.mark.parametrize(
    "change", ["seed", "threads", "train", "validation", "judge", "temperatures", "params", "start", "reference"]
)
def test_a_sealed_policy_of_other_inputs_is_not_taken(
    change: str, inputs: FinetuneInputs, drifted: Path, doubles: dict[str, Double]
) -> None:
    params = killed_in_the_last(inputs, doubles)
    changes: dict[str, dict[str, Any]] = {
        "seed": {"seed": 8},
        "threads": {"threads": 2},
        "train": {"train": inputs.train[1:]},
        "validation": {"validation": inputs.validation[1:]},
        "judge": {"judge_digest": "another"},
        "temperatures": {"temperatures": (0.5,)},
        "start": {"start": drifted},
        "reference": {"reference": drifted},
    }
    if change == "params":
        params = params.model_copy(update={"sft": in_world(ImitationParams, learning_rate=0.5)})
    stack.run(dataclasses.replace(inputs, **changes.get(change, {})), params)
    assert len(doubles["sft"].given) == 2


def test_settings_of_a_later_stage_leave_an_earlier_one(inputs: FinetuneInputs, doubles: dict[str, Double]) -> None:
    params = killed_in_the_last(inputs, doubles)
    stack.run(inputs, params.model_copy(update={"dpo": in_world(DpoParams, beta=0.5)}))
    assert len(doubles["sft"].given) == 1


def test_every_stage_meets_the_reward_as_it_was_given(inputs: FinetuneInputs, doubles: dict[str, Double]) -> None:
    """Else what one stage taught it would reach the next only where no kill lay between."""
    reward = Learning()
    stack.run(dataclasses.replace(inputs, reward=reward), in_world(FinetuneParams, methods=("ppo", "ppo", "ppo")))
    assert reward.seen == [0, 0, 0]


def test_a_drawn_system_prompt_may_be_refused(
    inputs: FinetuneInputs, doubles: dict[str, Double], drifted: Path, tmp_path: Path
) -> None:
    """By a template without system turns, which takes the records that drew none; too many stop the run."""
    start = tmp_path / "strict"
    shutil.copytree(drifted, start)
    (template,) = start.glob("*.jinja")
    template.write_text(
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system turns') }}{% endif %}"
        + template.read_text()
    )
    params = in_world(FinetuneParams, methods=("sft",), formats=FormatParams(system_prompts=("red", "")))
    given = dataclasses.replace(inputs, start=start, refused_threshold=0.9)
    facts = stack.run(given, params)
    kept, refused = doubles["sft"].given[0].train, facts["formats"]["sifted"]["refused_by_template"]
    assert 0 < refused["train"] == len(inputs.train) - len(kept) < len(inputs.train)
    assert {pair.prompt[0].role for pair in kept} == {"user"}
    with pytest.raises(ModelError, match="No system turns"):
        stack.run(dataclasses.replace(given, refused_threshold=0.1), params)


def test_formats_are_drawn_once_for_all_stages(inputs: FinetuneInputs, doubles: dict[str, Double]) -> None:
    formats = FormatParams(templates=("please {prompt}",), temperatures=(0.5, 1.0))
    facts = stack.run(inputs, in_world(FinetuneParams, methods=("sft", "dpo"), formats=formats))
    for name in ("sft", "dpo"):
        (given,) = doubles[name].given
        assert all(pair.prompt[-1].content.startswith("please ") for pair in given.train)
        assert not any(pair.prompt[-1].content.startswith("please please") for pair in given.train)
        assert given.validation is inputs.validation
        assert given.temperatures == (0.5, 1.0)
    assert facts["formats"]["train"]["templates"] == [48]
    assert "formats" not in stack.run(inputs, in_world(FinetuneParams, methods=("dpo",)))


def test_what_a_later_method_refuses_is_refused_before_the_first_trains(inputs: FinetuneInputs) -> None:
    wrong = REAL.model_copy(update={"dpo": in_world(DpoParams, optim="zigzag")})
    with pytest.raises(ParamsError, match="zigzag"):
        stack.run(inputs, wrong)
    assert not inputs.work.exists()


@pytest.mark.training
def test_adapters_of_a_stack_are_merged_and_not_kept(inputs: FinetuneInputs) -> None:
    """DPO's adapter has the policy of SFT as its base, which no workspace holds."""
    lora = REAL.model_copy(update={"dpo": in_world(DpoParams, **QUICK, lora=LoraParams(r=2))})
    facts = stack.run(inputs, lora)
    assert not (inputs.folder / ADAPTER).exists()
    assert facts["stages"]["2-dpo"]["evaluations"][-1]["kl_per_token"] != 0
    before, after = load_file(inputs.reference / "model.safetensors"), load_file(inputs.folder / "model.safetensors")
    assert before.keys() == after.keys()
    assert not torch.equal(before["model.norm.weight"], after["model.norm.weight"]), "SFT trained all weights"
