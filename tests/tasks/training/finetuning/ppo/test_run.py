from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from plumbline.data_contracts.artifact import sha256_file
from plumbline.data_contracts.errors import ModelError, ParamsError, RewardError, StageError
from plumbline.data_contracts.records import CuratedPair
from plumbline.tasks.models.chat import encode_prompts
from plumbline.tasks.models.judging import Completions, Scored
from plumbline.tasks.models.loading import load_policy, load_reward, load_tokenizer
from plumbline.tasks.params.finetuning import FinetuneParams
from plumbline.tasks.params.method_sections import EarlyStoppingParams, LoraParams
from plumbline.tasks.params.on_policy import HackingMonitorParams, KlParams
from plumbline.tasks.params.ppo import PpoParams
from plumbline.tasks.training.finetuning.methods import METHODS, FinetuneInputs
from plumbline.tasks.training.finetuning.ppo import run as ppo
from tests.support.training import FirstRun, Killed, killed_at, rows, same_bytes
from tests.support.world import in_world

pytestmark = pytest.mark.training

RECORDED = Path(__file__).parents[1] / "recorded" / "ppo.json"
STEPS = 12
Elsewhere = Callable[..., FinetuneInputs]
Whole = tuple[dict[str, Any], Path]


def seen_in(steps: list[int]) -> Callable[[int, int, str], None]:
    return lambda done, total, note: steps.append(done) if total == STEPS else None


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.fixture
def whole(ppo_inputs: FinetuneInputs, quick: PpoParams, first_run: FirstRun) -> Whole:
    """An uninterrupted run: facts and folder."""
    return first_run.of(ppo_inputs, lambda: ppo.run(ppo_inputs, quick))


def test_two_runs_are_bitwise_identical_and_inputs_are_untouched(
    ppo_inputs: FinetuneInputs, ppo_elsewhere: Elsewhere, whole: Whole, quick: PpoParams
) -> None:
    facts, folder = whole
    folders = [ppo_inputs.reference, ppo_inputs.reward_model]
    before = {path: sha256_file(path) for each in folders if each for path in each.iterdir()}
    again = ppo_elsewhere("again")
    torch.manual_seed(99)  # whatever ran before in the process must not matter
    assert ppo.run(again, quick) == facts
    assert same_bytes(folder, again.folder)
    assert {path: sha256_file(path) for path in before} == before
    other_seed = ppo_elsewhere("seed", seed=8)
    ppo.run(other_seed, quick)
    assert not same_bytes(folder, other_seed.folder)


def test_facts_and_curve_tell_what_happened(whole: Whole) -> None:
    """Six updates of 8 episodes in 2 steps each; the policy is pushed from `no` to `yes`."""
    facts, folder = whole
    assert json.loads(json.dumps(facts)) == facts
    assert facts["steps"] == {"planned": STEPS, "run": STEPS}
    assert facts["episodes"] == 48
    assert [each["step"] for each in facts["evaluations"]] == [4, 8, 12]
    best = max(facts["evaluations"], key=lambda each: each["win_rate"])
    assert {name: facts["best"][name] for name in ("step", "value", "kl_per_token")} == {
        "step": best["step"],
        "value": best["win_rate"],
        "kl_per_token": best["kl_per_token"],
    }
    assert facts["stopped"] == "all steps done"
    assert "/" not in json.dumps({name: facts[name] for name in facts if name != "settings"}).replace("reward/", "")
    curve = rows(folder)
    assert [row["step"] for row in curve] == [2, 4, 6, 8, 10, 12]
    assert [row["episodes"] for row in curve] == [8, 16, 24, 32, 40, 48]
    shown = [
        "policy_loss",
        "value_loss",
        "reward",
        "reward/yes",
        "reward/yes/normalised",
        "reward/constant",
        "score",
        "kl_per_token",
        "beta",
        "approx_kl",
        "clip_fraction",
        "ratio_variance",
        "entropy",
        "explained_variance",
        "eos_rate",
        "empty_rate",
        "response_tokens",
        "learning_rate",
        "critic_learning_rate",
        "grad_norm",
        "critic_grad_norm",
        "loss",
    ]
    assert [name for name in shown if name not in curve[0]] == []
    assert curve[0]["kl_per_token"] == pytest.approx(0, abs=1e-5), "at the start the policy is π_ref"
    assert curve[-1]["kl_per_token"] > 1e-3
    assert curve[-1]["reward"] > curve[0]["reward"]
    assert facts["schedule"][0]["beta"] == 0.04
    assert facts["implied_beta"] != 0.04, "the controller moved it"


@pytest.mark.parametrize("step", [3, 7, 9])
def test_a_killed_run_resumes_to_the_same_bytes(
    ppo_elsewhere: Elsewhere, whole: Whole, quick: PpoParams, step: int
) -> None:
    """Checkpoints lie at steps 4 and 8: a kill at 3 starts anew, at 7 in the middle of an update, at 9 behind one."""
    facts, folder = whole
    killed = ppo_elsewhere("killed", progress=killed_at(step, STEPS))
    with pytest.raises(Killed):
        ppo.run(killed, quick)
    seen: list[int] = []
    second = dataclasses.replace(ppo_elsewhere("second", progress=seen_in(seen)), work=killed.work)
    assert ppo.run(second, quick) == facts
    assert same_bytes(folder, second.folder)
    assert seen == list(range(step // 4 * 4 + 1, STEPS + 1))


def test_a_damaged_critic_or_state_gives_way_to_the_checkpoint_before(
    ppo_elsewhere: Elsewhere, whole: Whole, quick: PpoParams, caplog: pytest.LogCaptureFixture
) -> None:
    facts, folder = whole
    killed = ppo_elsewhere("killed", progress=killed_at(9, STEPS))
    with pytest.raises(Killed):
        ppo.run(killed, quick)
    (damaged,) = killed.work.glob("run-*/checkpoint-8/critic/model.safetensors")
    os.truncate(damaged, damaged.stat().st_size // 2)
    seen: list[int] = []
    second = dataclasses.replace(ppo_elsewhere("second", progress=seen_in(seen)), work=killed.work)
    with caplog.at_level(logging.WARNING):
        assert ppo.run(second, quick) == facts
    assert same_bytes(folder, second.folder)
    assert "checkpoint-8 cannot be resumed" in caplog.text
    assert seen[0] == 5


def test_checkpoints_under_another_reward_are_not_resumed(
    ppo_elsewhere: Elsewhere, quick: PpoParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = ppo_elsewhere("killed", progress=killed_at(7, STEPS))
    with pytest.raises(Killed):
        ppo.run(killed, quick)
    seen: list[int] = []
    second = dataclasses.replace(ppo_elsewhere("second", progress=seen_in(seen)), work=killed.work)
    monkeypatch.setattr(type(second.reward), "digest", "another")
    ppo.run(second, quick)
    assert seen[0] == 1


def test_a_finished_run_that_was_not_written_is_not_trained_again(
    ppo_inputs: FinetuneInputs, ppo_elsewhere: Elsewhere, quick: PpoParams
) -> None:
    """The checkpoints lie where they were written: the best one is named by its path."""
    facts = ppo.run(ppo_inputs, quick)
    seen: list[int] = []
    second = dataclasses.replace(ppo_elsewhere("second", progress=seen_in(seen)), work=ppo_inputs.work)
    assert ppo.run(second, quick) == facts
    assert same_bytes(ppo_inputs.folder, second.folder)
    assert seen == []


def test_best_checkpoint_is_by_the_held_out_judge_and_within_kl(
    ppo_inputs: FinetuneInputs, ppo_elsewhere: Elsewhere, quick: PpoParams
) -> None:
    """A scripted judge: π_ref scores 0; the policy wins at step 4 only, while the training reward rises to the end."""
    verdicts = iter([0.0, 1.0, -1.0, -1.0])
    facts = ppo.run(
        dataclasses.replace(ppo_inputs, judge=lambda prompts, responses: [next(verdicts)] * len(prompts)), quick
    )
    assert {name: facts["best"][name] for name in ("step", "metric", "value", "within_kl")} == {
        "step": 4,
        "metric": "win_rate",
        "value": 1.0,
        "within_kl": True,
    }
    (kept,) = ppo_inputs.work.glob("run-*/checkpoint-4")
    best = weights(ppo_inputs.folder)
    assert all(torch.equal(tensor, best[name]) for name, tensor in weights(kept).items())
    (last,) = ppo_inputs.work.glob("run-*/checkpoint-12")
    assert any(not torch.equal(tensor, best[name]) for name, tensor in weights(last).items())


def test_a_policy_near_the_reference_is_better_than_any_far_from_it(ppo_elsewhere: Elsewhere, quick: PpoParams) -> None:
    """The limit lies at the KL of the evaluation that is nearest; a limit that none meets keeps the best of all."""
    evaluations = ppo.run(ppo_elsewhere("any"), quick)["evaluations"]
    nearest = min(evaluations, key=lambda row: row["kl_per_token"])
    limit = nearest["kl_per_token"] + 1e-9
    bound = ppo.run(ppo_elsewhere("near"), quick.model_copy(update={"best_within_kl": limit}))["best"]
    assert (bound["step"], bound["value"], bound["within_kl"]) == (nearest["step"], nearest["win_rate"], True)
    best = max(evaluations, key=lambda row: row["win_rate"])
    far = ppo.run(ppo_elsewhere("far"), quick.model_copy(update={"best_within_kl": 1e-9}))["best"]
    assert (far["step"], far["value"], far["within_kl"]) == (best["step"], best["win_rate"], False)


def test_early_stopping_and_a_kill_right_behind_it(
    ppo_inputs: FinetuneInputs, ppo_elsewhere: Elsewhere, quick: PpoParams
) -> None:
    """At a rate of 1e-12 nothing improves after the first evaluation: patience 1 ends at step 8."""
    params = quick.model_copy(update={"learning_rate": 1e-12, "early_stopping": EarlyStoppingParams(patience=1)})
    facts = ppo.run(ppo_inputs, params)
    assert facts["stopped"] == "early stopping at step 8: no gain in win_rate over 1 evaluations"
    assert facts["episodes"] == 32
    seen: list[int] = []
    second = dataclasses.replace(ppo_elsewhere("second", progress=seen_in(seen)), work=ppo_inputs.work)
    assert ppo.run(second, params) == facts
    assert same_bytes(ppo_inputs.folder, second.folder)
    assert seen == []


def test_a_monitor_that_stops_ends_the_run_once(
    ppo_inputs: FinetuneInputs, ppo_elsewhere: Elsewhere, quick: PpoParams
) -> None:
    """Lengths drift by more than 0.1 % as soon as three updates are there to compare with, in update 4."""
    params = quick.model_copy(update={"monitors": HackingMonitorParams(on_finding="stop", length_factor=1.001)})
    facts = ppo.run(ppo_inputs, params)
    assert facts["stopped"].startswith("length at update 4: Responses went from")
    assert facts["steps"]["run"] == 8
    assert facts["findings"][0]["kind"] == "length"
    seen: list[int] = []
    second = dataclasses.replace(ppo_elsewhere("second", progress=seen_in(seen)), work=ppo_inputs.work)
    assert ppo.run(second, params) == facts
    assert same_bytes(ppo_inputs.folder, second.folder)
    assert seen == []


def test_lora_trains_adapters_only_and_resumes(
    ppo_inputs: FinetuneInputs, ppo_elsewhere: Elsewhere, quick: PpoParams
) -> None:
    """Merged weight = π_ref's + (alpha / r) B A; q_proj factors of (2, 16) and (16, 2) are 64 parameters."""
    params = quick.model_copy(
        update={"lora": LoraParams(r=2, lora_alpha=6.0, target_modules=("q_proj",)), "learning_rate": 0.05}
    )
    facts = ppo.run(ppo_inputs, params)
    assert facts["trained_parameters"] == 64
    adapter = load_file(ppo_inputs.folder / "adapter" / "adapter_model.safetensors")
    (down,) = (tensor for name, tensor in adapter.items() if "lora_A" in name)
    (up,) = (tensor for name, tensor in adapter.items() if "lora_B" in name)
    before, after = weights(ppo_inputs.reference), weights(ppo_inputs.folder)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert float((up @ down).abs().max()) > 1e-3
    assert torch.allclose(after[name], before[name] + 3.0 * up @ down, atol=1e-6)
    assert all(torch.equal(after[other], before[other]) for other in before if other != name)
    curve = rows(ppo_inputs.folder)
    assert curve[0]["kl_per_token"] == pytest.approx(0, abs=1e-5), "the reference is the policy, adapter off"
    assert curve[-1]["kl_per_token"] != pytest.approx(0, abs=1e-4)
    killed = ppo_elsewhere("killed", progress=killed_at(7, STEPS))
    with pytest.raises(Killed):
        ppo.run(killed, params)
    second = dataclasses.replace(ppo_elsewhere("second"), work=killed.work)
    assert ppo.run(second, params) == facts
    assert same_bytes(ppo_inputs.folder, second.folder)


def test_a_later_stage_is_tied_to_the_reference_not_to_its_start(
    ppo_inputs: FinetuneInputs, ppo_elsewhere: Elsewhere, quick: PpoParams, whole: Whole
) -> None:
    """Started from a trained policy, the first rollout already has a KL from π_ref; with adapters it does as well."""
    stacked = ppo_elsewhere("stacked", start=ppo_inputs.folder)
    facts = ppo.run(stacked, quick)
    assert facts["start_weights"] != facts["reference_weights"]
    assert facts["schedule"][0]["kl_per_token"] > 1e-3
    adapted = ppo_elsewhere("adapted", start=ppo_inputs.folder)
    assert ppo.run(adapted, quick.model_copy(update={"lora": LoraParams(r=2)}))["schedule"][0][
        "kl_per_token"
    ] == pytest.approx(facts["schedule"][0]["kl_per_token"], abs=1e-6)


def test_trajectory_is_the_recorded_one(whole: Whole) -> None:
    """Guards refactors. After a deliberate change, or for other versions: PLUMBLINE_RECORD=1 pytest THIS_FILE.

    Processors sum in orders of their own: what one recorded, another gives within float32's rounding.
    """
    facts, folder = whole
    names = ("step", "loss", "policy_loss", "value_loss", "reward", "kl_per_token", "beta", "grad_norm", "entropy")
    trajectory = [{name: row[name] for name in names} for row in rows(folder)]
    if os.environ.get("PLUMBLINE_RECORD"):
        RECORDED.write_text(json.dumps({"versions": facts["libraries"], "rows": trajectory}, indent=1) + "\n")
    recorded = json.loads(RECORDED.read_text())
    if recorded["versions"] != facts["libraries"]:
        pytest.skip(f"recorded for {recorded['versions']}, this is {facts['libraries']}")
    assert len(trajectory) == len(recorded["rows"])
    for row, expected in zip(trajectory, recorded["rows"], strict=True):
        assert row == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_long_prompts_are_set_aside_and_counted(
    ppo_inputs: FinetuneInputs, few_pairs: list[CuratedPair], quick: PpoParams
) -> None:
    """Of a context of 64, 8 are for the answer: a prompt of 53 words (with roles and end 56 tokens) fits, 54 not."""
    edge, long = (
        pair.model_copy(update={"prompt": (pair.prompt[0].model_copy(update={"content": "cat " * words}),)})
        for pair, words in zip(few_pairs, (53, 54), strict=False)
    )
    facts = ppo.run(dataclasses.replace(ppo_inputs, train=[*few_pairs[2:], edge, long]), quick)
    assert facts["too_long"] == {"train": 1}
    assert facts["prompts"]["train"] == 4
    with pytest.raises(StageError, match="found none among 1"):
        ppo.run(dataclasses.replace(ppo_inputs, train=[long]), quick)
    with pytest.raises(StageError, match="found none"):
        ppo.run(dataclasses.replace(ppo_inputs, train=[]), quick)


def test_refusals_come_before_any_work(ppo_inputs: FinetuneInputs, quick: PpoParams) -> None:
    nowhere = dataclasses.replace(ppo_inputs, start=Path("no/such/folder"), reference=Path("no/such/folder"))
    with pytest.raises(ParamsError, match="zigzag"):
        ppo.run(nowhere, quick.model_copy(update={"optim": "zigzag"}))
    with pytest.raises(ParamsError, match="needs a reward"):
        ppo.run(dataclasses.replace(nowhere, reward=None), quick)
    with pytest.raises(ParamsError, match="held-out judge"):
        ppo.run(dataclasses.replace(nowhere, judge=None), quick)
    with pytest.raises(ParamsError, match="critic_init: reference"):
        ppo.run(dataclasses.replace(nowhere, reward_model=None), quick)
    with pytest.raises(ParamsError, match="vLLM"):
        METHODS["ppo"].check(in_world(FinetuneParams, ppo=in_world(PpoParams, use_vllm=True)))
    assert not ppo_inputs.work.exists()


def test_a_reward_model_with_another_tokenizer_is_refused(
    ppo_inputs: FinetuneInputs, reward_model: Path, tmp_path: Path, quick: PpoParams
) -> None:
    tokenizer = load_tokenizer(reward_model)
    load_reward(reward_model).save_pretrained(tmp_path / "template")
    tokenizer.chat_template = str(tokenizer.chat_template).replace("'<|' +", "'<|end|><|' +")
    tokenizer.save_pretrained(tmp_path / "template")
    with pytest.raises(ModelError, match="chat template of template is not the policy's"):
        ppo.run(dataclasses.replace(ppo_inputs, reward_model=tmp_path / "template"), quick)
    load_reward(reward_model).save_pretrained(tmp_path / "words")
    tokenizer.add_tokens(["purple"])
    tokenizer.save_pretrained(tmp_path / "words")
    with pytest.raises(ModelError, match=r"19 in its own, 1 of them different \(e.g. \['purple'\]\)"):
        ppo.run(dataclasses.replace(ppo_inputs, reward_model=tmp_path / "words"), quick)
    facts = ppo.run(
        dataclasses.replace(ppo_inputs, reward_model=None), quick.model_copy(update={"critic_init": "reference"})
    )
    assert facts["critic_weights"] == facts["reference_weights"]


def test_bad_rewards_and_runaways_have_names(ppo_elsewhere: Elsewhere, quick: PpoParams) -> None:
    def failing(answers: Completions) -> Scored:
        raise RewardError("the term `x` gave NaN")

    broken = ppo_elsewhere("broken")
    assert broken.reward is not None
    broken.reward.score = failing  # type: ignore[method-assign]
    with pytest.raises(RewardError, match="term `x`"):
        ppo.run(broken, quick)
    not_finite = ppo_elsewhere("not_finite")
    assert not_finite.reward is not None
    not_finite.reward.score = lambda answers: Scored(np.full(len(answers.texts), np.nan), {}, {})  # type: ignore[method-assign]
    with pytest.raises(RewardError, match="finite score"):
        ppo.run(not_finite, quick)
    with pytest.raises(StageError, match="runs away from π_ref"):
        ppo.run(
            ppo_elsewhere("runaway"),
            quick.model_copy(update={"learning_rate": 0.05, "beta": 0.0, "kl": KlParams(mode="fixed", stop_at=0.01)}),
        )


def test_a_policy_that_says_nothing_is_an_error(ppo_inputs: FinetuneInputs, tmp_path: Path, quick: PpoParams) -> None:
    """An output head of its own whose row for the end token is far along the prompts' mean hidden state."""
    policy, tokenizer = load_policy(ppo_inputs.reference), load_tokenizer(ppo_inputs.reference)
    policy.config.tie_word_embeddings = False
    policy.lm_head.weight = torch.nn.Parameter(torch.zeros_like(policy.lm_head.weight))
    heads = encode_prompts(tokenizer, [pair.prompt for pair in ppo_inputs.train])
    with torch.no_grad():
        last = [policy.model(torch.tensor([head])).last_hidden_state[0, -1] for head in heads]
        policy.lm_head.weight[1] = 1000 * torch.stack(last).mean(0)
    policy.save_pretrained(tmp_path / "mute")
    tokenizer.save_pretrained(tmp_path / "mute")
    mute = dataclasses.replace(ppo_inputs, start=tmp_path / "mute", reference=tmp_path / "mute")
    with pytest.raises(StageError, match="every one of update 0 empty"):
        ppo.run(mute, quick)


def test_nothing_is_printed(ppo_inputs: FinetuneInputs, quick: PpoParams, capfd: pytest.CaptureFixture[str]) -> None:
    ppo.run(ppo_inputs, quick)
    assert capfd.readouterr().out == ""
