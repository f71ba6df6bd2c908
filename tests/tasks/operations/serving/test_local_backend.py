"""The checkpoint in this process, and in one of its own: the sampler's tokens, the request's settings."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from plumbline.data_contracts.records import Message
from plumbline.tasks.models.chat import encode_prompts, set_default_template
from plumbline.tasks.models.loading import load_policy, load_tokenizer, save_model
from plumbline.tasks.models.sampling import sample, stop_token_ids
from plumbline.tasks.models.streaming import stream_ids
from plumbline.tasks.operations.serving.chat import BackendError, ChatRequest, Piece
from plumbline.tasks.operations.serving.local_backend import Defaults, LocalBackend, LocalSpec
from plumbline.tasks.operations.serving.shadow_process import ShadowProcess, in_two
from tests.tasks.models.tiny_llama import build_model, build_tokenizer

DEFAULTS = Defaults(temperature=1.0, top_p=1.0, tokens=12, most_tokens=20)
TURNS = (Message(role="user", content="name a colour"),)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served")
    tokenizer = build_tokenizer()
    set_default_template(tokenizer)
    save_model(build_model(len(tokenizer)), tokenizer, path)
    return path


def say(backend: Any, **settings: Any) -> tuple[str, Any]:
    pieces = list(backend.pieces(ChatRequest(TURNS, **settings), threading.Event()))
    return "".join(piece.text for piece in pieces), pieces[-1]


@pytest.mark.parametrize(("temperature", "top_p"), [(0.0, 1.0), (1.0, 1.0), (0.7, 0.6)])
def test_streams_the_tokens_that_the_sampler_draws(folder: Path, temperature: float, top_p: float) -> None:
    model, tokenizer = load_policy(folder).eval(), load_tokenizer(folder)
    for seed in range(3):
        (whole,) = sample(
            model, tokenizer, [TURNS], max_new_tokens=16, temperature=temperature, top_p=top_p, seed=seed, batch_size=1
        )
        draws = torch.rand(16, generator=torch.Generator().manual_seed(seed))
        (head,) = encode_prompts(tokenizer, [TURNS])
        stops = stop_token_ids(model, tokenizer)
        streamed = stream_ids(model, head, draws, stops=stops, temperature=temperature, top_p=top_p)
        assert tuple(streamed) == whole.token_ids
        backend = LocalBackend(model, tokenizer, DEFAULTS)
        text, last = say(backend, temperature=temperature, top_p=top_p, seed=seed, max_tokens=16)
        assert (text, last.completion_tokens) == (whole.text, len(whole.token_ids))
        assert last.finish == ("stop" if whole.finished else "length")


def test_the_checkpoints_settings_hold_where_the_request_says_nothing(folder: Path) -> None:
    model, tokenizer = load_policy(folder), load_tokenizer(folder)
    model.generation_config.temperature = 0.0
    model.generation_config.max_new_tokens = 3
    backend = LocalBackend(model, tokenizer, DEFAULTS)
    assert say(backend, seed=1)[0] == say(backend, seed=2)[0]
    assert say(backend)[1].completion_tokens <= 3
    assert say(backend, max_tokens=500)[1].completion_tokens <= DEFAULTS.most_tokens


def test_a_conversation_that_fills_the_context_is_the_users_error(folder: Path) -> None:
    backend = LocalBackend.load(LocalSpec(folder, DEFAULTS))
    request = ChatRequest((Message(role="user", content="colour " * 5000),))
    with pytest.raises(BackendError, match="Shorten them") as refused:
        list(backend.pieces(request, threading.Event()))
    assert (refused.value.status, refused.value.code) == (400, "context_length_exceeded")


def test_nothing_comes_after_a_cancel(folder: Path) -> None:
    backend = LocalBackend.load(LocalSpec(folder, DEFAULTS))
    cancelled = threading.Event()
    cancelled.set()
    assert list(backend.pieces(ChatRequest(TURNS), cancelled)) == []


@pytest.mark.slow
def test_a_process_of_its_own_says_the_same_at_low_priority_and_ends_when_killed(folder: Path) -> None:
    import psutil

    spec = LocalSpec(folder, DEFAULTS)
    shadow = ShadowProcess(spec, nice=5, timeout_s=60)
    try:
        (said, last), (here, end) = say(shadow, seed=3), say(LocalBackend.load(spec), seed=3)
        assert (said, last.finish, last.completion_tokens) == (here, end.finish, end.completion_tokens)
        process = psutil.Process(shadow.pid)
        assert process.nice() == psutil.Process().nice() + 5
        with pytest.raises(BackendError) as refused:
            list(shadow.pieces(ChatRequest((Message(role="user", content="colour " * 5000),)), threading.Event()))
        assert refused.value.status == 400
        assert shadow.alive()
        process.kill()
        with pytest.raises(BackendError, match="cannot answer"):
            say(shadow)
        assert not shadow.alive()
    finally:
        shadow.close()


def test_a_mirrored_answer_crosses_in_its_first_bit_and_the_rest() -> None:
    said = [Piece("one"), Piece(" two"), Piece(" three", "stop", 4, 3)]
    assert list(in_two(said)) == [Piece("one"), Piece(" two three", "stop", 4, 3)]
    assert list(in_two(said[2:])) == said[2:]
    assert list(in_two([])) == []


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_loaded_is_told_by_its_own_error(tmp_path: Path) -> None:
    from plumbline.data_contracts.errors import ModelError

    with pytest.raises(ModelError):
        ShadowProcess(LocalSpec(tmp_path, DEFAULTS), nice=0, timeout_s=60)
