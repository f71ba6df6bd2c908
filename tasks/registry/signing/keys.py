"""The keys that sign versions and ledger lines, and those that verify them.

The private key lies outside every workspace, mode 0600: git and DVC never see it. It is made on first use, by what
signs; reading makes none. Its public half is copied into the workspace as the first key that is trusted
(`tasks.registry.signing.trust` has the others), so that a machine without the private key can verify.

What a workspace says of its keys is believed as far as this user has something of their own to hold it against: their
private key, or public keys that they were given by other means and pinned (`plumbline keys trust FILE`). Without
either, the first key is believed as it is found. A local key proves that what is read is what this key signed; it does
not prove who held it, and whoever can read the key file can sign.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from plumbline.data_contracts.artifact import write_bytes
from plumbline.data_contracts.errors import ParamsError, SignatureError
from plumbline.tasks.params.registry import RegistryParams
from plumbline.tasks.registry.signing.key_files import (
    PUBLIC_KEY,
    SigningKey,
    VerifyingKey,
    beside,
    canonical_pem,
    make_key,
)
from plumbline.tasks.registry.signing.trust import Trust, load_trust

__all__ = [
    "PUBLIC_KEY",
    "SigningKey",
    "VerifyingKey",
    "configured_path",
    "default_key_path",
    "pin",
    "pinned",
    "private_keys",
    "signing_key",
    "verifying_key",
]


def signing_key(root: Path, params: RegistryParams) -> SigningKey:
    """The key to sign with: the newest in force that is on this machine; made where the workspace has none yet.

    Raises `ParamsError` when its place is wrong, `SignatureError` when it is unreadable, open to others or none that
    this workspace trusts.
    """
    path = configured_path(root, params)
    if path is None:
        raise ParamsError(
            f"registry.signing_key: expected the path of a private key in the environment variable "
            f"{str(params.signing_key)[1:]}, found it unset. Export it, or set registry.signing_key to null."
        )
    trust = load_trust(root)
    if trust is None:
        return _first_key(root, path)
    verifying_key(root, params)
    own = {key.public.fingerprint: key for key in private_keys(path, trust)}
    for fingerprint in trust.in_force:
        if fingerprint in own:
            return own[fingerprint]
    revoked = f" Key {next(iter(own))[:16]} at {path} was revoked." if own else ""
    raise SignatureError(
        f"{root / PUBLIC_KEY}: this workspace trusts key {trust.in_force[0][:16]}, whose private half "
        f"is not at {path}: this machine can verify, not sign.{revoked} No key was made. Bring the private key, set "
        f"registry.signing_key, or run this where it is."
    )


def verifying_key(root: Path, params: RegistryParams) -> VerifyingKey:
    """The public keys that signatures of this workspace are verified with, as far as this user trusts them.

    Raises `SignatureError` when there is none, or none of them rests on a key of this user's own.
    """
    path, trust = configured_path(root, params), load_trust(root)
    if trust is None:
        if path is None or not path.exists():
            raise SignatureError(
                f"{root / PUBLIC_KEY}: expected the public key that versions are verified with, found none, and no "
                f"private key either. Copy the file from the workspace that registers, or set registry.signing_key."
            )
        return SigningKey(path).public
    own = {key.public.fingerprint for key in private_keys(path, trust)} if path is not None else set()
    anchors = own | {key.fingerprint for key in pinned()}
    found = trust.resting_on({trust.first} if not anchors or trust.first in anchors else anchors)
    if found is None:
        raise _not_trusted(root, trust, path)
    return found


def private_keys(path: Path, trust: Trust) -> Iterator[SigningKey]:
    """The private keys of this user for a workspace: at the configured path, and those that took its place."""
    for place in (path, *(beside(path, fingerprint) for fingerprint in trust.keys)):
        if place.exists():
            yield SigningKey(place)


def pinned() -> list[VerifyingKey]:
    """The public keys that this user was given by other means, and trusts. Raises `SignatureError`."""
    folder = _pins()
    return [VerifyingKey(canonical_pem(path.read_bytes(), path)) for path in sorted(folder.glob("*.pub"))]


def pin(file: Path) -> VerifyingKey:
    """Trust a public key for good, whichever workspace it signs. Raises `SignatureError` for a file that is none."""
    try:
        key = VerifyingKey(canonical_pem(file.read_bytes(), file))
    except OSError as error:
        raise SignatureError(f"{file}: expected a public key as PEM, could not read it ({error.strerror}).") from error
    folder = _pins()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_bytes(folder / f"{key.fingerprint[:16]}.pub", key.pem)
    return key


def default_key_path() -> Path:
    """`plumbline/signing.key` in the user's configuration folder (`$XDG_CONFIG_HOME`, else `~/.config`)."""
    home = os.environ.get("XDG_CONFIG_HOME")
    return (Path(home) if home else Path.home() / ".config") / "plumbline" / "signing.key"


def configured_path(root: Path, params: RegistryParams) -> Path | None:
    """The path of the private key; None if the environment variable that should name it is unset."""
    given = params.signing_key
    if given is not None and given.startswith("$"):
        given = os.environ.get(given[1:]) or ""
        if not given:
            return None
    path = default_key_path() if given is None else Path(given).expanduser()
    path = Path(os.path.abspath(root / path))
    if path.is_relative_to(root.resolve()) or path.resolve().is_relative_to(root.resolve()):
        raise ParamsError(
            f"registry.signing_key: expected a path outside the workspace, found {path}: git or DVC would keep the "
            f"private key. Move it, for instance to {default_key_path()}, and set registry.signing_key to null."
        )
    return path


def _pins() -> Path:
    return default_key_path().with_name("trusted")


def _first_key(root: Path, path: Path) -> SigningKey:
    """The key at the path, made if there is none, and its public half in the workspace."""
    if not path.exists():
        make_key(path)
    key, copy = SigningKey(path), root / PUBLIC_KEY
    copy.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(copy, key.public.pem)
    return key


def _not_trusted(root: Path, trust: Trust, path: Path | None) -> SignatureError:
    if path is not None and path.exists():
        own = f"the signing key of this machine ({path}) is {SigningKey(path).public.fingerprint[:16]}"
    else:
        own = f"this user trusts {', '.join(key.fingerprint[:16] for key in pinned())} alone"
    return SignatureError(
        f"{root / PUBLIC_KEY}: this workspace trusts key {trust.first[:16]}, but {own}. Either someone replaced the "
        f"copy, or its versions were signed with another key: name that one in registry.signing_key, or, if its public "
        f"half came to you from those who sign, `plumbline keys trust FILE`."
    )
