from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from plumbline.data_contracts.errors import ModelError, ParamsError, StageError
from plumbline.data_contracts.progress import silent
from plumbline.data_contracts.records import CuratedPair, Message
from plumbline.tasks.models.chat import as_dicts, encode_prompts
from plumbline.tasks.models.loading import load_policy, load_tokenizer
from plumbline.tasks.params.finetuning import ImitationParams, SftParams
from plumbline.tasks.params.method_sections import ValidationParams
from plumbline.tasks.training.finetuning import sft
from plumbline.tasks.training.finetuning.methods import FinetuneInputs
from plumbline.tasks.training.finetuning.sft import IGNORED, build_reference, encode_conversations
from tests.support.training import Killed
from tests.support.world import in_world

QUICK = in_world(
    SftParams, learning_rate=1e-2, num_train_epochs=2, per_device_train_batch_size=8, logging_steps=2, save_steps=4
)
CONVERSATIONS = [
    [
        Message(role="user", content="red cat"),
        Message(role="assistant", content=f"yes {word}"),
        Message(role="user", content="two"),
        Message(role="assistant", content="no please"),
    ]
    for word in ("one", "two", "three", "cat", "dog", "bird", "red", "blue") * 5
]
"""Forty, so twelve... ten steps of eight over two epochs."""


@pytest.fixture
def build(reference: Path, tmp_path: Path) -> Callable[..., tuple[dict[str, Any], Path]]:
    """Build π_ref under a name, with its own folder and `work`."""

    def run(name: str, params: SftParams = QUICK, **changes: Any) -> tuple[dict[str, Any], Path]:
        folder = tmp_path / name
        folder.mkdir()
        work = tmp_path / changes.get("work", f"{name}-work")
        given = changes.get("conversations", CONVERSATIONS)
        progress = changes.get("progress", silent)
        return build_reference(reference, given, params, 3, 1, folder, work, progress), folder

    return run


def test_labels_are_those_of_trl(reference: Path, tmp_path: Path) -> None:
    """TRL prepares the same conversations itself with assistant_only_loss."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    tokenizer = load_tokenizer(reference)
    theirs = SFTTrainer(
        model=load_policy(reference),
        args=SFTConfig(
            output_dir=str(tmp_path),
            assistant_only_loss=True,
            bf16=False,
            activation_checkpointing=False,
            report_to="none",
        ),
        processing_class=tokenizer,
        train_dataset=Dataset.from_list([{"messages": as_dicts(each)} for each in CONVERSATIONS[:8]]),
    ).train_dataset
    ours = encode_conversations(tokenizer, CONVERSATIONS[:8])
    assert [(row["input_ids"], row["labels"]) for row in theirs] == ours


def test_loss_is_on_assistant_tokens_and_their_end(reference: Path) -> None:
    """`<|user|> red cat <|end|> <|assistant|>` is five tokens without loss, `yes one <|end|>` three with it."""
    tokenizer = load_tokenizer(reference)
    ((ids, labels),) = encode_conversations(tokenizer, [CONVERSATIONS[0][:2]])
    assert [label != IGNORED for label in labels] == [False] * 5 + [True] * 3
    assert tokenizer.decode([label for label in labels if label != IGNORED]).split() == ["yes", "one", "<|end|>"]
    assert [token for token, label in zip(ids, labels, strict=True) if label != IGNORED] == labels[5:]


@pytest.mark.training
def test_first_loss_is_the_mean_over_assistant_tokens(
    reference: Path, build: Callable[..., tuple[dict[str, Any], Path]]
) -> None:
    params = in_world(SftParams, learning_rate=1e-9, per_device_train_batch_size=40, logging_steps=1)
    _, folder = build("one", params)
    model, tokenizer = load_policy(reference), load_tokenizer(reference)
    losses = []
    for ids, labels in encode_conversations(tokenizer, CONVERSATIONS):
        with torch.no_grad():
            table = torch.log_softmax(model(torch.tensor([ids])).logits[0], dim=-1)  # (T, V)
        losses += [-float(table[place - 1, token]) for place, token in enumerate(labels) if token != IGNORED]
    first = json.loads((folder / "training.jsonl").read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-5)


@pytest.mark.training
def test_facts_and_learning(build: Callable[..., tuple[dict[str, Any], Path]]) -> None:
    facts, folder = build("a")
    assert json.loads(json.dumps(facts)) == facts
    assert facts["examples"] == {"given": 40, "used": 40, "too_long": 0}
    assert facts["steps"] == 10
    assert facts["assistant_tokens"] == 40 * 6
    rows = [json.loads(line) for line in (folder / "training.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 10]
    assert facts["final_loss"] == rows[-1]["loss"] < rows[0]["loss"] / 2


@pytest.mark.training
def test_a_killed_run_resumes_to_the_same_bytes(
    build: Callable[..., tuple[dict[str, Any], Path]], tmp_path: Path
) -> None:
    def kill(done: int, total: int, note: str) -> None:
        if done == 6:
            raise Killed

    facts, folder = build("a")
    with pytest.raises(Killed):
        build("b", progress=kill)
    seen: list[int] = []
    again, other = build("c", work="b-work", progress=lambda done, total, note: seen.append(done))
    assert again == facts
    for name in ("model.safetensors", "training.jsonl", "config.json"):
        assert (folder / name).read_bytes() == (other / name).read_bytes()
    assert seen == list(range(5, 11))


def test_disabled_takes_the_base_as_it_is(reference: Path, build: Callable[..., tuple[dict[str, Any], Path]]) -> None:
    facts, folder = build("a", in_world(SftParams, enabled=False), conversations=[])
    assert facts["method"] == "given checkpoint"
    before, after = load_file(reference / "model.safetensors"), load_file(folder / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (folder / "training.jsonl").read_bytes() == b""


@pytest.mark.training
def test_long_conversations_are_set_aside_and_counted(build: Callable[..., tuple[dict[str, Any], Path]]) -> None:
    """Two turns of each side are 5 + 3 + 4 + 3 tokens, one more in words; eight of `please` cross a limit of 16."""
    long = [*CONVERSATIONS[0][:3], Message(role="assistant", content="please " * 8)]
    facts, _ = build("a", QUICK.model_copy(update={"max_length": 16}), conversations=[*CONVERSATIONS, long])
    assert facts["examples"] == {"given": 41, "used": 40, "too_long": 1}
    with pytest.raises(StageError, match="at most 16 tokens, found none among 1"):
        build("b", QUICK.model_copy(update={"max_length": 16}), conversations=[long])


@pytest.mark.training
def test_max_examples_draws_with_the_seed(build: Callable[..., tuple[dict[str, Any], Path]]) -> None:
    facts, _ = build("a", QUICK.model_copy(update={"max_examples": 16}))
    assert facts["examples"] == {"given": 40, "used": 16, "too_long": 0}


def test_conversations_without_an_assistant_are_refused(build: Callable[..., tuple[dict[str, Any], Path]]) -> None:
    with pytest.raises(ModelError, match="found 1 of 41 without"):
        build("a", conversations=[*CONVERSATIONS, CONVERSATIONS[0][:1]])


def test_a_template_without_marks_teaches_the_same_tokens(reference: Path) -> None:
    tokenizer = load_tokenizer(reference)
    marked = encode_conversations(tokenizer, CONVERSATIONS)
    tokenizer.chat_template = re.sub(r"{% (end)?generation %}", "", tokenizer.chat_template)
    assert encode_conversations(tokenizer, CONVERSATIONS) == marked


def test_a_template_that_ends_no_turn_is_refused(reference: Path) -> None:
    tokenizer = load_tokenizer(reference)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(ModelError, match="must end an assistant turn"):
        encode_conversations(tokenizer, CONVERSATIONS[:1])


def test_an_argument_that_trl_refuses_is_refused_before_any_work(tmp_path: Path) -> None:
    params = in_world(SftParams, optim="zigzag")
    with pytest.raises(ParamsError, match="zigzag"):
        build_reference(Path("no/such"), [], params, 0, 1, tmp_path / "out", tmp_path / "work", silent)


ONE_STEP = in_world(
    ImitationParams,
    learning_rate=1e-9,
    per_device_train_batch_size=48,
    logging_steps=1,
    eval_steps=1,
    early_stopping=None,
    validation=in_world(ValidationParams, pairs=4, prompts=4, max_new_tokens=4),
)


@pytest.mark.training
def test_the_method_imitates_chosen_responses(
    inputs: FinetuneInputs, drifted: Path, naive_logps: Callable[..., list[float]]
) -> None:
    """The first loss is the mean negative log-likelihood of all chosen tokens under the start, counted one by one."""
    facts = sft.run(dataclasses.replace(inputs, start=drifted), ONE_STEP)
    tokenizer, logps = load_tokenizer(drifted), []
    for pair in inputs.train:
        ids = [tokenizer.convert_tokens_to_ids(word) for word in [*pair.chosen.split(), "<|end|>"]]
        logps += naive_logps(drifted, encode_prompts(tokenizer, [pair.prompt])[0], ids)
    first = json.loads((inputs.folder / "training.jsonl").read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(-sum(logps) / len(logps), abs=1e-5)
    assert facts["assistant_tokens"] == len(logps)
    assert facts["examples"] == {"given": 48, "used": 48, "too_long": 0}
    assert "implied_beta" not in facts


@pytest.mark.training
def test_the_method_draws_and_sets_aside(inputs: FinetuneInputs, pairs: Callable[..., list[CuratedPair]]) -> None:
    long = [pair.model_copy(update={"chosen": "yes " * 70}) for pair in pairs(2, seed=3)]
    facts = sft.run(dataclasses.replace(inputs, train=[*inputs.train, *long]), ONE_STEP)
    assert facts["examples"] == {"given": 50, "used": 48, "too_long": 2}
    with pytest.raises(StageError, match=r"at most 64 tokens, found none among 2\. Raise finetune\.sft\.max_length"):
        sft.run(dataclasses.replace(inputs, train=long), ONE_STEP)
    facts = sft.run(inputs, ONE_STEP.model_copy(update={"max_examples": 16}))
    assert facts["examples"] == {"given": 48, "used": 16, "too_long": 0}
