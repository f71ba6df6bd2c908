"""Verb: serve what the registry's aliases name: versions verified, loaded, followed; answers logged.

Nothing is loaded but through `verified_model`: signature and every hash first.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plumbline.data_contracts.errors import ParamsError, UnknownModelError, UsageError
from plumbline.tasks.access.requests import checked
from plumbline.tasks.access.secret_files import make_secret, random_secret, read_secret
from plumbline.tasks.models.completion_lengths import evaluated_length
from plumbline.tasks.operations.promotion.gates import require_answering
from plumbline.tasks.operations.serving import log
from plumbline.tasks.operations.serving.canary import Canary
from plumbline.tasks.operations.serving.chat import Backend
from plumbline.tasks.operations.serving.local_backend import Defaults, LocalBackend, LocalSpec
from plumbline.tasks.operations.serving.log_writer import LogWriter
from plumbline.tasks.operations.serving.pseudonyms import pseudonyms
from plumbline.tasks.operations.serving.remote_backend import RemoteBackend
from plumbline.tasks.operations.serving.service import ChatService, Parts
from plumbline.tasks.operations.serving.shadow import first_held
from plumbline.tasks.operations.serving.shadow_process import ShadowProcess
from plumbline.tasks.operations.serving.signals import rule_detector
from plumbline.tasks.operations.serving.slots import Slot, Watcher
from plumbline.tasks.params.serving import BackendParams, ServingParams
from plumbline.tasks.params.whole import Params
from plumbline.tasks.registry.ledger import ledger
from plumbline.tasks.registry.ledger.verified_aliases import VerifiedAliases
from plumbline.tasks.registry.store.client import Store
from plumbline.tasks.registry.versions.registered import StoredFiles, resolve
from plumbline.tasks.registry.versions.serving_files import verified_model
from plumbline.tasks.storage.database import open_database

if TYPE_CHECKING:
    from starlette.types import ASGIApp

ACTOR = "plumbline serve"
_logger = logging.getLogger("plumbline.serve")


def serve_model(root: Path, params: Params, *, alias: str, port: int | None, ready: Callable[[str, str], None]) -> None:
    """Answer until a signal ends the process; `ready(url, version)` is called once it answers.

    Raises `UnknownModelError` if nobody holds the alias, `SignatureError` for a version that is not what was
    registered, `ModelError`, and `UsageError` where the port is taken.
    """
    import uvicorn

    serving = params.serving
    token = None if serving.anonymous else read_token(root, serving.token)
    with _listen(serving.host, serving.port if port is None else port) as listener:
        service = build_service(root, params, alias)
        app = application(service, serving, model_name=params.registry.model_name, token=token)
        config = uvicorn.Config(
            app,
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_graceful_shutdown=serving.limits.shutdown_s,
            h11_max_incomplete_event_size=32_768,
        )
        host, chosen = listener.getsockname()[:2]
        listener.listen()  # from here on a request waits; one that comes after `ready` must not be refused
        ready(f"http://{host}:{chosen}", str(service.parts.champion.uri))
        # uvicorn raises the signal that ended it once more, which by default would end us as if it had been unexpected
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        uvicorn.Server(config).run([listener])


def application(service: ChatService, serving: ServingParams, *, model_name: str, token: str | None) -> ASGIApp:
    """The application: the endpoints, behind the checks of Host and Origin."""
    from plumbline.tasks.operations.serving.app import create_app

    app = create_app(service, model_name=model_name, token=token)
    return checked(app, host=serving.host, allowed_hosts=serving.allowed_hosts, allowed_origins=serving.allowed_origins)


def load_answering(root: Path, params: Params, alias: str) -> tuple[str, Backend]:
    """The version that an alias of those who answer people names, and its backend: verified, then loaded once.

    Raises as `serve_model`.
    """
    require_answering(alias, "alias")
    store = Store(root, params.registry)
    uri = VerifiedAliases(ledger.open_ledger(root, params.operations), store).find(alias)
    if uri is None:
        raise _held_by_nobody(params, alias)
    return uri, load(root, params, store, params.serving.champion, uri)


def _held_by_nobody(params: Params, alias: str) -> UnknownModelError:
    return UnknownModelError(
        f"models:/{params.registry.model_name}@{alias}: nobody holds this alias. `plumbline promote` gives it to a "
        "version that passes its gates."
    )


def build_service(root: Path, params: Params, alias: str) -> ChatService:
    """A service whose champion is loaded. A challenger that cannot be is an alert, and tried again later.

    Raises `UsageError` for an alias, of all users or of the canary's, that is given without the gates of what answers.
    """
    serving = params.serving
    require_answering(alias, "--alias")
    if serving.canary.share > 0:
        require_answering(serving.canary.alias, "serving.canary.alias")
    store = Store(root, params.registry)
    engine = open_database(root, params.operations, log.METADATA)
    find = VerifiedAliases(ledger.open_ledger(root, params.operations), store).find
    champion = Slot(
        "champion", alias, find, partial(load, root, params, store, serving.champion), retry_s=serving.retry_s
    )
    champion.refresh(must=True)
    if champion.uri is None:
        raise _held_by_nobody(params, alias)
    slots = [champion]
    duties: dict[str, tuple[float, Callable[[], object]]] = {}
    shadow = canary = None
    if serving.shadow.share > 0:
        shade = partial(load_shadow, root, params, store)
        shadow = Slot(
            "shadow",
            serving.shadow.alias,
            first_held(find, serving.shadow.fallback),
            shade,
            retry_s=serving.retry_s,
            beside=champion,
        )
        slots.append(shadow)
    if serving.canary.share > 0:
        challenge = partial(load, root, params, store, serving.challenger)
        challenger = Slot("canary", serving.canary.alias, find, challenge, retry_s=serving.retry_s)
        slots.append(challenger)
        on_return = partial(record_return, root, params, store)
        canary = Canary(engine, challenger, champion, serving.canary, on_return, _now)
        challenger.refresh()
        canary.check()
        duties["canary"] = (serving.canary.check_s, canary.check)
    for slot in slots:
        duties[f"alias of the {slot.role}"] = (serving.poll_s, slot.refresh)
    parts = Parts(
        champion=champion,
        writer=LogWriter(partial(log.record_all, engine), serving.log.queue),
        feedback=partial(log.add_feedback, engine),
        detect=rule_detector(serving.safety),
        clock=_now,
        pseudonym=pseudonyms(root, serving.log.user_key),
        shadow=shadow,
        canary=canary,
        watcher=Watcher(duties),
        slots=slots[1:],
    )
    return ChatService(parts, serving)


def load(root: Path, params: Params, store: Store, backend: BackendParams, uri: str) -> Backend:
    """The backend of a version, in this process or at a URL.

    The version is verified either way. Of a server at a URL only the registered version is: which weights the server
    itself loaded under that name nothing here can prove, and the log says so.
    """
    version = resolve(store, uri)
    folder = verified_model(store, version, root)
    if backend.kind == "transformers":
        return LocalBackend.load(_spec(folder, params, backend, StoredFiles(store, version).manifest()))
    limits = params.serving.limits
    remote = RemoteBackend(
        str(backend.url),
        backend.model.replace("{name}", version.name).replace("{version}", version.number),
        key=_from_environment(backend.token, "token") if backend.token else None,
        timeout_s=backend.timeout_s,
        lanes=limits.in_flight,
        most_tokens=limits.tokens,
    )
    remote.require_model()
    _logger.warning("%s is verified as registered; that %s serves these weights is not proven.", uri, backend.url)
    return remote


def load_shadow(root: Path, params: Params, store: Store, uri: str) -> Backend:
    """The backend of mirrored requests: as `load`, but a checkpoint gets a process of its own at low priority."""
    backend, shadow = params.serving.challenger, params.serving.shadow
    if backend.kind == "openai":
        return load(root, params, store, backend, uri)
    version = resolve(store, uri)
    folder = verified_model(store, version, root)
    spec = _spec(folder, params, backend, StoredFiles(store, version).manifest())
    return ShadowProcess(spec, nice=shadow.nice, timeout_s=shadow.timeout_s)


def record_return(root: Path, params: Params, store: Store, reason: str, evidence: Mapping[str, Any]) -> None:
    """Take the alias from a challenger that was sent back, on the ledger; not where another version has it by now."""
    number = str(evidence["challenger"]).rsplit("/", 1)[-1]
    ledger.move_alias(
        ledger.open_ledger(root, params.operations),
        store,
        alias=params.serving.canary.alias,
        version=None,
        expected=number,
        action="rollback",
        actor=ACTOR,
        reason=reason,
        evidence=evidence,
    )


def key_file(root: Path) -> Path:
    """The file of the key that requests carry if params name no other."""
    return root / ".plumbline" / "serving" / "key"


def token_place(root: Path, serving: ServingParams) -> str | None:
    """The place of the bearer token, in words for a person; None if none is asked for."""
    return None if serving.anonymous else serving.token or str(key_file(root))


def read_token(root: Path, place: str | None) -> str:
    """The bearer token that params point to, or the workspace's own, made on first use.

    Raises `ParamsError` if there is none, `UsageError` where others may read the workspace's own.
    """
    if place is None:
        found = read_secret(key_file(root)) or make_secret(key_file(root), f"{random_secret()}\n".encode())
        return _not_empty(found.decode().strip(), str(key_file(root)))
    if place.startswith("$"):
        return _from_environment(place, "serving.token")
    try:
        token = (root / place).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ParamsError(f"serving.token: expected a readable file {place}, found {error.strerror}.") from error
    return _not_empty(token, place)


def _not_empty(token: str, place: str) -> str:
    if not token:
        raise ParamsError(f"serving.token: expected a token in {place}, found an empty file. Write one into it.")
    return token


def _from_environment(name: str, key: str) -> str:
    value = os.environ.get(name[1:], "")
    if not value:
        raise ParamsError(f"{key}: expected a token in the environment variable {name[1:]}, found none. Export it.")
    return value


def _spec(folder: Path, params: Params, backend: BackendParams, manifest: Mapping[str, Any]) -> LocalSpec:
    serving, limits = params.serving, params.serving.limits
    tokens = limits.default_tokens or min(evaluated_length(manifest), limits.tokens)
    defaults = Defaults(serving.temperature, serving.top_p, tokens, limits.tokens)
    return LocalSpec(folder, defaults, backend.dtype, params.threads, params.reference.trust_remote_code)


def _listen(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise UsageError(
            f"cannot listen on {host}:{port} ({error.strerror}). Set serving.host or serving.port, or end what listens "
            "there."
        ) from error
    return listener


def _now() -> datetime:
    return datetime.now(UTC)
