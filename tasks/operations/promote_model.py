"""Verbs of promotion: give an alias to a version that shows what params ask for, take it back, show the history.

Every version is verified (signature, seal, every hash) before it is looked at. What moves an alias, an override of
failing gates included, stands in the ledger: who, when, why, on what evidence. A refusal moves nothing.
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Engine

from plumbline.data_contracts.errors import PlumblineError, RegistryRefused, SignatureError, UsageError, VersioningError
from plumbline.tasks.evaluation.measures.gate import GateFigures, GateResult, examine
from plumbline.tasks.models.completion_lengths import evaluated_length
from plumbline.tasks.operations.compare_champion import Sampling, compare_champion, measure_latency
from plumbline.tasks.operations.promotion.gates import GATES_OF
from plumbline.tasks.params.lengths import with_length
from plumbline.tasks.params.whole import Params
from plumbline.tasks.registry.ledger import ledger as books
from plumbline.tasks.registry.ledger.ledger import Action, LedgerEntry, Move, alias_state
from plumbline.tasks.registry.store.client import Store
from plumbline.tasks.registry.versions.champions import champion_before, was_champion
from plumbline.tasks.registry.versions.registered import (
    CANDIDATE,
    CHAMPION,
    MANIFEST_TAG,
    REGISTRATION,
    StoredFiles,
    Version,
    resolve,
)
from plumbline.tasks.registry.versions.serving_files import verified_model, verified_version
from plumbline.tasks.storage.versioning.git import run_git

PREVIOUS = "previous"
SIGNED = "signature"  # the gate that no override helps over
ACTOR = "PLUMBLINE_ACTOR"


@dataclass(frozen=True, slots=True)
class Override:
    """The person who answers for a promotion that a gate refused, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Promotion:
    """The result: `promoted` or not, each gate, the lines added to the ledger, what was repaired first."""

    model_uri: str
    alias: str
    before: str | None
    promoted: bool
    gates: list[GateResult]
    lines: list[LedgerEntry] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)

    @property
    def refused_by(self) -> list[GateResult]:
        """The gates that said no."""
        return [gate for gate in self.gates if not gate.passed]


@dataclass(frozen=True, slots=True)
class History:
    """A model's ledger, oldest line first, what is wrong with it, and aliases that were moved outside it."""

    entries: list[LedgerEntry]
    problems: list[str]
    moved_outside: dict[str, dict[str, str | None]]


def promote(
    root: Path,
    params: Params,
    model: str | None = None,
    alias: str = CHAMPION,
    *,
    reason: str,
    override: Override | None = None,
    actor: str | None = None,
    retry_of: Mapping[str, Any] | None = None,
    asked_as: Literal["promote", "assign"] = "promote",
) -> Promotion:
    """Give `alias` to a version (by default the candidate) that passes every gate before it, or whose override is kept.

    `asked_as` is "assign" where registration asks, and nobody. `retry_of` is what ended its last try with this alias:
    it is kept in the line, which is written even where the version holds the alias again.

    Raises `SignatureError` for a version that is not what was registered (no override helps), `RegistryError` when
    another promotion won meanwhile or the alias was moved outside.
    """
    _require_words(reason, override)
    if alias not in GATES_OF:
        raise UsageError(f"--alias {alias[:40]!r}: expected one of {', '.join(GATES_OF)}.")
    store, engine = _open(root, params)
    repaired = books.settle(engine, store)
    version = _resolve(store, model or f"models:/{params.registry.model_name}@{CANDIDATE}")
    state = alias_state(books.history(engine, version.name))
    before = state[alias].version if alias in state else None
    held = before == version.number and alias not in books.moved_outside(engine, store)
    if held and retry_of is None:
        raise UsageError(f"{version.uri} is {alias} already. See `plumbline history`.")
    manifest, gates = _examine(root, params, store, version, alias, _rival(store, state))
    failing = [gate for gate in gates if not gate.passed]
    if failing and override is None:
        return Promotion(version.uri, alias, before, False, gates, repaired=repaired)
    action: Action = "override" if failing else asked_as if retry_of is None else "retry"
    evidence = _evidence(version, manifest, gates, override if failing else None)
    lines = books.move_aliases(
        engine,
        store,
        _moves(store, state, alias, version.number),
        action=action,
        actor=actor or current_actor(root),
        reason=reason,
        evidence=evidence if retry_of is None else {**evidence, "retry_of": dict(retry_of)},
    )
    return Promotion(version.uri, alias, before, True, gates, lines, repaired)


def promote_first(root: Path, params: Params, model: str) -> Promotion | None:
    """`promote` a version just registered to champion, if there never was one; None if there was.

    Nobody can be compared with, which its gate says; all else is measured and held to params, as for every champion.
    Raises as `promote`.
    """
    if had_champion(root, params):
        return None
    reason = "registered, and no champion before it"
    return promote(root, params, model, reason=reason, actor=REGISTRATION, asked_as="assign")


def had_champion(root: Path, params: Params) -> bool:
    """Tell if a version ever was champion, by the ledger or by MLflow alone. Raises as `promote`."""
    store, engine = _open(root, params)
    books.settle(engine, store)
    state = alias_state(books.history(engine, params.registry.model_name))
    return CHAMPION in state or CHAMPION in books.moved_outside(engine, store)


def rollback(root: Path, params: Params, *, reason: str, to: str | None = None, actor: str | None = None) -> Promotion:
    """Give `champion` back to an earlier version (by default `previous`), verified with all that its answers need.

    No gate stands in the way of one that was champion, and nothing is measured: it takes seconds. A version that never
    was is held to every gate of a champion first. An alias that was moved outside the ledger is taken over, on record.
    `previous` becomes the champion before the one returned to, so that a second rollback goes further back and never to
    the version just left. Raises `SignatureError`, `RegistryError`, `UsageError`.
    """
    _require_words(reason, None)
    store, engine = _open(root, params)
    repaired = books.settle(engine, store)
    entries = books.history(engine, params.registry.model_name)
    state = alias_state(entries)
    version = _resolve(store, to) if to is not None else _previous(store, state)
    before = state[CHAMPION].version if CHAMPION in state else None
    if before == version.number and CHAMPION not in books.moved_outside(engine, store):
        raise UsageError(f"{version.uri} is champion already: there is nothing to roll back to. Name one with --to.")
    verified_model(store, version, root)
    gates: list[GateResult] = []
    if not was_champion(entries, version.number):
        _, gates = _examine(root, params, store, version, CHAMPION, _rival(store, state))
        if not all(gate.passed for gate in gates):
            return Promotion(version.uri, CHAMPION, before, False, gates, repaired=repaired)
    measured = {"gates": [gate.as_dict() for gate in gates]} if gates else {}
    lines = books.move_aliases(
        engine,
        store,
        _moves_back(store, entries, state, version.number),
        action="rollback",
        actor=actor or current_actor(root),
        reason=reason,
        evidence={"manifest_sha256": version.tags[MANIFEST_TAG], "verified": True, **measured},
        outside="record",
    )
    return Promotion(version.uri, CHAMPION, before, True, gates, lines, repaired)


def champion_of(root: Path, params: Params) -> Version | None:
    """The version that the ledger says is champion; None if there is none yet.

    Raises `RegistryError` when MLflow says another (moved outside), `SignatureError` when the ledger is not whole.
    """
    store, engine = _open(root, params)
    books.settle(engine, store)
    strange = books.moved_outside(engine, store).get(CHAMPION)
    if strange is not None:
        raise RegistryRefused(
            f"{params.registry.model_name}@{CHAMPION}: moved outside the ledger: the ledger says version "
            f"{strange['ledger'] or 'none'}, MLflow says {strange['mlflow'] or 'none'}. No line is for the latter. "
            f"`plumbline rollback --to MODEL --reason …` settles it, on record."
        )
    return _champion(store, alias_state(books.history(engine, params.registry.model_name)))


def previous_of(root: Path, params: Params) -> Version | None:
    """The version that `previous` names in the ledger: the champion before; None if there is none any more."""
    store, engine = _open(root, params)
    state = alias_state(books.history(engine, params.registry.model_name))
    number = state[PREVIOUS].version if PREVIOUS in state else None
    return _previous(store, state) if number is not None and books.is_live(store, number) else None


def promotion_history(root: Path, params: Params, alias: str | None = None) -> History:
    """The ledger, verified as it is read; with `alias`, its lines alone (the whole chain is verified all the same)."""
    if alias is not None and alias not in books.ALIASES:
        raise UsageError(f"--alias {alias[:40]!r}: expected one of {', '.join(books.ALIASES)}.")
    store = Store(root, params.registry, read_only=True)
    engine = books.read_ledger(root, params.operations)
    name = params.registry.model_name
    problems = books.verify_chain(engine, store)
    entries = [entry for entry in books.history(engine, name) if alias in (None, entry.alias)]
    return History(entries, problems, books.moved_outside(engine, store))


def delete_version(root: Path, params: Params, uri: str, *, reason: str, actor: str | None = None) -> LedgerEntry:
    """Delete a version, named by its number, on record. Raises `RegistryError` when an alias holds it."""
    _require_words(reason, None)
    store, engine = _open(root, params)
    if "@" in uri or "/" not in uri.removeprefix("models:/"):
        raise UsageError(f"{uri}: expected MODEL/VERSION, because an alias or a name alone may mean another tomorrow.")
    version = _resolve(store, uri)
    return books.delete_version(engine, store, version.number, actor=actor or current_actor(root), reason=reason)


def anchor_history(root: Path, params: Params, *, reason: str, actor: str | None = None) -> LedgerEntry:
    """Write the ledger's signed head anew, on record, where MLflow lost it. Raises as `ledger.anchor_head`."""
    _require_words(reason, None)
    store, engine = _open(root, params)
    return books.anchor_head(engine, store, actor=actor or current_actor(root), reason=reason)


def current_actor(root: Path) -> str:
    """The actor: `$PLUMBLINE_ACTOR`, else git's user of the workspace, else the user of the operating system."""
    given = os.environ.get(ACTOR, "").strip()
    if given:
        return given
    try:
        return run_git(root, "config", "user.name").strip() or getpass.getuser()
    except VersioningError:  # git knows no user here
        return getpass.getuser()


def _open(root: Path, params: Params) -> tuple[Store, Engine]:
    return Store(root, params.registry), books.open_ledger(root, params.operations)


def _resolve(store: Store, uri: str) -> Version:
    """A version of the model that params name: aliases of other models have ledgers of their own."""
    version = resolve(store, uri)
    if version.name != store.params.model_name:
        raise UsageError(
            f"{uri}: expected a version of {store.params.model_name} (registry.model_name), found {version.name}. Set "
            f"registry.model_name to promote another model."
        )
    return version


def _champion(store: Store, state: Mapping[str, LedgerEntry]) -> Version | None:
    number = state[CHAMPION].version if CHAMPION in state else None
    return None if number is None else resolve(store, f"models:/{store.params.model_name}/{number}")


def _rival(store: Store, state: Mapping[str, LedgerEntry]) -> Version | None:
    """The champion to compare with; None if somebody deleted it, which must not stop its successor."""
    number = state[CHAMPION].version if CHAMPION in state else None
    return _champion(store, state) if number is not None and books.is_live(store, number) else None


def _previous(store: Store, state: Mapping[str, LedgerEntry]) -> Version:
    number = state[PREVIOUS].version if PREVIOUS in state else None
    if number is None:
        raise UsageError(
            f"{store.params.model_name}: no previous champion to roll back to. Name a version: `plumbline rollback "
            f"--to models:/{store.params.model_name}/VERSION --reason …`."
        )
    return resolve(store, f"models:/{store.params.model_name}/{number}")


def _moves(store: Store, state: Mapping[str, LedgerEntry], alias: str, number: str) -> list[Move]:
    """The alias to the version; of a champion, `previous` to the one before, if that still exists."""
    before = state[alias].version if alias in state else None
    moves = [Move(alias, number, before)]
    if alias == CHAMPION and before not in (None, number):
        kept = before if before is not None and books.is_live(store, before) else None
        moves.insert(0, Move(PREVIOUS, kept, state[PREVIOUS].version if PREVIOUS in state else None))
    return moves


def _moves_back(
    store: Store, entries: Sequence[LedgerEntry], state: Mapping[str, LedgerEntry], number: str
) -> list[Move]:
    before = state[CHAMPION].version if CHAMPION in state else None
    under = champion_before(entries, number, lambda item: books.is_live(store, item))
    held = state[PREVIOUS].version if PREVIOUS in state else None
    moves = [Move(CHAMPION, number, before)]
    return moves if held == under else [Move(PREVIOUS, under, held), *moves]


def _examine(
    root: Path, params: Params, store: Store, version: Version, alias: str, champion: Version | None
) -> tuple[Mapping[str, Any], list[GateResult]]:
    """Verify, measure what the gates before this alias need, and hold it to params."""
    limits, names = params.promotion, GATES_OF[alias]
    unverified = _unverified(store, version, alias, root)
    if unverified is not None:  # its manifest is not read: no signature holds for it
        gates = examine(alias, GateFigures(signature=unverified), limits)
        if not all(gate.passed for gate in gates if gate.name == SIGNED):
            raise SignatureError(f"{unverified} No override helps: it was not promoted.")
    manifest = StoredFiles(store, version).manifest()
    rival = champion if champion is not None and champion.number != version.number else None
    evaluation = with_length(params.evaluation, evaluated_length(manifest))
    sampling = Sampling(evaluation, params.seed, params.threads, params.reference.trust_remote_code)
    comparison: Mapping[str, Any] | str = "there is no champion to compare with"
    if rival is not None and "win_rate_vs_champion" in names and limits.min_win_rate_vs_champion_low is not None:
        comparison = _attempt(
            lambda: compare_champion(root, store, version, rival, sampling.limited(limits.max_prompts))
        )
    latency: Mapping[str, Any] | str = "it was not asked for"
    if "latency" in names and limits.max_latency_p95_ms is not None:
        latency = _attempt(lambda: measure_latency(root, store, version, sampling, limits.latency_prompts))
    measured = GateFigures(
        manifest["evaluation"], manifest["gate"], rival.uri if rival else None, comparison, latency, unverified
    )
    return manifest, examine(alias, measured, limits)


def _unverified(store: Store, version: Version, alias: str, root: Path) -> str | None:
    """Why the version is not what was registered; None if signature, seal and every hash hold."""
    try:
        (verified_model if alias == CHAMPION else verified_version)(store, version, root)
    except SignatureError as error:
        return str(error)
    return None


def _attempt(measure: Any) -> Mapping[str, Any] | str:
    """The measured value, or why it could not be measured: the gate then fails, and can be overridden by name."""
    try:
        found: Mapping[str, Any] = measure()
    except SignatureError:
        raise
    except PlumblineError as error:
        return " ".join(str(error).split())
    return found


def _evidence(
    version: Version, manifest: Mapping[str, Any], gates: Sequence[GateResult], override: Override | None
) -> dict[str, Any]:
    return {
        "manifest_sha256": version.tags[MANIFEST_TAG],
        "results_key": manifest["model"]["key"],
        "gates": [gate.as_dict() for gate in gates],
        "failing": [gate.name for gate in gates if not gate.passed],
        "override": None if override is None else asdict(override),
    }


def _require_words(reason: str, override: Override | None) -> None:
    """A reason, and for an override a name and a reason of its own, none of them empty."""
    if not reason.strip():
        raise UsageError("--reason: expected why, in words, found nothing. It is kept in the ledger.")
    if override is not None and not (override.name.strip() and override.reason.strip()):
        raise UsageError(
            "--override: expected the name of who answers for it and --override-reason, found "
            f"{override.name!r} and {override.reason!r}. Both are kept in the ledger."
        )
