"""What SFT, DPO, KTO and ORPO share; `test_dpo` has what was first seen with DPO."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from plumbline.data_contracts.errors import ModelError, ParamsError
from plumbline.tasks.models.pairs import TokenPair
from plumbline.tasks.params.finetuning import (
    DpoParams,
    FinetuneParams,
    ImitationParams,
    KtoParams,
    OfflineParams,
    OrpoParams,
)
from plumbline.tasks.params.method_sections import LoraParams, ValidationParams
from plumbline.tasks.training.finetuning import offline, run
from plumbline.tasks.training.finetuning.arena import Arena
from plumbline.tasks.training.finetuning.methods import METHODS, FinetuneInputs
from tests.support.training import Killed
from tests.support.world import in_world

pytestmark = pytest.mark.training

QUICK: dict[str, Any] = {
    "learning_rate": 1e-2,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 8,
    "logging_steps": 1,
    "eval_steps": 2,
    "per_device_eval_batch_size": 8,
    "early_stopping": None,
    "best_within_kl": None,
    "validation": in_world(ValidationParams, pairs=8, prompts=6, max_new_tokens=8),
}
"""Six steps of 48 pairs (twelve of KTO's 96 examples), with evaluations and checkpoints after every other one."""

SECTIONS: dict[str, type[OfflineParams]] = {
    "sft": ImitationParams,
    "dpo": DpoParams,
    "kto": KtoParams,
    "orpo": OrpoParams,
}
NEW = ("sft", "kto", "orpo")


def train(method: str, inputs: FinetuneInputs, **changes: Any) -> dict[str, Any]:
    section = SECTIONS[method](**(QUICK | changes))
    return METHODS[method].run(inputs, in_world(FinetuneParams, **{method: section}))


def contents(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("method", NEW)
def test_a_killed_run_resumes_to_the_same_bytes(
    method: str, inputs: FinetuneInputs, elsewhere: Callable[..., FinetuneInputs]
) -> None:
    def kill(done: int, total: int, note: str) -> None:
        if total in (6, 12) and done == 3 and note != "sampling":
            raise Killed

    facts = train(method, inputs)
    killed = elsewhere("killed", progress=kill)
    with pytest.raises(Killed):
        train(method, killed)
    seen: list[int] = []
    second = elsewhere("second", progress=lambda done, total, note: seen.append(done) if "loss" in note else None)
    torch.manual_seed(99)  # whatever ran before in the process must not matter
    assert train(method, dataclasses.replace(second, work=killed.work)) == facts
    assert contents(inputs.folder) == contents(second.folder)
    assert seen[0] in (3, 4), "resumed from the checkpoint of step 2"


@pytest.mark.parametrize("method", NEW)
def test_facts_tell_what_happened(method: str, inputs: FinetuneInputs) -> None:
    facts = train(method, inputs)
    assert json.loads(json.dumps(facts)) == facts
    assert "/" not in json.dumps(facts), "no path of this machine"
    assert facts["method"] == method
    assert [each["step"] for each in facts["evaluations"]] == list(range(2, facts["steps"]["run"] + 1, 2))
    assert facts["evaluations"][-1]["preference_accuracy"] > 0.7, "chosen responses start with another word"
    assert {"win_rate", "kl_per_token", "margin"} <= facts["evaluations"][0].keys()
    best = max(facts["evaluations"], key=lambda each: each["win_rate"])
    assert facts["best"] == {"step": best["step"], "metric": "win_rate", "value": best["win_rate"], "within_kl": True}


@pytest.mark.parametrize("method", NEW)
def test_the_best_checkpoint_becomes_the_policy(method: str, inputs: FinetuneInputs) -> None:
    """A scripted judge: π_ref scores 0, the policy wins at its first evaluation and loses from then on."""
    verdicts = iter([0.0, 1.0, *([-1.0] * 5)])

    def judge(prompts: Any, responses: Any) -> list[float]:
        return [next(verdicts)] * len(prompts)

    facts = train(method, dataclasses.replace(inputs, judge=judge))
    assert facts["best"] == {"step": 2, "metric": "win_rate", "value": 1.0, "within_kl": True}
    (kept,) = inputs.work.glob("run-*/checkpoint-2")
    policy, best = load_file(inputs.folder / "model.safetensors"), load_file(kept / "model.safetensors")
    assert all(torch.equal(policy[name], best[name]) for name in policy)


@pytest.mark.parametrize("method", NEW)
def test_adapters_alone_are_trained_and_merged(method: str, inputs: FinetuneInputs) -> None:
    """Two q_proj factors of (2, 16) and (16, 2) are 64 trained parameters."""
    facts = train(method, inputs, lora=LoraParams(r=2, target_modules=("q_proj",)))
    assert facts["trained_parameters"] == 64
    before, after = load_file(inputs.reference / "model.safetensors"), load_file(inputs.folder / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(before[name], after[name])
    assert all(torch.equal(before[other], after[other]) for other in before if other != name)


@pytest.mark.parametrize("method", SECTIONS)
def test_refusals_come_before_any_work(method: str, inputs: FinetuneInputs) -> None:
    nowhere = dataclasses.replace(inputs, start=Path("no/such"), reference=Path("no/such"))
    with pytest.raises(ParamsError, match=f"finetune.{method}: TRL refuses these arguments: .*zigzag"):
        train(method, nowhere, optim="zigzag")
    with pytest.raises(ParamsError, match=f"finetune.{method}.metric_for_best_model is win_rate, which needs a judge"):
        train(method, dataclasses.replace(nowhere, judge=None))
    assert not inputs.work.exists()


@pytest.mark.parametrize("method", SECTIONS)
@pytest.mark.parametrize("lora", [None, LoraParams(r=2)])
def test_a_policy_that_left_the_reference_is_measured_against_the_reference(
    method: str,
    lora: LoraParams | None,
    inputs: FinetuneInputs,
    drifted: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At a learning rate of 1e-12 the policy stays where it starts, so against itself KL and margin would be 0."""
    arenas: list[Arena] = []
    consult = offline.consult_reference

    def spied(*args: Any) -> Any:
        logps, arena = consult(*args)
        arenas.append(arena)
        return logps, arena

    for module in ("sft", "dpo", "kto", "orpo"):
        monkeypatch.setattr(f"plumbline.tasks.training.finetuning.{module}.consult_reference", spied)
    given = dataclasses.replace(inputs, start=drifted, train=inputs.train[:8], validation=inputs.validation[:4])
    facts = train(method, given, learning_rate=1e-12, lora=lora, eval_steps=1)
    assert facts["start_weights"] != facts["reference_weights"]
    before, after = load_file(drifted / "model.safetensors"), load_file(inputs.folder / "model.safetensors")
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)
    first = facts["evaluations"][0]
    assert abs(first["kl_per_token"]) > 1e-3
    assert abs(first["margin"]) > 1e-3
    assert arenas[0].reference is not None, "an adapter that is off leaves the start, not π_ref"
    truth = load_file(inputs.reference / "model.safetensors")
    assert all(torch.equal(weights, truth[name]) for name, weights in arenas[0].reference.named_parameters())


def test_margins_of_a_drifted_start_are_those_counted_one_by_one(
    inputs: FinetuneInputs, drifted: Path, naive_logps: Callable[..., list[float]]
) -> None:
    """r = 0.1 * (log π_start - log π_ref) of chosen less that of rejected, over the validation pairs."""
    from plumbline.tasks.models.loading import load_tokenizer
    from plumbline.tasks.models.pairs import tokenise_pairs

    given = dataclasses.replace(inputs, start=drifted, train=inputs.train[:8], validation=inputs.validation[:4])
    facts = train("dpo", given, learning_rate=1e-12, eval_steps=1, beta=0.1)

    def reward(pair: TokenPair, ids: list[int]) -> float:
        start, tied = (sum(naive_logps(folder, pair.prompt_ids, ids)) for folder in (drifted, inputs.reference))
        return 0.1 * (start - tied)

    pairs = tokenise_pairs(given.validation, load_tokenizer(drifted), 64).tokens
    margins = [reward(pair, pair.chosen_ids) - reward(pair, pair.rejected_ids) for pair in pairs]
    assert facts["evaluations"][0]["margin"] == pytest.approx(sum(margins) / len(margins), abs=1e-5)
    right = sum((margin > 0) + 0.5 * (margin == 0) for margin in margins)
    assert facts["evaluations"][0]["preference_accuracy"] == right / len(margins)


@pytest.mark.parametrize("part", ["vocabulary", "chat template", "special tokens"])
def test_another_tokenizer_than_the_reference_has_is_refused(
    part: str, inputs: FinetuneInputs, drifted: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(drifted, other)
    if part == "vocabulary":
        text = (other / "tokenizer.json").read_text()
        (other / "tokenizer.json").write_text(text.replace('"bird"', '"fish"'))
    elif part == "chat template":
        (template,) = other.glob("*.jinja")
        template.write_text(template.read_text() + " ")
    else:
        config = json.loads((other / "tokenizer_config.json").read_text())
        (other / "tokenizer_config.json").write_text(json.dumps(config | {"pad_token": "<|unk|>"}))
    with pytest.raises(ModelError, match=f"found a difference in .*the {part}.*Start from a policy"):
        train("dpo", dataclasses.replace(inputs, start=other))


def test_one_folder_is_loaded_once(inputs: FinetuneInputs, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Path] = []
    load = run.load_policy

    def spied(folder: Path, **kwargs: Any) -> Any:
        loaded.append(folder)
        return load(folder, **kwargs)

    monkeypatch.setattr(run, "load_policy", spied)
    train("dpo", inputs)
    assert loaded == [inputs.reference]
