"""The verb's joints: tokens, ports, versions verified as they are loaded. The whole: tests/flows/test_serving.py."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from plumbline.data_contracts.errors import ParamsError, RegistryError, SignatureError, UnknownModelError, UsageError
from plumbline.data_contracts.records import Message
from plumbline.tasks.models.chat import set_default_template
from plumbline.tasks.models.loading import save_model
from plumbline.tasks.operations import serve_model
from plumbline.tasks.operations.serving.chat import ChatRequest
from plumbline.tasks.params.serving import ServingParams
from plumbline.tasks.params.whole import Params
from plumbline.tasks.registry.store.client import Store
from plumbline.tasks.registry.versions.registered import StoredFiles, resolve
from tests.tasks.conftest import World
from tests.tasks.models.tiny_llama import build_model, build_tokenizer


def test_a_token_comes_from_the_environment_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("from file\n")
    (tmp_path / "empty").write_text("\n")
    monkeypatch.setenv("SERVING_TOKEN", "from environment")
    monkeypatch.delenv("SERVING_UNSET", raising=False)
    assert serve_model.read_token(tmp_path, "$SERVING_TOKEN") == "from environment"
    assert serve_model.read_token(tmp_path, "token") == "from file"
    for place in ("$SERVING_UNSET", "empty", "missing"):
        with pytest.raises(ParamsError, match=place.lstrip("$")):
            serve_model.read_token(tmp_path, place)


def test_without_a_token_in_params_a_random_one_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    made = serve_model.read_token(tmp_path, None)
    assert len(made) >= 40 and made == serve_model.read_token(tmp_path, None)
    key = serve_model.key_file(tmp_path)
    assert [oct(path.stat().st_mode & 0o777) for path in (key, key.parent)] == ["0o600", "0o700"]
    assert made != serve_model.read_token(tmp_path / "another", None)
    key.chmod(0o644)
    with pytest.raises(UsageError, match="only its owner can read"):
        serve_model.read_token(tmp_path, None)


def test_no_token_is_a_choice_for_loopback_alone(tmp_path: Path) -> None:
    assert serve_model.token_place(tmp_path, ServingParams()) == str(serve_model.key_file(tmp_path))
    assert serve_model.token_place(tmp_path, ServingParams(anonymous=True)) is None
    with pytest.raises(ValidationError, match="anonymous"):
        ServingParams(anonymous=True, host="0.0.0.0")


def test_a_taken_port_is_said() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UsageError, match=r"cannot listen on 127\.0\.0\.1"):
            serve_model._listen("127.0.0.1", taken.getsockname()[1])


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"host": "0.0.0.0", "anonymous": True}, "anonymous is true"),
        ({"champion": {"kind": "openai"}}, "url is null"),
        ({"champion": {"kind": "openai", "url": "http://u:p@h/v1"}}, "without a password"),
        ({"limits": {"tokens": 10, "default_tokens": 20}}, "default_tokens 20 is above"),
        ({"safety": {"asks": ["("]}}, "regular expression"),
        ({"canary": {"share": 0.6}}, "less than or equal to 0.5"),
    ],
)
def test_params_that_contradict_one_another_are_refused(given: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ServingParams.model_validate(given)
    assert ServingParams.model_validate({"host": "0.0.0.0", "token": "$T"}).host == "0.0.0.0"


@pytest.mark.slow
def test_a_registered_checkpoint_is_verified_loaded_and_answers_and_a_changed_one_is_not(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def body(stage: str, folder: Path, root: Path, values: dict[str, object]) -> dict[str, object]:
        if stage != "finetune":
            return plain(stage, folder, root, values)
        tokenizer = build_tokenizer()
        set_default_template(tokenizer)
        save_model(build_model(len(tokenizer)), tokenizer, folder)
        return {}

    module = type(world).write.__globals__
    plain = module["_body"]
    monkeypatch.setitem(module, "_body", body)
    world.register()
    params = Params.model_validate({"serving": {"shadow": {"share": 0.0}}})
    service = serve_model.build_service(world.root, params, "champion")
    served = service.parts.champion.begin()
    assert served is not None and served.uri == "models:/assistant/1"
    request = ChatRequest((Message(role="user", content="name a colour"),), seed=1, max_tokens=4)
    assert list(served.backend.pieces(request, threading.Event()))[-1].finish in ("stop", "length")
    served.end()
    service.close()

    store = Store(world.root, params.registry)
    weights = StoredFiles(store, resolve(store, "models:/assistant/1")).folder / "model/model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.chmod(0o644)
    weights.write_bytes(data)
    with pytest.raises(SignatureError):
        serve_model.build_service(world.root, params, "champion")
    with pytest.raises(UnknownModelError, match="nobody holds this alias"):
        serve_model.build_service(world.root, params, "challenger")


@pytest.mark.slow
@pytest.mark.parametrize("alias", ["candidate", "shadow", "previous", "no-such"])
def test_only_aliases_behind_the_gates_of_what_answers_people_are_served(
    world: World, loaded: None, alias: str
) -> None:
    world.register()  # candidate and, with every gate passed, champion
    canary = {"shadow": {"share": 0.0}, "canary": {"share": 0.1, "alias": alias}}
    quiet = Params.model_validate({"serving": {"shadow": {"share": 0.0}}})
    with pytest.raises(UsageError, match=rf"^--alias '{alias}'.*\(challenger, champion\)"):
        serve_model.build_service(world.root, quiet, alias)
    with pytest.raises(UsageError, match=rf"^serving\.canary\.alias '{alias}'"):
        serve_model.build_service(world.root, Params.model_validate({"serving": canary}), "champion")


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints are verified, and stood for by a backend that needs no weights."""
    backend = SimpleNamespace(lanes=1, alive=lambda: True, close=lambda: None)
    monkeypatch.setattr(serve_model.LocalBackend, "load", lambda spec: backend)


@pytest.mark.slow
def test_an_alias_that_was_moved_outside_the_ledger_is_not_followed(world: World, loaded: None) -> None:
    world.register()
    world.set(finetune={"dpo": {"beta": 0.2}})
    world.register()
    params = Params.model_validate({"serving": {"shadow": {"share": 0.0}}})
    service = serve_model.build_service(world.root, params, "champion")
    client = Store(world.root, params.registry).client
    client.set_registered_model_alias("assistant", "champion", "2")
    champion = service.parts.champion
    assert not champion.refresh()
    assert champion.uri == "models:/assistant/1"
    assert champion.alert is not None and "moved outside the ledger" in champion.alert
    with pytest.raises(RegistryError, match="moved outside the ledger"):
        serve_model.build_service(world.root, params, "champion")
    client.set_registered_model_alias("assistant", "champion", "1")
    assert not champion.refresh()
    assert champion.alert is None
    service.close()


@pytest.mark.slow
def test_a_version_behind_a_url_is_verified_and_its_server_is_not_vouched_for(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world.register()
    monkeypatch.setattr(serve_model.RemoteBackend, "require_model", lambda self: None)
    remote = {"kind": "openai", "url": "http://127.0.0.1:9/v1"}
    params = Params.model_validate({"serving": {"champion": remote, "shadow": {"share": 0.0}}})
    store, backend = Store(world.root, params.registry), params.serving.champion
    serve_model.load(world.root, params, store, backend, "models:/assistant/1").close()
    assert "that http://127.0.0.1:9/v1 serves these weights is not proven" in caplog.text
    config = StoredFiles(store, resolve(store, "models:/assistant/1")).folder / "model/config.json"
    config.chmod(0o644)
    config.write_text("{}")
    with pytest.raises(SignatureError):
        serve_model.load(world.root, params, store, backend, "models:/assistant/1")
