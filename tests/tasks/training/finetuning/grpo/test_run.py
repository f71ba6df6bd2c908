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
from plumbline.data_contracts.errors import JudgeError, ParamsError, StageError
from plumbline.tasks.models.judging import Completions
from plumbline.tasks.models.logps import token_logps
from plumbline.tasks.params.grpo import GrpoParams
from plumbline.tasks.params.method_sections import EarlyStoppingParams, LoraParams
from plumbline.tasks.params.on_policy import HackingMonitorParams, KlParams
from plumbline.tasks.training.finetuning.grpo import run as grpo
from plumbline.tasks.training.finetuning.methods import FinetuneInputs
from tests.support.training import FirstRun, Killed, killed_at, rows, same_bytes

pytestmark = pytest.mark.training

RECORDED = Path(__file__).parents[1] / "recorded" / "grpo.json"
STEPS = 12


def recorder(seen: list[int]) -> Callable[[int, int, str], None]:
    return lambda done, total, note: seen.append(done) if total == STEPS else None


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.fixture
def whole(judged: FinetuneInputs, quick: GrpoParams, first_run: FirstRun) -> tuple[dict[str, Any], Path]:
    """An uninterrupted run: facts and folder."""
    return first_run.of(judged, lambda: grpo.run(judged, quick))


@pytest.fixture
def again(judged: FinetuneInputs, elsewhere: Callable[..., FinetuneInputs]) -> Callable[..., FinetuneInputs]:
    """`elsewhere` with the judge."""

    def make(name: str, **changes: Any) -> FinetuneInputs:
        given = {name: getattr(judged, name) for name in ("train", "ranker", "gains", "judge_digest")}
        return elsewhere(name, **(given | changes))

    return make


def test_two_runs_are_bitwise_identical_and_pi_ref_is_untouched(
    judged: FinetuneInputs, quick: GrpoParams, again: Callable[..., FinetuneInputs], whole: tuple[dict[str, Any], Path]
) -> None:
    before = {path.name: sha256_file(path) for path in judged.reference.iterdir()}
    facts, folder = whole
    second = again("again")
    torch.manual_seed(99)  # whatever ran before in the process must not matter
    assert grpo.run(second, quick) == facts
    assert same_bytes(folder, second.folder)
    assert {path.name: sha256_file(path) for path in judged.reference.iterdir()} == before


def test_the_policy_learns_what_the_judge_likes_and_facts_tell_it(whole: tuple[dict[str, Any], Path]) -> None:
    facts, folder = whole
    assert json.loads(json.dumps(facts)) == facts
    assert facts["steps"] == {"planned": STEPS, "run": STEPS}
    assert facts["prompts"] == {"train": 48}
    assert facts["too_long"] == {"train": 0}
    assert facts["implied_beta"] is None
    assert facts["judge"] == {"name": "counting", "digest": "counting-1", "noise": 0.0, "gains": "rank-gains"}
    assert facts["totals"]["groups"] == STEPS * 4
    assert facts["totals"]["completions"] == STEPS * 16
    assert [each["step"] for each in facts["evaluations"]] == [4, 8, 12]
    assert facts["evaluations"][-1]["win_rate"] > 0.8
    best = max(facts["evaluations"], key=lambda each: each["win_rate"])
    assert facts["best"]["step"] == best["step"]
    assert facts["best"]["value"] == best["win_rate"]
    curve = rows(folder)
    assert [row["step"] for row in curve] == [2, 4, 6, 8, 10, 12]
    for name in (
        "kl_per_token",
        "beta",
        "entropy",
        "gain_spread",
        "zero_variance_share",
        "finished",
        "unjudged",
        "loss",
    ):
        assert all(np.isfinite(row[name]) for row in curve), name
    assert curve[-1]["kl_per_token"] > curve[0]["kl_per_token"]
    assert not any("seconds" in name or "time" in name or "requests" in name for row in curve for name in row)


@pytest.mark.parametrize(("step", "resumes_after"), [(3, 0), (5, 4), (8, 4), (11, 8)])
def test_a_killed_run_resumes_to_the_same_bytes(
    quick: GrpoParams,
    again: Callable[..., FinetuneInputs],
    whole: tuple[dict[str, Any], Path],
    step: int,
    resumes_after: int,
) -> None:
    """The progress of step 8 comes before its checkpoint. Twelve rollouts of 4 prompts pass 48 pairs once."""
    facts, folder = whole
    killed = again("killed", progress=killed_at(step, STEPS))
    with pytest.raises(Killed):
        grpo.run(killed, quick)
    seen: list[int] = []
    second = dataclasses.replace(again("second", progress=recorder(seen)), work=killed.work)
    assert grpo.run(second, quick) == facts
    assert same_bytes(folder, second.folder)
    assert seen == list(range(resumes_after + 1, STEPS + 1))


def test_everything_that_has_a_state_resumes(
    quick: GrpoParams, again: Callable[..., FinetuneInputs], length_reward: Any
) -> None:
    """Several steps and passes a rollout, a second pass over the prompts, temperatures, a reward with a memory, β under
    control, early stopping and replaced groups: killed in the second epoch, the run ends in the same bytes."""
    params = quick.model_copy(
        update={
            "per_device_train_batch_size": 8,
            "steps_per_generation": 2,
            "num_iterations": 2,
            "reward_weight": 0.1,
            "resample_zero_variance": 1,
            "entropy_coef": 0.01,
            "num_train_epochs": 1.5,
            "kl": KlParams(target=0.05, horizon=16, stop_at=None),
            "early_stopping": EarlyStoppingParams(patience=3),
        }
    )
    prompts = [*again("prompts").train[:8]]

    def make(name: str, **changes: Any) -> FinetuneInputs:
        reward = dataclasses.replace(length_reward)
        return again(name, train=prompts, reward=reward, temperatures=(0.7, 1.0, 1.3), **changes)

    one = make("one")
    facts = grpo.run(one, params)
    assert facts["steps"]["run"] == STEPS
    assert len({row["beta"] for row in rows(one.folder) if "beta" in row}) > 1
    killed = make("killed", progress=killed_at(10, STEPS))
    with pytest.raises(Killed):
        grpo.run(killed, params)
    two = dataclasses.replace(make("two"), work=killed.work)
    assert grpo.run(two, params) == facts
    assert same_bytes(one.folder, two.folder)
    assert one.reward.state() == two.reward.state()


def test_checkpoints_are_sealed_and_a_damaged_one_gives_way(
    quick: GrpoParams, again: Callable[..., FinetuneInputs], whole: tuple[dict[str, Any], Path], caplog: Any
) -> None:
    facts, folder = whole
    killed = again("killed", progress=killed_at(11, STEPS))
    with pytest.raises(Killed):
        grpo.run(killed, quick)
    (damaged,) = killed.work.glob("run-*/checkpoint-8/grpo.json")
    os.truncate(damaged, 5)
    seen: list[int] = []
    second = dataclasses.replace(again("second", progress=recorder(seen)), work=killed.work)
    with caplog.at_level(logging.WARNING):
        assert grpo.run(second, quick) == facts
    assert "checkpoint-8 cannot be resumed" in caplog.text
    assert seen[0] == 5
    assert same_bytes(folder, second.folder)


@pytest.mark.parametrize("change", ["judge", "gains", "params"])
def test_checkpoints_under_another_judge_are_not_resumed(
    quick: GrpoParams, again: Callable[..., FinetuneInputs], judge: Any, change: str
) -> None:
    killed = again("killed", progress=killed_at(7, STEPS))
    with pytest.raises(Killed):
        grpo.run(killed, quick)
    seen: list[int] = []
    second = dataclasses.replace(again("second", progress=recorder(seen)), work=killed.work)
    if change == "judge":
        second = dataclasses.replace(second, ranker=dataclasses.replace(judge, digest="counting-2"))
    elif change == "gains":
        second = dataclasses.replace(second, gains=dataclasses.replace(second.gains, digest="other"))
    else:
        quick = quick.model_copy(update={"epsilon": 0.1})
    grpo.run(second, quick)
    assert seen[0] == 1


def test_the_kl_that_is_reported_is_that_of_a_naive_sum(
    judged: FinetuneInputs,
    quick: GrpoParams,
    drifted: Path,
    judge: Any,
    monkeypatch: pytest.MonkeyPatch,
    naive_logps: Callable[..., list[float]],
) -> None:
    """The first rollout of a policy that is not π_ref: log π - log π_ref of each sampled token, one at a time, summed
    and divided by the number of tokens; its standard error by resampling completions."""
    sampled: list[Any] = []
    original = grpo.JudgedTrainer._generate_and_score_completions
    measured: list[tuple[float, float]] = []
    kl_of = grpo.JudgedTrainer._kl_per_token

    def spy(self: Any, inputs: Any) -> Any:
        output = original(self, inputs)
        sampled.append(output)
        return output

    monkeypatch.setattr(grpo.JudgedTrainer, "_generate_and_score_completions", spy)
    monkeypatch.setattr(
        grpo.JudgedTrainer, "_kl_per_token", lambda self, out: measured.append(kl_of(self, out)) or measured[-1]
    )
    params = quick.model_copy(update={"num_train_epochs": 0.08, "kl": KlParams(mode="fixed", stop_at=None)})
    grpo.run(dataclasses.replace(judged, start=drifted), params)
    output = sampled[0]
    ratios = []
    for row in range(len(output["completion_ids"])):
        head = output["prompt_ids"][row][output["prompt_mask"][row].bool()].tolist()
        tail = output["completion_ids"][row][output["completion_mask"][row].bool()].tolist()
        policy, reference = naive_logps(drifted, head, tail), naive_logps(judged.reference, head, tail)
        ratios.append([one - other for one, other in zip(policy, reference, strict=True)])
    kl, error = measured[0]
    assert kl == pytest.approx(sum(map(sum, ratios)) / sum(map(len, ratios)), abs=1e-4)
    draw = np.random.default_rng(0)
    resampled = []
    for _ in range(2000):
        chosen = [ratios[row] for row in draw.integers(len(ratios), size=len(ratios))]
        resampled.append(sum(map(sum, chosen)) / sum(map(len, chosen)))
    assert error == pytest.approx(np.std(resampled), rel=0.2)


def test_log_probabilities_of_sampling_and_training_agree_at_every_temperature(
    judged: FinetuneInputs, quick: GrpoParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRL's own forward of the sampled tokens gives what the sampler drew them with, whatever the temperature; at
    lr ~ 0 the policy stays π_ref, so the reference at the same temperature does too."""
    temperatures: list[float] = []
    original = grpo.JudgedTrainer._generate_and_score_completions

    def check(self: Any, inputs: Any) -> Any:
        output = original(self, inputs)
        temperatures.append(self.temperature)
        inside = output["completion_mask"].bool()
        for other in ("old_per_token_logps", "ref_per_token_logps"):
            assert torch.allclose(output["sampling_per_token_logps"][inside], output[other][inside], atol=1e-4)
        return output

    monkeypatch.setattr(grpo.JudgedTrainer, "_generate_and_score_completions", check)
    params = quick.model_copy(
        update={"learning_rate": 1e-9, "steps_per_generation": 2, "per_device_train_batch_size": 8, "lora": None}
    )
    grpo.run(dataclasses.replace(judged, temperatures=(0.5, 1.0, 1.5)), params)
    assert set(temperatures) == {0.5, 1.0, 1.5}
    temperatures.clear()
    lora = params.model_copy(update={"lora": LoraParams(r=4), "learning_rate": 1e-9})
    (judged.folder.parent / "lora").mkdir()
    grpo.run(
        dataclasses.replace(judged, temperatures=(0.5, 1.5), folder=judged.folder.parent / "lora"),
        lora,
    )
    assert set(temperatures) == {0.5, 1.5}


def test_lora_trains_adapters_and_the_reference_is_the_policy_without_them(
    judged: FinetuneInputs, quick: GrpoParams, again: Callable[..., FinetuneInputs]
) -> None:
    params = quick.model_copy(update={"lora": LoraParams(r=4), "learning_rate": 5e-2})
    facts = grpo.run(judged, params)
    assert (judged.folder / "adapter" / "adapter_model.safetensors").is_file()
    assert facts["trained_parameters"] < 10_000
    assert rows(judged.folder)[-1]["kl_per_token"] > 0.01
    before, after = weights(judged.reference), weights(judged.folder)
    assert torch.equal(before["model.embed_tokens.weight"], after["model.embed_tokens.weight"])
    assert not torch.equal(
        before["model.layers.0.self_attn.q_proj.weight"], after["model.layers.0.self_attn.q_proj.weight"]
    )
    killed = again("killed", progress=killed_at(7, STEPS))
    with pytest.raises(Killed):
        grpo.run(killed, params)
    second = dataclasses.replace(again("second"), work=killed.work)
    assert grpo.run(second, params) == facts
    assert same_bytes(judged.folder, second.folder)


def test_groups_without_a_judgement_are_counted_and_move_nothing(
    judged: FinetuneInputs, quick: GrpoParams, judge: Any, caplog: Any
) -> None:
    """With no answer at all, advantages and (at lr of a first step, policy = π_ref) the gradient of the KL are 0."""
    mute = dataclasses.replace(judge, silent=lambda prompt: True)
    with caplog.at_level(logging.WARNING):
        facts = grpo.run(dataclasses.replace(judged, ranker=mute), quick.model_copy(update={"entropy_coef": 0.0}))
    assert facts["totals"]["unjudged"] == facts["totals"]["groups"] == facts["totals"]["judge/unusable"] == STEPS * 4
    assert "gave no usable answer on any group" in caplog.text
    for row in rows(judged.folder):
        assert row["kl_per_token"] == pytest.approx(0.0, abs=1e-5)
        assert row["zero_variance"] == 0, "no judgement is not a tie"


def test_a_silent_judge_on_some_prompts_leaves_the_others(
    judged: FinetuneInputs, quick: GrpoParams, judge: Any
) -> None:
    partly = dataclasses.replace(judge, silent=lambda prompt: "cat" in prompt[-1].content)
    facts = grpo.run(dataclasses.replace(judged, ranker=partly), quick)
    assert 0 < facts["totals"]["unjudged"] < facts["totals"]["groups"]
    assert facts["evaluations"][-1]["win_rate"] > 0.5


def test_groups_without_spread_are_counted_and_replaced_by_other_prompts(
    judged: FinetuneInputs, quick: GrpoParams, judge: Any
) -> None:
    """A judge for whom all candidates of prompts with `cat` are alike: without replacement those groups teach nothing,
    with it other prompts take their places as often as params say."""

    class Indifferent(type(judge)):  # type: ignore[misc]
        def judge(self, prompts: Any, groups: Any) -> Any:
            if len(groups[0]) == 2:  # an evaluation, against π_ref
                return super().judge(prompts, groups)
            alike = [
                ["yes"] * len(group) if "cat" in prompt[-1].content else list(group)
                for prompt, group in zip(prompts, groups, strict=True)
            ]
            verdicts = super().judge(prompts, alike)
            calls.append([p[-1].content for p in prompts])
            return verdicts

    calls: list[list[str]] = []
    one = grpo.run(dataclasses.replace(judged, ranker=Indifferent(digest="indifferent")), quick)
    assert one["totals"]["zero_variance"] > 0
    assert "resampled" not in one["totals"]
    assert len(calls) == STEPS
    calls.clear()
    (judged.folder.parent / "more").mkdir()
    more = dataclasses.replace(judged, ranker=Indifferent(digest="indifferent"), folder=judged.folder.parent / "more")
    two = grpo.run(more, quick.model_copy(update={"resample_zero_variance": 3}))
    assert two["totals"]["resampled"] >= two["totals"]["zero_variance"] > 0
    assert len(calls) > STEPS
    known = {pair.prompt[-1].content for pair in judged.train}
    assert all(prompt in known for call in calls for prompt in call)

    def left(folder: Path) -> float:
        return sum(row["zero_variance_share"] for row in rows(folder))

    assert left(more.folder) < 0.5 * left(judged.folder)


def test_figures_are_of_the_groups_that_are_learned_from(
    judged: FinetuneInputs, quick: GrpoParams, length_reward: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A judge and a reward for whom all answers are alike on prompts with `cat`, whose groups are then replaced in
    part: figures of the reward are means over the completions that TRL is given; sampled are more than are seen."""

    class Indifferent(type(judged.ranker)):  # type: ignore[misc]
        def judge(self, prompts: Any, groups: Any) -> Any:
            alike = [
                ["yes"] * len(group) if "cat" in prompt[-1].content else list(group)
                for prompt, group in zip(prompts, groups, strict=True)
            ]
            return super().judge(prompts, alike)

    class Also(type(length_reward)):  # type: ignore[misc]
        def score(self, answers: Completions) -> Any:
            scored = super().score(answers)
            alike = np.array(["cat" in prompt[-1].content for prompt in answers.prompts])
            raw = np.where(alike, -100.0, scored.terms["length"].raw)
            term = dataclasses.replace(scored.terms["length"], raw=raw)
            return dataclasses.replace(scored, total=raw, terms={"length": term})

    seen: list[tuple[dict[str, float], dict[str, Any], int]] = []
    original = grpo.JudgedRollouts.__call__

    def spy(self: Any, prompts: Any, trainer: Any) -> Any:
        rows = original(self, prompts, trainer)
        texts = [self.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in rows["completion_ids"]]
        asked = [self.tokenizer.decode(ids) for ids in rows["prompt_ids"]]
        raw = [-100.0 if "cat" in head else -float(len(text.split())) for head, text in zip(asked, texts, strict=True)]
        seen.append((dict(self.figures), rows, raw))
        return rows

    monkeypatch.setattr(grpo.JudgedRollouts, "__call__", spy)
    ranker, reward = Indifferent(digest="indifferent"), Also(digest="alike")
    params = quick.model_copy(update={"reward_weight": 0.1, "resample_zero_variance": 2, "num_train_epochs": 0.5})
    facts = grpo.run(dataclasses.replace(judged, ranker=ranker, reward=reward), params)
    assert facts["totals"]["resampled"] > 0
    for figures, _, raw in seen:
        assert figures["reward"] == pytest.approx(np.mean(raw))
        assert figures["reward/length"] == pytest.approx(np.mean(raw))
    trained = sum(len(ids) for _, rows, _ in seen for name in ("prompt_ids", "completion_ids") for ids in rows[name])
    learned_from = sum(len(ids) for _, rows, _ in seen for ids in rows["completion_ids"])
    assert facts["tokens"]["seen"] == trained
    assert facts["tokens"]["generated"] > learned_from


def test_tokens_count_every_pass(judged: FinetuneInputs, quick: GrpoParams) -> None:
    """With two passes a rollout each sampled token is seen twice, its prompt with it."""
    update = {
        "num_iterations": 2,
        "num_train_epochs": 0.25,
        "learning_rate": 1e-9,
        "kl": KlParams(mode="fixed", stop_at=None),
    }
    facts = grpo.run(judged, quick.model_copy(update=update))
    prompts = {tuple(turn.content for turn in pair.prompt): pair for pair in judged.train}
    assert len(prompts) == 48
    generated = facts["tokens"]["generated"]
    assert facts["tokens"]["seen"] > 2 * generated
    assert facts["tokens"]["seen"] % 2 == 0
    assert generated >= facts["totals"]["completions"]


def test_a_judge_that_is_hacked_is_found_by_the_held_out_one(
    judged: FinetuneInputs, quick: GrpoParams, again: Callable[..., FinetuneInputs]
) -> None:
    """The training judge likes `yes`, the held-out one hates it: the policy learns `yes`, wins more and more before the
    one and less and less before the other. Gains are ranks, which cannot rise, and a constant would find nothing."""

    def hate(prompts: Any, responses: Any) -> list[float]:
        return [-float(response.split().count("yes")) for response in responses]

    watch = HackingMonitorParams(fall=0.15, length_factor=None, repetition_rise=None, entropy_share=None)
    params = quick.model_copy(update={"monitors": watch, "logging_steps": 1, "eval_steps": 1})
    facts = grpo.run(dataclasses.replace(judged, judge=hate), params)
    assert "divergence" in {finding["kind"] for finding in facts["findings"]}
    rewards = [each["training_reward"] for each in facts["evaluations"]]
    assert rewards[-1] > rewards[0] > 0
    healthy = grpo.run(again("healthy"), params)
    assert healthy["findings"] == []


def test_a_nucleus_is_no_sample_to_read_a_kl_sign_from(
    judged: FinetuneInputs, quick: GrpoParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At top_p 1 a KL that is negative beyond noise stops the run; below 1 it does not, because the mean log-ratio of
    what is drawn from a nucleus is no KL."""
    monkeypatch.setattr(grpo.JudgedTrainer, "_kl_per_token", lambda self, output: (-0.5, 1e-3))
    params = quick.model_copy(update={"num_train_epochs": 0.1, "kl": KlParams(mode="fixed", stop_at=None)})
    grpo.run(judged, params.model_copy(update={"top_p": 0.9}))
    with pytest.raises(StageError, match="not negative beyond noise"):
        grpo.run(judged, params)


def test_a_reward_is_calibrated_on_pi_ref_and_added_with_its_weight(
    judged: FinetuneInputs, quick: GrpoParams, length_reward: Any
) -> None:
    """With a judge that never answers differently (all gains ½) the length penalty alone decides: answers shrink."""
    tied = dataclasses.replace(judged.ranker, word="absent", digest="tied")
    inputs = dataclasses.replace(judged, ranker=tied, reward=length_reward)
    facts = grpo.run(inputs, quick.model_copy(update={"reward_weight": 1.0, "kl": KlParams(stop_at=None)}))
    assert length_reward.mean > 0
    assert length_reward.scored == STEPS * 16
    curve = rows(judged.folder)
    assert curve[-1]["response_tokens"] < curve[0]["response_tokens"]
    assert curve[-1]["reward/length"] > curve[0]["reward/length"]
    assert facts["totals"]["zero_variance"] < facts["totals"]["groups"]


def test_beta_follows_the_controller_and_a_runaway_stops(
    judged: FinetuneInputs, quick: GrpoParams, again: Callable[..., FinetuneInputs]
) -> None:
    free = quick.model_copy(update={"beta": 0.001, "kl": KlParams(mode="fixed", stop_at=None)})
    loose = grpo.run(judged, free)
    tied = again("tied")
    adaptive = KlParams(beta_max=10.0, target=0.01, horizon=16, ramp_at=2.0, stop_at=None)
    close = grpo.run(tied, quick.model_copy(update={"beta": 0.5, "kl": adaptive}))
    betas = [row["beta"] for row in rows(tied.folder)]
    assert max(betas) > 0.5
    assert close["evaluations"][-1]["kl_per_token"] < loose["evaluations"][-1]["kl_per_token"]
    stopped = again("stopped")
    kl = KlParams(mode="fixed", stop_at=0.02)
    with pytest.raises(StageError, match="runs away from π_ref"):
        grpo.run(stopped, quick.model_copy(update={"beta": 0.001, "kl": kl}))


def test_without_beta_there_is_no_reference_but_evaluations_still_measure_kl(
    judged: FinetuneInputs, quick: GrpoParams
) -> None:
    facts = grpo.run(judged, quick.model_copy(update={"beta": 0.0, "kl": KlParams(mode="fixed")}))
    assert "kl_per_token" not in rows(judged.folder)[0]
    assert facts["evaluations"][-1]["kl_per_token"] > 0


def test_the_best_checkpoint_lies_within_the_kl_where_one_does(
    judged: FinetuneInputs, quick: GrpoParams, again: Callable[..., FinetuneInputs]
) -> None:
    free = grpo.run(judged, quick)
    kls = sorted(each["kl_per_token"] for each in free["evaluations"])
    limit = (kls[0] + kls[1]) / 2
    bound = again("bound")
    facts = grpo.run(bound, quick.model_copy(update={"best_within_kl": limit}))
    assert facts["best"]["within_kl"]
    assert facts["best"]["kl_per_token"] == pytest.approx(kls[0])
    none = grpo.run(again("none"), quick.model_copy(update={"best_within_kl": kls[0] / 2}))
    assert not none["best"]["within_kl"]


def test_a_monitor_that_finds_something_is_told_and_stops_the_run_if_asked(
    judged: FinetuneInputs, quick: GrpoParams, again: Callable[..., FinetuneInputs], caplog: Any
) -> None:
    """Twelve evaluations, of which the first three are the baseline; a policy that learns is less surprised by itself,
    so its entropy falls below 99 % of where it was. A run that was stopped is not gone on with."""
    watch = HackingMonitorParams(entropy_share=0.99, length_factor=None)
    params = quick.model_copy(update={"logging_steps": 1, "eval_steps": 1, "monitors": watch})
    with caplog.at_level(logging.WARNING):
        facts = grpo.run(judged, params)
    assert [finding["kind"] for finding in facts["findings"]] == ["entropy"]
    assert "Entropy fell from" in caplog.text
    assert facts["stopped"] == "all steps done"
    stop = params.model_copy(update={"monitors": watch.model_copy(update={"on_finding": "stop"})})
    stopping = again("stopping")
    stopped = grpo.run(stopping, stop)
    assert stopped["stopped"].startswith("monitor at step")
    assert stopped["steps"]["run"] < STEPS
    seen: list[int] = []
    second = dataclasses.replace(again("second", progress=recorder(seen)), work=stopping.work)
    assert grpo.run(second, stop) == stopped
    assert seen == []


def test_a_later_stage_starts_from_one_policy_and_is_tied_to_another(
    judged: FinetuneInputs, quick: GrpoParams, drifted: Path
) -> None:
    stage = dataclasses.replace(judged, start=drifted)
    facts = grpo.run(
        stage, quick.model_copy(update={"learning_rate": 1e-9, "kl": KlParams(mode="fixed", stop_at=None)})
    )
    assert facts["start_weights"] != facts["reference_weights"]
    assert facts["evaluations"][0]["kl_per_token"] > 0.01
    assert rows(judged.folder)[0]["kl_per_token"] > 0.01
    saved = json.loads((judged.folder / "config.json").read_text())
    assert str(judged.reference) not in json.dumps(saved)
    with pytest.raises(ParamsError, match="adapter off"):
        grpo.run(stage, quick.model_copy(update={"lora": LoraParams()}))


def test_what_is_missing_is_said_before_any_work(
    inputs: FinetuneInputs, judged: FinetuneInputs, quick: GrpoParams
) -> None:
    for given, params, message in (
        (inputs, quick, "needs a judge to rank candidates"),
        (dataclasses.replace(judged, gains=None), quick, "needs a gain function"),
        (dataclasses.replace(judged, judge=None), quick, "held-out judge"),
        (judged, quick.model_copy(update={"reward_weight": 1.0}), "there is no reward"),
        (
            dataclasses.replace(judged, temperatures=(0.5, 1.0)),
            quick.model_copy(update={"use_vllm": True}),
            "one temperature",
        ),
    ):
        with pytest.raises(ParamsError, match=message):
            grpo.run(given, params)
        assert not given.work.exists()


def test_prompts_that_leave_no_room_are_counted_and_none_left_is_an_error(
    judged: FinetuneInputs, quick: GrpoParams, pairs: Callable[..., Any]
) -> None:
    longer = [*judged.train[:24], *pairs(6, seed=5, words=60)]
    facts = grpo.run(
        dataclasses.replace(judged, train=longer), quick.model_copy(update={"max_length": 32, "num_train_epochs": 0.3})
    )
    assert facts["too_long"]["train"] > 0
    with pytest.raises(StageError, match="room for 30 new tokens within 32, found none"):
        grpo.run(judged, quick.model_copy(update={"max_length": 32, "max_completion_length": 30}))


def test_a_judge_that_fails_or_miscounts_ends_the_run(judged: FinetuneInputs, quick: GrpoParams, judge: Any) -> None:
    class Down(type(judge)):  # type: ignore[misc]
        def judge(self, prompts: Any, groups: Any) -> Any:
            raise JudgeError("the judge is down")

    with pytest.raises(JudgeError, match="the judge is down"):
        grpo.run(dataclasses.replace(judged, ranker=Down(digest="down")), quick)

    class Short(type(judge)):  # type: ignore[misc]
        def judge(self, prompts: Any, groups: Any) -> Any:
            return super().judge(prompts[1:], groups[1:])

    with pytest.raises(JudgeError, match="each of 4 groups from the judge counting, found 3"):
        grpo.run(dataclasses.replace(judged, ranker=Short(digest="short")), quick)


def test_a_gain_that_is_no_number_ends_the_run(judged: FinetuneInputs, quick: GrpoParams) -> None:
    class Broken(type(judged.gains)):  # type: ignore[misc]
        def __call__(self, judgements: Any, candidates: int) -> Any:
            gains = super().__call__(judgements, candidates)
            gains.values[0, 0] = np.nan
            return gains

    with pytest.raises(StageError, match="finite in the 4 groups"):
        grpo.run(dataclasses.replace(judged, gains=Broken(digest="broken")), quick)


def test_nothing_but_empty_answers_is_an_error(
    judged: FinetuneInputs, quick: GrpoParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    from plumbline.tasks.training.finetuning.grpo import rollouts

    original = rollouts.sample_ids
    monkeypatch.setattr(
        rollouts,
        "sample_ids",
        lambda *args, **kwargs: [
            dataclasses.replace(each, text="", token_ids=(1,), logps=each.logps[:1], finished=True)
            for each in original(*args, **kwargs)
        ],
    )
    with pytest.raises(StageError, match="Every one of 16 completions of a rollout is empty"):
        grpo.run(judged, quick)


def test_answers_that_never_end_are_counted_and_warned_of(
    judged: FinetuneInputs, quick: GrpoParams, caplog: Any
) -> None:
    with caplog.at_level(logging.WARNING):
        facts = grpo.run(judged, quick.model_copy(update={"max_completion_length": 1, "num_train_epochs": 0.3}))
    assert facts["totals"]["unfinished"] > 0
    assert "reached its end token within max_completion_length=1" in caplog.text


def test_bf16_samples_and_trains_in_one_precision_over_float32_weights(
    judged: FinetuneInputs, quick: GrpoParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three steps; what the sampler and TRL say of the same tokens differs by the rounding of bfloat16 (2^-8) at most.

    Both differ by it from what the same weights say in float32, so bfloat16 it is.
    """
    gaps: list[float] = []
    roundings: list[float] = []
    original = grpo.JudgedTrainer._generate_and_score_completions

    def check(self: Any, inputs: Any) -> Any:
        output = original(self, inputs)
        inside = output["completion_mask"].bool()
        sampled = output["sampling_per_token_logps"]
        gaps.append(float((sampled - output["old_per_token_logps"])[inside].abs().mean()))
        rows = [
            (prompt[read.bool()].tolist(), answer[kept].tolist())
            for prompt, read, answer, kept in zip(
                output["prompt_ids"], output["prompt_mask"], output["completion_ids"], inside, strict=True
            )
        ]
        precise = token_logps(self.model, rows, max_length=128, batch_size=64, temperature=self.temperature)
        roundings.append(float((sampled[inside] - torch.cat(precise)).abs().mean()))
        return output

    monkeypatch.setattr(grpo.JudgedTrainer, "_generate_and_score_completions", check)
    grpo.run(
        judged,
        quick.model_copy(
            update={"bf16": True, "num_train_epochs": 0.34, "steps_per_generation": 2, "per_device_train_batch_size": 8}
        ),
    )
    assert all(tensor.dtype == torch.float32 for tensor in weights(judged.folder).values())
    assert max(gaps) < 0.05
    assert 1e-4 < min(roundings) <= max(roundings) < 0.05


def test_recorded_trajectory(whole: tuple[dict[str, Any], Path]) -> None:
    """The curve of `quick` under the versions it was recorded with; PLUMBLINE_RECORD=1 records it anew.

    Processors sum in orders of their own: what one recorded, another gives within float32's rounding.
    """
    facts, folder = whole
    found = {"libraries": facts["libraries"], "rows": rows(folder)}
    if os.environ.get("PLUMBLINE_RECORD"):
        RECORDED.write_text(json.dumps(found, indent=1) + "\n")
    recorded = json.loads(RECORDED.read_text())
    if recorded["libraries"] != found["libraries"]:
        pytest.skip(f"recorded under {recorded['libraries']}")
    for row, expected in zip(found["rows"], recorded["rows"], strict=True):
        assert row == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.usefixtures("only_packed")
@pytest.mark.parametrize("temperatures", [(), (0.7, 1.0)])
def test_steps_read_packed_sequences(
    judged: FinetuneInputs, quick: GrpoParams, temperatures: tuple[float, ...]
) -> None:
    """At one temperature, and where the head changes with it."""
    assert grpo.run(dataclasses.replace(judged, temperatures=temperatures), quick)["steps"]["run"] > 0


def test_nothing_is_printed(judged: FinetuneInputs, quick: GrpoParams, capfd: pytest.CaptureFixture[str]) -> None:
    grpo.run(judged, quick)
    assert capfd.readouterr().out == ""


def test_completions_of_vllm_are_read_as_those_of_the_sampler(judged: FinetuneInputs, quick: GrpoParams) -> None:
    """TRL's generation object gets each prompt K times and answers with tokens and lists of log-probabilities, the
    sampled token's first; token 1 ends an answer. Not run against a real vLLM, which needs an accelerator."""
    from types import SimpleNamespace

    from plumbline.tasks.models.loading import load_policy, load_tokenizer
    from plumbline.tasks.training.finetuning.grpo.rollouts import JudgedRollouts

    tokenizer = load_tokenizer(judged.reference)
    asked: dict[str, Any] = {}

    def generate(**arguments: Any) -> Any:
        asked.update(arguments)
        return None, [[15, 1], [16, 15]], [[[-0.1], [-0.2]], [[-0.3], [-0.4]]], None

    rollouts = JudgedRollouts(
        tokenizer=tokenizer,
        pool=[],
        judge=judged.ranker,
        gains=judged.gains,
        reward=None,
        params=quick.model_copy(update={"use_vllm": True, "num_generations": 2}),
        temperatures=(),
        seed=0,
    )
    trainer = SimpleNamespace(model=load_policy(judged.reference), vllm_generation=SimpleNamespace(generate=generate))
    found = rollouts._sample(trainer, [judged.train[0].prompt], np.random.default_rng(0))
    assert len(asked["prompts"]) == 2 and asked["prompts"][0] == asked["prompts"][1]
    assert asked["num_generations"] == 2
    assert [each.text for each in found] == [tokenizer.decode([15]), tokenizer.decode([16, 15])]
    assert [each.finished for each in found] == [True, False]
    assert [each.logps for each in found] == [(-0.1, -0.2), (-0.3, -0.4)]


def test_answers_carry_what_a_reward_reads() -> None:
    from plumbline.tasks.models.judging import Completions
    from plumbline.tasks.models.sampling import Completion

    found = Completions.of([()], [Completion("yes", (7, 1), (-0.1, -0.2), True)])
    assert found == Completions([()], ["yes"], [(7, 1)], [True])
