"""Which public keys a workspace trusts: the first one, and signed statements that add and revoke others.

`.plumbline/signing.pub` is the first key. `.plumbline/trusted_keys.json` is a chain of statements: each names the one
before it, and is signed by a key that was trusted and in force when it was made. Whoever writes into the workspace
without such a key can add none. Statements cut from the end are missed by the promotion ledger, which names them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import orjson
from filelock import FileLock

from plumbline.data_contracts.artifact import write_json
from plumbline.data_contracts.errors import SignatureError
from plumbline.tasks.registry.signing.key_files import PUBLIC_KEY, SigningKey, VerifyingKey, read_public

TRUSTED = Path(".plumbline") / "trusted_keys.json"
_LOCK_WAIT_S = 30


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement. `kept`, of a revocation: digests of the signatures that stay good."""

    action: Literal["add", "revoke"]
    key: str
    at: str
    by: str
    reason: str
    kept: tuple[str, ...]
    previous: str
    signer: str
    signature: str

    @property
    def fingerprint(self) -> str:
        """Of the key that it is about."""
        return VerifyingKey(self.key.encode()).fingerprint

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of all that is signed."""
        return hashlib.sha256(self.signed).hexdigest()

    @property
    def signed(self) -> bytes:
        """The bytes that the signature is over."""
        facts = {name: getattr(self, name) for name in self.__slots__ if name != "signature"}
        return orjson.dumps({"purpose": "plumbline.trust", **facts}, option=orjson.OPT_SORT_KEYS)


@dataclass(frozen=True, slots=True)
class Trust:
    """The keys of a workspace, by fingerprint, the oldest first, and the statements that they rest on."""

    first: str
    keys: dict[str, VerifyingKey]
    statements: tuple[Statement, ...]

    @property
    def head(self) -> str:
        """The digest that the next statement names as the one before it."""
        return self.statements[-1].digest if self.statements else self.first

    @property
    def in_force(self) -> list[str]:
        """Fingerprints of keys that were not revoked, the newest first."""
        return [name for name, key in reversed(self.keys.items()) if key.kept is None]

    def resting_on(self, roots: Collection[str]) -> VerifyingKey | None:
        """The keys among `roots`, and those that were added, directly or not, by one of them."""
        found = {name for name in roots if name in self.keys}
        for statement in self.statements:
            if statement.action == "add" and statement.signer in found:
                found.add(statement.fingerprint)
        chosen = [key for name, key in self.keys.items() if name in found]
        chosen.sort(key=lambda key: key.kept is not None)  # those in force first
        if not chosen:
            return None
        return VerifyingKey(chosen[0].pem, chosen[0].kept, tuple(chosen[1:]))


def load_trust(root: Path) -> Trust | None:
    """The keys of a workspace; None if it has none yet. Raises `SignatureError` if the chain does not hold."""
    path = root / PUBLIC_KEY
    if not path.is_file():
        return None
    first = VerifyingKey(path.read_bytes())
    read_public(first.pem)
    trust = Trust(first.fingerprint, {first.fingerprint: first}, ())
    for number, entry in enumerate(_entries(root), 1):
        trust = _followed(trust, entry, f"{root / TRUSTED}: statement {number}")
    return trust


def state(
    root: Path,
    signer: SigningKey,
    action: Literal["add", "revoke"],
    pem: bytes,
    *,
    by: str,
    reason: str,
    kept: Any = (),
) -> Statement:
    """Append a statement, signed. Raises `SignatureError` if the signer may make none."""
    with _locked(root):
        trust = load_trust(root)
        assert trust is not None, "a workspace that signs has a first key"
        unsigned = Statement(
            action=action,
            key=pem.decode(),
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            by=by,
            reason=reason,
            kept=tuple(sorted(kept)),
            previous=trust.head,
            signer=signer.public.fingerprint,
            signature="",
        )
        entry = {**_plain(unsigned), "signature": signer.sign(unsigned.signed)}
        _followed(trust, entry, f"{root / TRUSTED}: the new statement")
        write_json(root / TRUSTED, [*(_plain(statement) for statement in trust.statements), entry])
    return Statement(**{**entry, "kept": tuple(entry["kept"])})


def _entries(root: Path) -> list[dict[str, Any]]:
    try:
        found = orjson.loads((root / TRUSTED).read_bytes())
    except FileNotFoundError:
        return []
    except orjson.JSONDecodeError as error:
        raise _broken(f"{root / TRUSTED}", f"no JSON ({error})") from error
    if not isinstance(found, list):
        raise _broken(f"{root / TRUSTED}", "no list")
    return found


def _followed(trust: Trust, entry: Any, name: str) -> Trust:
    """The keys after one more statement, once that is found good."""
    try:
        statement = Statement(**{**entry, "kept": tuple(entry["kept"])})
        signer, read = trust.keys.get(statement.signer), read_public(statement.key.encode(), name)
        assert read is not None
    except (TypeError, KeyError, AttributeError) as error:
        raise _broken(name, f"another form ({error})") from error
    if statement.previous != trust.head:
        raise _broken(name, "it does not follow the one before: statements were changed, removed or reordered")
    if signer is None or signer.kept is not None or not signer.accepts(statement.signed, statement.signature):
        raise _broken(name, "it is not signed by a key that was trusted and in force then")
    keys, fingerprint = dict(trust.keys), statement.fingerprint
    if statement.action == "add" and fingerprint not in keys:
        keys[fingerprint] = VerifyingKey(statement.key.encode())
    elif statement.action == "revoke" and fingerprint in keys and fingerprint != statement.signer:
        keys[fingerprint] = VerifyingKey(keys[fingerprint].pem, frozenset(statement.kept))
    else:
        raise _broken(name, f"it may not {statement.action} key {fingerprint[:16]}")
    return Trust(trust.first, keys, (*trust.statements, statement))


def _broken(name: str, found: str) -> SignatureError:
    return SignatureError(
        f"{name}: expected a chain of statements, each signed by a key that this workspace trusted; found: {found}. "
        f"Someone changed it: nothing is verified by it. Put the file back from a backup, and find out who could write."
    )


def _plain(statement: Statement) -> dict[str, Any]:
    return {name: getattr(statement, name) for name in Statement.__slots__}


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    with FileLock(root / TRUSTED.with_suffix(".lock"), timeout=_LOCK_WAIT_S):
        yield
