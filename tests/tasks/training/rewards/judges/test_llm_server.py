"""The judge against a real `transformers serve` process: a model that learned a rubric, and two that did not."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.import_utils import is_serve_available

from plumbline.data_contracts.errors import JudgeError
from plumbline.data_contracts.records import Message
from plumbline.tasks.models.chat import set_default_template
from plumbline.tasks.models.loading import load_tokenizer, save_model, seed_everything
from plumbline.tasks.models.tiny import Encoded, encode, train_tokenizer
from plumbline.tasks.params.llm_judge import LlmJudgeParams
from plumbline.tasks.params.tiny_model import TinyModelParams
from plumbline.tasks.training.rewards.judges.llm import LlmJudge
from plumbline.tasks.training.rewards.judges.rubric import Rubric, ask, load_rubric

pytestmark = pytest.mark.skipif(not is_serve_available(), reason="transformers serve needs fastapi, uvicorn and openai")

RUBRIC = """
name = "tiny"
version = 1
system = "Data: $fence"
pairwise = "Which is good?"
listwise = "Rank $count."
"""
WORDS = ["stone", "river", "cloud", "paper", "chair", "music", "window", "garden"]
BATCH, MOST_STEPS, LEARNED = 16, 300, 0.003  # nats a token of the answer; 0.09 is a coin's
HELD_OUT = "mountain"


@pytest.fixture(scope="module")
def rubric_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rubric") / "tiny.toml"
    path.write_text(RUBRIC)
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, rubric_file: Path) -> dict[str, Path]:
    """Folders of a judge before and after about 80 steps on "the good one wins"."""
    folder = tmp_path_factory.mktemp("models")
    seed_everything(0, 1)
    rubric, draw = load_rubric(str(rubric_file)), random.Random(0)
    lessons = [lesson(rubric, draw) for _ in range(BATCH * MOST_STEPS // 3)]
    tokenizer = train_tokenizer(lessons[:200], TinyModelParams(vocab_size=400, max_position_embeddings=512))
    model = build(tokenizer)
    save_model(model, tokenizer, folder / "untrained")
    teach(model, encode(tokenizer, lessons))
    save_model(model, tokenizer, folder / "trained")
    return {name: folder / name for name in ("untrained", "trained")}


def lesson(rubric: Rubric, draw: random.Random) -> list[Message]:
    texts = [f"{word} {draw.choice(WORDS)}" for word in draw.sample(["good", "bad"], 2)]
    prompt = (Message(role="user", content=draw.choice(WORDS)),)
    question = ask(rubric, "pairwise", prompt, texts, (0, 1))
    answer = '{"winner": "A"}' if texts[0].startswith("good") else '{"winner": "B"}'
    turns = [Message.model_validate(message) for message in question.messages]
    return [*turns, Message(role="assistant", content=answer)]


def build(tokenizer: PreTrainedTokenizerFast) -> Any:
    """A Llama: for a Qwen3 `transformers serve` 5.23 reads answers by Qwen's own template, and repeats the prompt."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=64**-0.5,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


def teach(model: Any, lessons: list[Encoded]) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.98))
    pad = model.config.pad_token_id
    for step in range(MOST_STEPS):
        start = step * BATCH % len(lessons)
        batch = lessons[start : start + BATCH]
        longest = max(len(one.ids) for one in batch)
        ids = torch.tensor([one.ids + [pad] * (longest - len(one.ids)) for one in batch])
        spoken = torch.tensor([one.spoken + [False] * (longest - len(one.ids)) for one in batch])
        loss = model(input_ids=ids, labels=ids.masked_fill(~spoken, -100)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if loss.item() < LEARNED:
            return
    pytest.fail(f"the tiny judge did not learn its rubric: {loss.item():.4f} nats a token after {MOST_STEPS} steps")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A `transformers serve` process of its own group, on a free port, ended at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "serve.log"
    program = Path(sys.executable).with_name("transformers")
    command = [program, "serve", "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)
    try:
        until_healthy(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def until_healthy(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 180
    while time.monotonic() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"transformers serve did not come up:\n{log.read_text()[-2000:]}")


def make(url: str, model: Path, rubric: Path, folder: Path, **params: Any) -> LlmJudge:
    settings = {"base_url": url, "model": str(model), "rubric": str(rubric), "max_tokens": 16, "max_retries": 1}
    return LlmJudge(LlmJudgeParams(**{**settings, **params}), folder)


def groups() -> list[list[str]]:
    """Pairs that were taught and, for half, a word that was not."""
    return [[f"good {one}", f"bad {other}"] for one, other in zip(WORDS, [*WORDS[4:], *[HELD_OUT] * 4], strict=True)]


def prompts(number: int) -> list[tuple[Message, ...]]:
    return [(Message(role="user", content="cloud"),)] * number


def test_a_model_that_learned_the_rubric_judges(
    url: str, models: dict[str, Path], rubric_file: Path, tmp_path: Path
) -> None:
    """16 answers about 8 pairs in both orders, all verdicts; the good one wins, wherever it stands, and again."""
    verdicts = []
    for attempt, concurrency in (("first", 1), ("second", 4)):
        judge = make(url, models["trained"], rubric_file, tmp_path / attempt, order="both", concurrency=concurrency)
        verdicts.append(judge.judge(prompts(8), groups()))
    first, second = verdicts
    assert (first.counts["requests"], first.counts["unusable"], first.counts["retries"]) == (16, 0, 0)
    # the shortest answer: {"winner": "A"} in this tokenizer, and the end token
    assert first.counts["prompt_tokens"] > 16 * 50
    assert 16 * 3 <= first.counts["completion_tokens"] <= 16 * 16
    good_wins = [judgement.wins[0, 1] for judgement in first.judgements if judgement is not None]
    assert len(good_wins) == 8
    assert np.mean(good_wins) >= 0.75
    for left, right in zip(first.judgements, second.judgements, strict=True):
        assert left is not None
        assert right is not None
        np.testing.assert_array_equal(left.wins, right.wins)


def test_a_model_that_knows_no_rubric_is_never_taken_at_a_guess(
    url: str, models: dict[str, Path], rubric_file: Path, tmp_path: Path
) -> None:
    judge = make(url, models["untrained"], rubric_file, tmp_path, max_unusable_share=1)
    verdicts = judge.judge(prompts(8), groups())
    assert verdicts.judgements == [None] * 8
    assert (verdicts.counts["unusable"], verdicts.counts["unusable_answers"], verdicts.counts["requests"]) == (8, 8, 8)
    strict = make(url, models["untrained"], rubric_file, tmp_path, max_unusable_share=0.2)
    with pytest.raises(JudgeError, match=r"expected verdicts, found none for 2 of 8 groups"):
        strict.judge(prompts(8), groups())


def test_a_real_story_teller_tells_stories_and_judges_nothing(
    url: str, shared: Path, rubric_file: Path, tmp_path: Path
) -> None:
    source = shared / "models" / "stories260K"
    if not source.is_dir():
        pytest.skip("../shared/models/stories260K is not here")
    tokenizer = load_tokenizer(source)
    set_default_template(tokenizer)
    save_model(LlamaForCausalLM.from_pretrained(source), tokenizer, tmp_path / "model")
    judge = make(url, tmp_path / "model", rubric_file, tmp_path / "cache", max_unusable_share=1)
    verdicts = judge.judge(prompts(2), groups()[:2])
    assert verdicts.judgements == [None, None]
    assert sum(verdicts.counts.get(f"unusable/{reason}", 0) for reason in ("truncated", "not_json")) == 2


def test_a_model_that_is_not_there_stops_the_run(url: str, rubric_file: Path, tmp_path: Path) -> None:
    judge = make(url, tmp_path / "no-such-model", rubric_file, tmp_path / "cache", max_retries=0)
    with pytest.raises(JudgeError, match=r"no-such-model at http://127\.0\.0\.1"):
        judge.judge(prompts(1), [["good", "bad"]])
