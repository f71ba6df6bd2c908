"""A workspace from Python: each method does what the command of its name does, by the same verbs.

Methods return what the verbs return, in place of printed tables, and raise `PlumblineError`s. They print nothing;
those that take long call `tell` with a line for each step. A gate that says no is a result, not an error. They work in
a notebook, whose event loop runs, and in a script without `if __name__ == "__main__"`. Call one at a time.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from plumbline.data_contracts.errors import ModelError, UsageError
from plumbline.flows.cli.output import Output
from plumbline.flows.cli.process import borrowed_process

if TYPE_CHECKING:
    from plumbline.data_contracts.progress import Progress
    from plumbline.tasks.evaluation.compare_policies import Compared
    from plumbline.tasks.operations.promote_model import History, Promotion
    from plumbline.tasks.operations.serving.chat import Backend
    from plumbline.tasks.operations.settle_champion import Settled
    from plumbline.tasks.operations.take_feedback import TakenFeedback
    from plumbline.tasks.params.whole import Params
    from plumbline.tasks.pipeline.stage import Stage, StageRecord
    from plumbline.tasks.registry.audit_lineage import AuditReport

Tell = Callable[[str], object]
Paths = str | Path | Sequence[str | Path]
Settings = Mapping[str, Any] | Sequence[str]
Columns = Mapping[str, str]

_NO_COLUMNS: Columns = MappingProxyType({})


def init_workspace(folder: str | Path, *, recipe: str | None = None, remote: str | None = None) -> Workspace:
    """Make a folder a workspace, or complete one; `plumbline init`. Files that are there are kept.

    `recipe` is the one to start from, such as `sample_world`.
    """
    from plumbline.flows.graph.workspaces import init_workspace as make

    root = Path(folder).absolute()
    with borrowed_process():
        make(root, remote, recipe)
    return Workspace(root)


def open_workspace(folder: str | Path = ".") -> Workspace:
    """The workspace at or above a folder. Raises `UsageError` where there is none."""
    from plumbline.flows.graph.workspaces import find_workspace

    return Workspace(find_workspace(Path(folder).absolute()))


@dataclass(frozen=True, slots=True)
class Workspace:
    """A folder with params, data, models and reports. `open_workspace` and `init_workspace` give one."""

    root: Path

    def params(self, *, settings: Settings = ()) -> Params:
        """The params as they stand, or with settings over them; nothing is written. Raises `ParamsError`."""
        from plumbline.tasks.params.layers import load_params

        return load_params(self.root, (), _lines(settings))[0]

    def validate(
        self, files: Paths, source: str | None = None, *, columns: Columns = _NO_COLUMNS, settings: Settings = ()
    ) -> dict[str, Any]:
        """Check files against their contract and curate them; nothing is stored. `plumbline validate`.

        Without a source each file says its own. `columns` says which column of a table is which, as `--map` does.
        Returns the counts `read`, `accepted`, `merged` and `quarantined`, the `reasons` and their `shares`, and
        `quarantine_path`. `stopped` says why a run would stop, and is None where it would not.
        """
        from plumbline.flows.cli.feedback import require_source
        from plumbline.tasks.data.dry_run import try_files
        from plumbline.tasks.data.feedback.mapping import check_map

        if source is not None:
            require_source(source)
        check_map(columns)
        with borrowed_process(self.root):
            params = self.params(settings=settings)
            tried = try_files(
                self.root,
                source,
                _paths(files),
                params.feedback,
                params.curation,
                params.seed,
                columns=columns,
                trust_remote_code=params.reference.trust_remote_code,
            )
        return tried.report

    def ingest(self, files: Paths, source: str | None = None, *, columns: Columns = _NO_COLUMNS) -> TakenFeedback:
        """Take files into the append-only raw store, version and announce them; `plumbline ingest`.

        `source` and `columns` are those of `validate`; a file that does not say its source is refused.
        """
        from plumbline.flows.deployment.servers import server_url
        from plumbline.tasks.data.feedback.mapping import check_map
        from plumbline.tasks.operations.take_feedback import take_feedback

        check_map(columns)
        with borrowed_process(self.root):
            return take_feedback(self.root, self.params(), source, _paths(files), server_url(), columns=columns)

    def retrain(self, *, settings: Settings = (), overlays: Paths = (), tell: Tell | None = None) -> Settled:
        """Run the whole loop and register the model; `plumbline retrain`. What is up to date is reused.

        Returns `model_uri`, `alias_uris`, `passed`, `metrics`, `reasons` of the gate, and `stages`.
        """
        from plumbline.flows.cli import runner

        with borrowed_process(self.root):
            return runner.retrain_here(self.root, _places(overlays), _lines(settings), _Told(tell))[0]

    def compare(self, *, settings: Settings = (), overlays: Paths = (), tell: Tell | None = None) -> Compared:
        """Fine-tune and evaluate the variants of params `compare`, recommend one; `plumbline compare`.

        Returns `facts`, with figures and recommendation, the folder `report`, and the labels of variants that `failed`.
        """
        from plumbline.flows.cli import runner

        with borrowed_process(self.root):
            return runner.compare_here(self.root, _places(overlays), _lines(settings), _Told(tell))

    def audit(self, model: str | None = None, *, rehash: bool = True) -> AuditReport:
        """Walk a version to its raw feedback and re-hash every object; `plumbline audit`. The champion by default.

        Returns `verified`, `problems`, `notes`, `objects`, `timeline` and `lineage`.
        """
        from plumbline.tasks.registry.audit_lineage import audit_model

        with borrowed_process(self.root):
            params = self.params()
            uri = model or params.registry.model_name
            return audit_model(self.root, uri, params.registry, params.operations, rehash=rehash)

    def promote(
        self, model: str | None = None, *, reason: str, alias: str = "champion", override: str | None = None
    ) -> Promotion:
        """Give an alias to a version that passes its gates; `plumbline promote`. The candidate by default.

        `override` names who answers for it where a gate says no. Returns `promoted`, `gates` and `refused_by`.
        """
        from plumbline.tasks.operations import promote_model as verb

        named = None if override is None else verb.Override(override, reason)
        with borrowed_process(self.root):
            return verb.promote(self.root, self.params(), model, alias, reason=reason, override=named)

    def history(self, alias: str | None = None) -> History:
        """The promotion ledger, its chain verified: `entries`, `problems`, `moved_outside`; `plumbline history`."""
        from plumbline.tasks.operations.promote_model import promotion_history

        with borrowed_process(self.root):
            return promotion_history(self.root, self.params(), alias)

    def restore(self, model: str, to: str | Path) -> dict[str, Any]:
        """Bring back the dataset, π_ref, params and model of a version in a new folder; `plumbline restore`."""
        from plumbline.tasks.registry.restore_version import restore_version

        with borrowed_process(self.root):
            return restore_version(self.root, model, Path(to).absolute(), self.params().registry)

    def checkpoint(self, model: str | None = None) -> Path:
        """The folder of a version's checkpoint, verified: transformers and vLLM load it. The champion by default."""
        from plumbline.tasks.registry.store.client import Store
        from plumbline.tasks.registry.versions.registered import resolve
        from plumbline.tasks.registry.versions.serving_files import verified_model

        with borrowed_process(self.root):
            registry = self.params().registry
            store = Store(self.root, registry, read_only=True)
            return verified_model(store, resolve(store, model or registry.model_name), self.root)

    def load_champion(self, alias: str = "champion") -> ChatModel:
        """Load what `plumbline serve` would answer with: signature and every hash are verified first.

        Raises `UnknownModelError` where nobody holds the alias, and `SignatureError`.
        """
        from plumbline.tasks.operations.serve_model import load_answering

        with borrowed_process(self.root):
            return ChatModel(*load_answering(self.root, self.params(), alias))


class ChatModel:
    """A verified version that answers in this process. `uri` names it."""

    def __init__(self, uri: str, backend: Backend) -> None:
        self.uri = uri
        self._backend = backend

    def answer(self, messages: str | Sequence[Mapping[str, str]], **settings: Any) -> str:
        """The whole answer to a prompt or a conversation; settings as for `stream`."""
        return "".join(self.stream(messages, **settings))

    def stream(
        self,
        messages: str | Sequence[Mapping[str, str]],
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        stop: Sequence[str] = (),
        seed: int | None = None,
    ) -> Iterator[str]:
        """The answer, bit by bit. What is None is the checkpoint's, then that of params `serving`; a seed repeats it.

        Raises `UsageError` for messages without `role` and `content`, `ModelError` for what cannot be answered.
        """
        from plumbline.tasks.operations.serving.chat import BackendError, ChatRequest

        request = ChatRequest(_conversation(messages), max_tokens, temperature, top_p, tuple(stop), seed)
        try:
            for piece in self._backend.pieces(request, threading.Event()):
                yield piece.text
        except BackendError as error:
            raise ModelError(f"{self.uri}: {error}") from error

    def close(self) -> None:
        """Let go of the weights."""
        self._backend.close()


class _Told(Output):
    """The output of a command that a method stands for: a line to `tell` for each step, or none."""

    def __init__(self, tell: Tell | None) -> None:
        super().__init__(json=True)
        self._tell = tell

    def remark(self, text: str) -> None:
        if self._tell is not None:
            self._tell(text)

    def working(self, on: str) -> AbstractContextManager[object]:
        return nullcontext()

    def display(self, stages: list[Stage]) -> AbstractContextManager[object]:
        from plumbline.tasks.pipeline.watch import watched_by

        return watched_by(self)

    def started(self, stage: Stage) -> None:
        self.remark(f"{stage.title}: started")

    def progress(self, stage: Stage) -> Progress:
        from plumbline.data_contracts.progress import silent

        return silent

    def finished(self, stage: Stage, record: StageRecord) -> None:
        self.remark(f"{stage.title}: {'reused' if record.reused else f'{record.seconds:.1f} s'}")


def _conversation(messages: str | Sequence[Mapping[str, str]]) -> tuple[Any, ...]:
    from pydantic import ValidationError

    from plumbline.data_contracts.records import Message

    if isinstance(messages, str):
        return (Message(role="user", content=messages),)
    try:
        return tuple(Message.model_validate(message) for message in messages)
    except ValidationError as error:
        found = error.errors()[0]
        raise UsageError(
            f"messages: expected a text, or objects with role and content, found {found['msg']} in "
            f"{'.'.join(map(str, found['loc'])) or 'a message'}."
        ) from error


def _paths(files: Paths) -> list[str]:
    return [str(file) for file in ([files] if isinstance(files, str | Path) else files)]


def _places(files: Paths) -> list[Path]:
    return [Path(file) for file in _paths(files)]


def _lines(settings: Settings) -> list[str]:
    """Settings as the command line writes them: `KEY=VALUE`, whose value is JSON and so YAML."""
    if isinstance(settings, Mapping):
        return [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    return list(settings)
