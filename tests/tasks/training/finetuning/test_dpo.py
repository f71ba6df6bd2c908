from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from plumbline.data_contracts.artifact import sha256_file
from plumbline.data_contracts.errors import ParamsError, StageError
from plumbline.data_contracts.records import CuratedPair, Message
from plumbline.tasks.models.chat import encode
from plumbline.tasks.models.loading import load_policy, load_tokenizer
from plumbline.tasks.models.pairs import tokenise_pairs
from plumbline.tasks.models.training import library_versions
from plumbline.tasks.params.finetuning import DpoParams, FinetuneParams
from plumbline.tasks.params.method_sections import EarlyStoppingParams, LoraParams, ValidationParams
from plumbline.tasks.training.finetuning import dpo, reference_logps
from plumbline.tasks.training.finetuning.methods import METHODS, FinetuneInputs
from tests.support.training import FirstRun, Killed, killed_at, rows, same_bytes
from tests.support.world import in_world

pytestmark = pytest.mark.training

RECORDED = Path(__file__).parent / "recorded" / "dpo.json"
QUICK = in_world(
    DpoParams,
    beta=0.1,
    sft_weight=0.3,
    best_within_kl=None,
    learning_rate=1e-2,
    num_train_epochs=2,
    per_device_train_batch_size=8,
    logging_steps=2,
    eval_steps=4,
    per_device_eval_batch_size=8,
    early_stopping=None,
    validation=in_world(ValidationParams, pairs=8, prompts=6, max_new_tokens=8),
)
"""Twelve steps, with evaluations and checkpoints after 4, 8 and 12."""


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.fixture
def whole(inputs: FinetuneInputs, first_run: FirstRun) -> tuple[dict[str, Any], Path]:
    """An uninterrupted run: facts and folder."""
    return first_run.of(inputs, lambda: dpo.run(inputs, QUICK))


def naive_logp(folder: Path, prompt: tuple[Message, ...], response: str) -> tuple[float, int]:
    """Summed log-probability (nats) of a response, one sequence and one token at a time, and its tokens."""
    model, tokenizer = load_policy(folder), load_tokenizer(folder)
    head, tail = encode(tokenizer, prompt, response)
    total, ids = 0.0, list(head)
    for token in tail:
        with torch.no_grad():
            total += float(torch.log_softmax(model(torch.tensor([ids])).logits[0, -1], dim=-1)[token])
        ids.append(token)
    return total, len(tail)


def test_two_runs_are_bitwise_identical_and_pi_ref_is_untouched(
    inputs: FinetuneInputs, elsewhere: Callable[..., FinetuneInputs], whole: tuple[dict[str, Any], Path]
) -> None:
    before = {path.name: sha256_file(path) for path in inputs.reference.iterdir()}
    facts, folder = whole
    again = elsewhere("again")
    torch.manual_seed(99)  # whatever ran before in the process must not matter
    assert dpo.run(again, QUICK) == facts
    assert same_bytes(folder, again.folder)
    assert {path.name: sha256_file(path) for path in inputs.reference.iterdir()} == before
    other_seed = elsewhere("seed", seed=8)
    dpo.run(other_seed, QUICK)
    assert not same_bytes(folder, other_seed.folder)


def test_facts_are_json_and_tell_what_happened(whole: tuple[dict[str, Any], Path]) -> None:
    facts, folder = whole
    assert json.loads(json.dumps(facts)) == facts
    assert facts["pairs"] == {"train": 48, "validation": 8}
    assert facts["steps"] == {"planned": 12, "run": 12}
    assert [each["step"] for each in facts["evaluations"]] == [4, 8, 12]
    assert facts["stopped"] == "all steps done"
    best = max(facts["evaluations"], key=lambda each: each["win_rate"])
    assert facts["best"] == {"step": best["step"], "metric": "win_rate", "value": best["win_rate"], "within_kl": True}
    assert [row["step"] for row in rows(folder)] == [2, 4, 6, 8, 10, 12]
    assert facts["evaluations"][-1]["preference_accuracy"] > 0.9, "chosen responses start with another word"
    assert "/" not in json.dumps(facts).replace("nats/", ""), "no path of this machine"


def test_a_killed_run_resumes_to_the_same_bytes(
    inputs: FinetuneInputs, elsewhere: Callable[..., FinetuneInputs], whole: tuple[dict[str, Any], Path]
) -> None:
    facts, folder = whole
    with pytest.raises(Killed):
        dpo.run(elsewhere("killed", progress=killed_at(7, 12)), QUICK)
    seen: list[int] = []
    second = elsewhere("second", progress=lambda done, total, note: seen.append(done) if total == 12 else None)
    second = dataclasses.replace(second, work=second.folder.parent / "killed-work")
    assert dpo.run(second, QUICK) == facts
    assert same_bytes(folder, second.folder)
    assert seen == list(range(5, 13)), "resumed from the checkpoint of step 4"


@pytest.mark.parametrize("file", ["optimizer.pt", "model.safetensors", "trainer_state.json"])
def test_a_truncated_checkpoint_gives_way_to_the_one_before(
    inputs: FinetuneInputs,
    elsewhere: Callable[..., FinetuneInputs],
    whole: tuple[dict[str, Any], Path],
    caplog: pytest.LogCaptureFixture,
    file: str,
) -> None:
    facts, folder = whole
    killed = elsewhere("killed", progress=killed_at(9, 12))
    with pytest.raises(Killed):
        dpo.run(killed, QUICK)
    (damaged,) = killed.work.glob(f"run-*/checkpoint-8/{file}")
    os.truncate(damaged, damaged.stat().st_size // 2)
    seen: list[int] = []
    second = elsewhere("second", progress=lambda done, total, note: seen.append(done) if total == 12 else None)
    with caplog.at_level(logging.WARNING):
        assert dpo.run(dataclasses.replace(second, work=killed.work), QUICK) == facts
    assert same_bytes(folder, second.folder)
    assert "checkpoint-8 cannot be resumed" in caplog.text
    assert seen[0] == 5


def test_checkpoints_of_other_params_are_not_resumed(
    inputs: FinetuneInputs, elsewhere: Callable[..., FinetuneInputs]
) -> None:
    with pytest.raises(Killed):
        dpo.run(dataclasses.replace(inputs, progress=killed_at(7, 12)), QUICK)
    seen: list[int] = []
    second = elsewhere(
        "second", share_work=True, progress=lambda done, total, note: seen.append(done) if total == 12 else None
    )
    dpo.run(second, QUICK.model_copy(update={"beta": 0.2}))
    assert seen[0] == 1


def test_checkpoints_of_other_threads_are_not_resumed(
    inputs: FinetuneInputs, elsewhere: Callable[..., FinetuneInputs]
) -> None:
    """Sums over two threads round otherwise than over one: the resumed run would be neither of both."""
    with pytest.raises(Killed):
        dpo.run(dataclasses.replace(inputs, progress=killed_at(7, 12)), QUICK)
    seen: list[int] = []
    second = elsewhere(
        "second",
        share_work=True,
        threads=2,
        progress=lambda done, total, note: seen.append(done) if total == 12 else None,
    )
    dpo.run(second, QUICK)
    assert seen[0] == 1


def test_reference_logps_are_reused_across_beta_and_lr(
    inputs: FinetuneInputs, elsewhere: Callable[..., FinetuneInputs], monkeypatch: pytest.MonkeyPatch
) -> None:
    dpo.run(inputs, QUICK)
    calls: list[int] = []
    compute = reference_logps._compute
    monkeypatch.setattr(reference_logps, "_compute", lambda *args: calls.append(1) or compute(*args))
    dpo.run(elsewhere("beta", share_work=True), QUICK.model_copy(update={"beta": 0.2, "learning_rate": 1e-3}))
    assert calls == []
    dpo.run(elsewhere("pairs", share_work=True, train=inputs.train[:40]), QUICK)
    assert calls == [1], "other training pairs are computed, the validation pairs are not"


def test_pairs_reach_trl_as_its_own_preparation_would_make_them(inputs: FinetuneInputs, tmp_path: Path) -> None:
    """TRL renders, tokenises and scores the same pairs itself: equal tokens, log-probabilities within 1e-4."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    tokenizer = load_tokenizer(inputs.reference)
    ours = tokenise_pairs(inputs.train, tokenizer, 64)
    logps = reference_logps.reference_logps(
        load_policy(inputs.reference), "w", ours.tokens, max_length=64, batch_size=8, cache=tmp_path / "cache"
    )

    def as_messages(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    theirs = DPOTrainer(
        model=load_policy(inputs.reference),
        ref_model=load_policy(inputs.reference),
        args=DPOConfig(output_dir=str(tmp_path / "trl"), bf16=False, activation_checkpointing=False, report_to="none"),
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(
            [
                {
                    "prompt": as_messages("user", pair.prompt[0].content),
                    "chosen": as_messages("assistant", pair.chosen),
                    "rejected": as_messages("assistant", pair.rejected),
                }
                for pair in inputs.train
            ]
        ),
    )
    prepared = theirs.train_dataset
    for row, pair in zip(prepared, ours.tokens, strict=True):
        assert (row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) == (
            pair.prompt_ids,
            pair.chosen_ids,
            pair.rejected_ids,
        )
    batch = theirs.data_collator([prepared[row] for row in range(len(prepared))])
    chosen, rejected = theirs.compute_ref_log_probs(theirs.ref_model, batch)
    assert torch.allclose(torch.stack([chosen, rejected], dim=1), logps, atol=1e-4, rtol=0)


def one_step(inputs: FinetuneInputs, **changes: Any) -> list[dict[str, Any]]:
    params = QUICK.model_copy(
        update={
            "per_device_train_batch_size": 48,
            "num_train_epochs": 1.0,
            "logging_steps": 1,
            "eval_steps": 1,
            "learning_rate": 1e-9,
        }
        | changes
    )
    dpo.run(inputs, params)
    return rows(inputs.folder)


def test_first_loss_is_log_2_plus_the_sft_term(inputs: FinetuneInputs) -> None:
    """Where policy = reference every margin is 0 and -log sigmoid(0) = log 2; the SFT term is 0.3 times the
    negative log-likelihood of the chosen tokens, averaged over all of the batch, here counted one by one."""
    naive = [naive_logp(inputs.reference, pair.prompt, pair.chosen) for pair in inputs.train]
    nll = -sum(logp for logp, _ in naive) / sum(tokens for _, tokens in naive)
    assert one_step(inputs, sft_weight=0.3)[0]["loss"] == pytest.approx(math.log(2) + 0.3 * nll, abs=1e-5)


def test_first_loss_for_known_margins(inputs: FinetuneInputs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference log-probabilities of chosen lowered by 2 nats: each margin is 0.1 * (2 - 0), so the loss is
    -log sigmoid(0.2) = log(1 + exp(-0.2)) = 0.598139; all pairs count as right, margins are 0.2."""
    compute = reference_logps._compute
    monkeypatch.setattr(reference_logps, "_compute", lambda *args: compute(*args) - torch.tensor([2.0, 0.0]))
    row = one_step(inputs, sft_weight=0.0, beta=0.1)[0]
    assert row["loss"] == pytest.approx(math.log(1 + math.exp(-0.2)), abs=1e-5)
    assert row["loss"] == pytest.approx(0.598139, abs=1e-5)
    assert row["accuracy"] == 1
    assert row["margin"] == pytest.approx(0.2, abs=1e-5)


X = 0.2
"""Margin of every pair below: beta 0.1 times 2 nats, as in `test_first_loss_for_known_margins`."""


@pytest.mark.parametrize(
    ("loss_type", "smoothing", "expected"),
    [
        # conservative: 0.9 * log(1 + exp(-0.2)) + 0.1 * log(1 + exp(0.2)) = 0.598139 + 0.1 * 0.2
        ("sigmoid", 0.1, 0.618139),
        # (0.9 * 0.598139 - 0.1 * 0.798139) / 0.8
        ("robust", 0.1, 0.573139),
        ("hinge", 0.0, 1 - X),
        # q = sigmoid(0.2) = 0.549834: q * log(q / 0.9) + (1 - q) * log((1 - q) / 0.1)
        ("exo_pair", 0.1, 0.406304),
    ],
)
def test_first_losses_of_the_relatives_for_known_margins(
    inputs: FinetuneInputs, monkeypatch: pytest.MonkeyPatch, loss_type: str, smoothing: float, expected: float
) -> None:
    compute = reference_logps._compute
    monkeypatch.setattr(reference_logps, "_compute", lambda *args: compute(*args) - torch.tensor([2.0, 0.0]))
    row = one_step(inputs, sft_weight=0.0, beta=0.1, loss_type=loss_type, label_smoothing=smoothing)[0]
    assert row["loss"] == pytest.approx(expected, abs=1e-5)


def test_first_loss_of_ipo_for_known_margins(inputs: FinetuneInputs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Per token the chosen side gains 2 / n nats and the rejected none: (2 / n - 1 / (2 * 0.1))^2, n the tokens of
    the chosen response, its end included."""
    compute = reference_logps._compute
    monkeypatch.setattr(reference_logps, "_compute", lambda *args: compute(*args) - torch.tensor([2.0, 0.0]))
    counts = [len(pair.chosen.split()) + 1 for pair in inputs.train]
    expected = sum((2 / count - 5) ** 2 for count in counts) / len(counts)
    row = one_step(inputs, sft_weight=0.0, beta=0.1, loss_type="ipo")[0]
    assert row["loss"] == pytest.approx(expected, abs=1e-4)


def naive_loss(loss_type: str, x: float, per_token: float, smoothing: float) -> float:
    """A pair's loss from its margin x = beta * (difference of log-ratios), by the papers' formulas."""
    right, wrong = math.log(1 + math.exp(-x)), math.log(1 + math.exp(x))
    q = 1 / (1 + math.exp(-x))
    return {
        "sigmoid": (1 - smoothing) * right + smoothing * wrong,
        "robust": ((1 - smoothing) * right - smoothing * wrong) / (1 - 2 * smoothing),
        "ipo": (per_token - 5) ** 2,
        "exo_pair": q * math.log(q / (1 - smoothing)) + (1 - q) * math.log((1 - q) / smoothing) if smoothing else 0.0,
    }[loss_type]


@pytest.mark.parametrize(
    ("loss_type", "smoothing"), [("sigmoid", 0.0), ("sigmoid", 0.3), ("robust", 0.3), ("ipo", 0.0), ("exo_pair", 0.3)]
)
def test_first_loss_of_a_drifted_start_is_the_naive_one(
    inputs: FinetuneInputs,
    drifted: Path,
    naive_logps: Callable[..., list[float]],
    loss_type: str,
    smoothing: float,
) -> None:
    """Every token on its own, under both models: margins of both signs, a different one for each pair."""
    losses, margins = [], []
    for pair in tokenise_pairs(inputs.train, load_tokenizer(drifted), 64).tokens:
        ratios = [
            sum(naive_logps(drifted, pair.prompt_ids, ids)) - sum(naive_logps(inputs.reference, pair.prompt_ids, ids))
            for ids in (pair.chosen_ids, pair.rejected_ids)
        ]
        margins.append(0.1 * (ratios[0] - ratios[1]))
        per_token = ratios[0] / len(pair.chosen_ids) - ratios[1] / len(pair.rejected_ids)
        losses.append(naive_loss(loss_type, margins[-1], per_token, smoothing))
    assert min(margins) < -0.01 < 0.01 < max(margins)
    given = dataclasses.replace(inputs, start=drifted)
    row = one_step(given, sft_weight=0.0, beta=0.1, loss_type=loss_type, label_smoothing=smoothing)[0]
    assert row["loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-4 if loss_type == "ipo" else 1e-5)


def test_trajectory_is_the_recorded_one(whole: tuple[dict[str, Any], Path]) -> None:
    """Guards refactors. After a deliberate change, or for other versions: PLUMBLINE_RECORD=1 pytest THIS_FILE."""
    _, folder = whole
    trajectory = [{name: row[name] for name in ("step", "loss", "margin", "grad_norm")} for row in rows(folder)]
    if os.environ.get("PLUMBLINE_RECORD"):
        RECORDED.write_text(json.dumps({"versions": library_versions("peft"), "rows": trajectory}, indent=1) + "\n")
    recorded = json.loads(RECORDED.read_text())
    if recorded["versions"] != library_versions("peft"):
        pytest.skip(f"recorded for {recorded['versions']}, this is {library_versions('peft')}")
    assert len(trajectory) == len(recorded["rows"])
    for row, expected in zip(trajectory, recorded["rows"], strict=True):
        assert row == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_best_checkpoint_is_kept(inputs: FinetuneInputs) -> None:
    """A scripted judge: π_ref scores 0; the policy wins at its first evaluation (step 4) and loses from then on."""
    verdicts = iter([0.0, 1.0, -1.0, -1.0])

    def judge(prompts: Any, responses: Any) -> list[float]:
        return [next(verdicts)] * len(prompts) if prompts else []

    facts = dpo.run(dataclasses.replace(inputs, judge=judge), QUICK)
    assert facts["best"] == {"step": 4, "metric": "win_rate", "value": 1.0, "within_kl": True}
    assert [each["win_rate"] for each in facts["evaluations"]] == [1.0, 0.0, 0.0]
    (kept,) = inputs.work.glob("run-*/checkpoint-4")
    assert all(torch.equal(tensor, weights(inputs.folder)[name]) for name, tensor in weights(kept).items())
    (last,) = inputs.work.glob("run-*/checkpoint-12")
    assert any(not torch.equal(tensor, weights(inputs.folder)[name]) for name, tensor in weights(last).items())


def test_early_stopping_and_a_kill_right_behind_it(
    inputs: FinetuneInputs, elsewhere: Callable[..., FinetuneInputs]
) -> None:
    """At a learning rate of 1e-12 nothing improves after the first evaluation: patience 1 ends at step 8.
    A rerun over the finished checkpoints takes no step and writes the same."""
    params = QUICK.model_copy(update={"learning_rate": 1e-12, "early_stopping": EarlyStoppingParams(patience=1)})
    facts = dpo.run(inputs, params)
    assert facts["stopped"] == (
        "early stopping at step 8: no gain in preference_accuracy and win_rate over 1 evaluations"
    )
    assert facts["steps"] == {"planned": 12, "run": 8}
    seen: list[int] = []
    second = elsewhere(
        "second", share_work=True, progress=lambda done, total, note: seen.append(done) if total == 12 else None
    )
    assert dpo.run(second, params) == facts
    assert same_bytes(inputs.folder, second.folder)
    assert seen == []


def test_a_finished_run_that_was_not_written_is_not_trained_again(
    inputs: FinetuneInputs, elsewhere: Callable[..., FinetuneInputs]
) -> None:
    """The checkpoints lie where they were written: the best one is named by its path."""
    facts = dpo.run(inputs, QUICK)
    seen: list[int] = []
    second = elsewhere(
        "second", share_work=True, progress=lambda done, total, note: seen.append(done) if total == 12 else None
    )
    assert dpo.run(second, QUICK) == facts
    assert same_bytes(inputs.folder, second.folder)
    assert seen == []


def test_lora_trains_adapters_only_and_merges_them(inputs: FinetuneInputs) -> None:
    """Merged weight = π_ref's + (alpha / r) B A, with the adapter saved beside it; embeddings stay as they are.
    Two q_proj factors of (2, 16) and (16, 2) are 64 trained parameters."""
    lora = LoraParams(r=2, lora_alpha=6.0, target_modules=("q_proj",))
    facts = dpo.run(inputs, QUICK.model_copy(update={"lora": lora}))
    assert facts["trained_parameters"] == 64
    adapter = load_file(inputs.folder / "adapter" / "adapter_model.safetensors")
    (down,) = (tensor for name, tensor in adapter.items() if "lora_A" in name)
    (up,) = (tensor for name, tensor in adapter.items() if "lora_B" in name)
    before, after = weights(inputs.reference), weights(inputs.folder)
    assert before.keys() == after.keys()
    name = "model.layers.0.self_attn.q_proj.weight"
    assert float((up @ down).abs().max()) > 1e-4
    assert torch.allclose(after[name], before[name] + 3.0 * up @ down, atol=1e-6)
    assert all(torch.equal(after[other], before[other]) for other in before if other != name)
    config = json.loads((inputs.folder / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "models/reference"
    assert facts["evaluations"][-1]["kl_per_token"] != 0


def test_lora_resumes_to_the_same_bytes(inputs: FinetuneInputs, elsewhere: Callable[..., FinetuneInputs]) -> None:
    params = QUICK.model_copy(update={"lora": LoraParams(r=2, lora_dropout=0.1)})
    facts = dpo.run(inputs, params)
    killed = elsewhere("killed", progress=killed_at(7, 12))
    with pytest.raises(Killed):
        dpo.run(killed, params)
    second = dataclasses.replace(elsewhere("second"), work=killed.work)
    assert dpo.run(second, params) == facts
    assert same_bytes(inputs.folder, second.folder)


def test_long_pairs_are_set_aside_and_counted(inputs: FinetuneInputs, pairs: Callable[..., list[CuratedPair]]) -> None:
    """A prompt of one word is 4 tokens (role, word, end, role); a response of "yes" and n words is n + 2."""
    short, long = pairs(24, seed=3, words=1), pairs(3, seed=4, words=1)
    long = [pair.model_copy(update={"rejected": "no" + " cat" * 7}) for pair in long]
    edge = [pair.model_copy(update={"rejected": "no" + " cat" * 6}) for pair in long[:1]]
    params = QUICK.model_copy(update={"max_length": 12})
    facts = dpo.run(
        dataclasses.replace(inputs, train=[*short, *long, *edge], validation=pairs(6, seed=5, words=1)), params
    )
    assert facts["too_long"] == {"train": 3, "validation": 0, "max_length": 12}
    assert facts["pairs"]["train"] == 25


@pytest.mark.usefixtures("only_packed")
@pytest.mark.parametrize("lora", [None, LoraParams(r=2, lora_dropout=0.0)])
def test_training_and_evaluation_read_packed_sequences(inputs: FinetuneInputs, lora: LoraParams | None) -> None:
    assert dpo.run(inputs, QUICK.model_copy(update={"lora": lora}))["steps"]["run"] > 0


def test_no_pair_fits(inputs: FinetuneInputs) -> None:
    with pytest.raises(StageError, match=r"training pairs of at most 8 tokens .* found none among 48"):
        train = [pair.model_copy(update={"chosen": "yes" + " cat" * 20}) for pair in inputs.train]
        dpo.run(dataclasses.replace(inputs, train=train), QUICK.model_copy(update={"max_length": 8}))


def test_refusals_come_before_any_work(inputs: FinetuneInputs) -> None:
    nowhere = dataclasses.replace(inputs, reference=Path("no/such/folder"))
    with pytest.raises(ParamsError, match="zigzag"):
        dpo.run(nowhere, QUICK.model_copy(update={"optim": "zigzag"}))
    with pytest.raises(ParamsError, match="needs a judge"):
        dpo.run(dataclasses.replace(nowhere, judge=None), QUICK)
    with pytest.raises(ParamsError, match="zigzag"):
        METHODS["dpo"].check(in_world(FinetuneParams, dpo=in_world(DpoParams, optim="zigzag")))
    assert not inputs.work.exists()


def test_without_a_judge_the_best_is_by_preference_accuracy(inputs: FinetuneInputs) -> None:
    params = in_world(
        FinetuneParams, dpo=QUICK.model_copy(update={"metric_for_best_model": "preference_accuracy", "sft_weight": 0.0})
    )
    facts = METHODS["dpo"].run(dataclasses.replace(inputs, judge=None), params)
    assert facts["best"]["metric"] == "preference_accuracy"
    assert "win_rate" not in facts["evaluations"][0]


def test_nothing_is_printed(inputs: FinetuneInputs, capfd: pytest.CaptureFixture[str]) -> None:
    dpo.run(inputs, QUICK)
    assert capfd.readouterr().out == ""
