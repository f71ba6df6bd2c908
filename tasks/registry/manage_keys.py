"""Verb: the keys of a workspace: list, rotate, let another sign, revoke.

Each change is a statement signed by a key in force (`tasks.registry.signing.trust`), and a line of the promotion
ledger, so that `plumbline history` has who, when and why, and a change that is cut from the record of keys is missed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plumbline.data_contracts.errors import SignatureError, UsageError
from plumbline.tasks.params.registry import RegistryParams
from plumbline.tasks.params.whole import Params
from plumbline.tasks.registry.ledger.ledger import open_ledger, record_keys
from plumbline.tasks.registry.signing.key_files import VerifyingKey, canonical_pem, make_key_beside
from plumbline.tasks.registry.signing.keys import configured_path, private_keys, signing_key, verifying_key
from plumbline.tasks.registry.signing.trust import Statement, Trust, load_trust, state
from plumbline.tasks.registry.store.client import Store
from plumbline.tasks.registry.versions.kept import signatures_of

_SHORTEST = 8


@dataclass(frozen=True, slots=True)
class KeyRow:
    """One key: its standing ("signs", "trusted", "revoked"), since when, by whom and why; whether its half is here."""

    fingerprint: str
    standing: str
    here: bool
    at: str
    by: str
    reason: str
    public: str


def list_keys(root: Path, params: RegistryParams) -> list[KeyRow]:
    """Every key that the workspace trusts or trusted, the oldest first; nothing if it has signed nothing yet."""
    trust = load_trust(root)
    if trust is None:
        return []
    verifying_key(root, params)
    path = configured_path(root, params)
    own = {key.public.fingerprint for key in private_keys(path, trust)} if path is not None else set()
    signs = next((name for name in trust.in_force if name in own), None)
    return [_row(trust, name, key, own, signs) for name, key in trust.keys.items()]


def _row(trust: Trust, name: str, key: VerifyingKey, own: set[str], signs: str | None) -> KeyRow:
    told = [statement for statement in trust.statements if statement.fingerprint == name]
    last = told[-1] if told else None
    standing = "revoked" if key.kept is not None else "signs" if name == signs else "trusted"
    at, by, reason = (last.at, last.by, last.reason) if last is not None else ("", "", "the first key")
    return KeyRow(name, standing, name in own, at, by, reason, key.pem.decode())


def rotate_key(root: Path, params: Params, *, by: str, reason: str) -> Statement:
    """Make a new key that signs from now on; what the old one signed stays good until it is revoked."""
    old = signing_key(root, params.registry)
    path = configured_path(root, params.registry)
    assert path is not None, "there is a key to sign with"
    new = make_key_beside(path)
    statement = state(root, old, "add", new.public.pem, by=by, reason=_reason(reason))
    return _record(root, params, statement)


def add_key(root: Path, params: Params, file: Path, *, by: str, reason: str) -> Statement:
    """Let the owner of another key sign too, by its public half. Raises `UsageError` for one that is known already."""
    try:
        pem = canonical_pem(file.read_bytes(), file)
    except OSError as error:
        raise UsageError(f"{file}: expected a public key as PEM, could not read it ({error.strerror}).") from error
    signer, trust = signing_key(root, params.registry), load_trust(root)
    known = VerifyingKey(pem).fingerprint
    if trust is not None and known in trust.keys:
        standing = "trusted already" if trust.keys[known].kept is None else "revoked, and that is for good"
        raise UsageError(f"{file}: key {known[:16]} is {standing}. Nothing was changed.")
    return _record(root, params, state(root, signer, "add", pem, by=by, reason=_reason(reason)))


def revoke_key(root: Path, params: Params, name: str, *, everything: bool, by: str, reason: str) -> Statement:
    """Accept nothing more from a key. The versions that it has signed up to now stay good, unless `everything` falls.

    Ledger lines that are there stay in either case: they are the record of what was done, true or not.
    `name` is the fingerprint, or its first eight or more characters. Raises `UsageError` if there is no such key in
    force, or none beside it to sign the revocation with.
    """
    text, signer, trust = _reason(reason), signing_key(root, params.registry), load_trust(root)
    assert trust is not None
    found = _named(trust, name)
    if signer.public.fingerprint == found.fingerprint:
        raise UsageError(
            f"key {found.fingerprint[:16]}: it is the key that signs here, and cannot revoke itself. "
            f"`plumbline keys rotate` first, then revoke it. Nothing was changed."
        )
    store, engine = Store(root, params.registry), open_ledger(root, params.operations)
    kept = signatures_of(store, engine, versions=not everything)
    return _record(root, params, state(root, signer, "revoke", found.pem, by=by, reason=text, kept=kept))


def public_keys(root: Path, params: RegistryParams) -> bytes:
    """The first key of the workspace, for those who verify elsewhere: all others rest on it."""
    trust = load_trust(root)
    if trust is None:
        raise SignatureError(f"{root}: this workspace has signed nothing yet, so that there is no key to give away.")
    verifying_key(root, params)
    return trust.keys[trust.first].pem


def _named(trust: Trust, name: str) -> VerifyingKey:
    given = name.lower()
    found = [key for print_, key in trust.keys.items() if print_.startswith(given) and key.kept is None]
    if len(given) < _SHORTEST or len(found) != 1:
        known = ", ".join(print_[:16] for print_ in trust.in_force)
        raise UsageError(
            f"key {name}: expected the fingerprint of one key in force, or its first {_SHORTEST} or more characters; "
            f"there are {known}. Nothing was changed."
        )
    return found[0]


def _record(root: Path, params: Params, statement: Statement) -> Statement:
    """Record it in the ledger: that is where a person looks, and what misses a statement that was cut off."""
    store, engine = Store(root, params.registry), open_ledger(root, params.operations)
    evidence: dict[str, Any] = {
        "statement": statement.digest,
        "change": statement.action,
        "key": statement.fingerprint,
        "kept": len(statement.kept),
    }
    record_keys(engine, store, evidence, actor=statement.by, reason=statement.reason)
    return statement


def _reason(text: str) -> str:
    text = " ".join(text.split())
    if not text or len(text) > 1000 or not text.isprintable():
        raise UsageError(f"--reason: expected 1 to 1000 printable characters, found {len(text)}. Say why.")
    return text
