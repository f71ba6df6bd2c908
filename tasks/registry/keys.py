"""The keys that sign versions and ledger lines: a local EC key (P-256), made on first use, and its public half.

The private key lies outside every workspace, mode 0600: git and DVC never see it. Its public half is copied into the
workspace, so that a machine without the private key can verify. A local key proves that what is read is what this key
signed; it does not prove who held it, and whoever can read the key file can sign.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data_contracts.artifact import write_bytes
from data_contracts.errors import ParamsError, SignatureError, SigningError
from tasks.registry.params import RegistryParams

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

PUBLIC_KEY = Path(".plumbline") / "signing.pub"


@dataclass(frozen=True, slots=True)
class VerifyingKey:
    """The public half of a key, as PEM."""

    pem: bytes

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the PEM, as model-signing writes it into a signature; its first 16 characters name it."""
        return hashlib.sha256(self.pem).hexdigest()

    def accepts(self, data: bytes, signature: str) -> bool:
        """Whether the key signed these bytes (ECDSA with SHA-256, base64)."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec

        try:
            _public(self.pem).verify(base64.b64decode(signature, validate=True), data, ec.ECDSA(hashes.SHA256()))
        except (InvalidSignature, binascii.Error, ValueError):
            return False
        return True


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key by its file. The file is read again for each signature; nothing keeps it in memory."""

    path: Path

    def sign(self, data: bytes) -> str:
        """ECDSA signature with SHA-256, base64."""
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec

        return base64.b64encode(_private(self.path).sign(data, ec.ECDSA(hashes.SHA256()))).decode()

    @property
    def public(self) -> VerifyingKey:
        """Its public half."""
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        public = _private(self.path).public_key()
        return VerifyingKey(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def signing_key(root: Path, params: RegistryParams) -> SigningKey:
    """The key to sign with, made where there is none, its public half copied into the workspace.

    Raises `ParamsError` when its place is wrong, `SignatureError` when it is unreadable, open to others or not the
    key that this workspace trusts.
    """
    path = _key_path(root, params)
    if path is None:
        raise ParamsError(
            f"registry.signing_key: expected the path of a private key in the environment variable "
            f"{str(params.signing_key)[1:]}, found it unset. Export it, or set registry.signing_key to null."
        )
    if not path.exists():
        _require_new(root, path)
        _make(path)
    key = SigningKey(path)
    _trust(root, key.public)
    return key


def verifying_key(root: Path, params: RegistryParams) -> VerifyingKey:
    """The public key that this workspace trusts; where the private key lies on this machine both must agree.

    Raises `SignatureError` when there is none or they differ.
    """
    path, copy = _key_path(root, params), root / PUBLIC_KEY
    own = SigningKey(path).public if path is not None and path.exists() else None
    if not copy.is_file():
        if own is None:
            raise SignatureError(
                f"{copy}: expected the public key that versions are verified with, found none, and no private key "
                f"either. Copy the file from the workspace that registers, or set registry.signing_key."
            )
        return own
    kept = VerifyingKey(copy.read_bytes())
    _public(kept.pem)
    _require_same(kept, own, copy, path)
    return kept


def default_key_path() -> Path:
    """`plumbline/signing.key` in the user's configuration folder (`$XDG_CONFIG_HOME`, else `~/.config`)."""
    home = os.environ.get("XDG_CONFIG_HOME")
    return (Path(home) if home else Path.home() / ".config") / "plumbline" / "signing.key"


def _key_path(root: Path, params: RegistryParams) -> Path | None:
    """Where the private key is; None where the environment variable that should say so is unset."""
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


def _require_new(root: Path, path: Path) -> None:
    """A workspace that trusts a key gets no second one: nothing signed by it would be accepted, here or anywhere."""
    copy = root / PUBLIC_KEY
    if copy.is_file() and not path.exists():  # a maker at the same moment writes the key first, then the copy
        raise SignatureError(
            f"{copy}: this workspace trusts key {VerifyingKey(copy.read_bytes()).fingerprint[:16]}, whose private half "
            f"is not at {path}: this machine can verify, not sign. No key was made. Bring the private key, set "
            f"registry.signing_key, or run this where it is."
        )


def _make(path: Path) -> None:
    """A new key, whole or not at all; of two processes that make it at once the first one's stands."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    stand_in = os.environ.get("PLUMBLINE_STAND_IN_HOME")
    if stand_in and path.is_relative_to(stand_in):
        raise SigningError(
            f"registry.signing_key: expected a lasting place for the key that signs versions; this user has no home "
            f"that can be written to, and {stand_in} is temporary. Set HOME, XDG_CONFIG_HOME or registry.signing_key."
        )
    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, scratch = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(pem)
                file.flush()
                os.fsync(file.fileno())
            os.link(scratch, path)
        except FileExistsError:
            return
        finally:
            os.unlink(scratch)
    except OSError as error:
        raise SigningError(
            f"{path}: a signing key cannot be made there ({error.strerror}). Set registry.signing_key to a path "
            f"that is writable, or make the key yourself (`openssl ecparam -name prime256v1 -genkey`)."
        ) from error


def _private(path: Path) -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        mode, data = path.stat().st_mode, path.read_bytes()
        key = load_pem_private_key(data, None)
    except (OSError, ValueError, TypeError) as error:
        raise SignatureError(
            f"{path}: expected a private EC key as PEM without a passphrase, could not read it ({error}). Restore the "
            f"file, or set registry.signing_key."
        ) from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise SignatureError(
            f"{path}: expected a private key that its owner alone can read (0600), found {stat.S_IMODE(mode):04o}. "
            f"Others may have copied it: make a new key, or `chmod 600` it if you know that nobody did."
        )
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise SignatureError(f"{path}: expected an EC key on P-256, found {type(key).__name__}. Make one of that kind.")
    return key


def _public(pem: bytes) -> EllipticCurvePublicKey:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(pem)
    except ValueError as error:
        raise SignatureError(f"{PUBLIC_KEY}: expected a public key as PEM, could not read it ({error}).") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise SignatureError(f"{PUBLIC_KEY}: expected a public EC key, found {type(key).__name__}.")
    return key


def _trust(root: Path, own: VerifyingKey) -> None:
    """Copy the public half into the workspace; a workspace that trusts another key keeps it and says so."""
    copy = root / PUBLIC_KEY
    if copy.is_file():
        _require_same(VerifyingKey(copy.read_bytes()), own, copy, None)
        return
    copy.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(copy, own.pem)


def _require_same(kept: VerifyingKey, own: VerifyingKey | None, copy: Path, path: Path | None) -> None:
    if own is not None and own.pem != kept.pem:
        raise SignatureError(
            f"{copy}: this workspace trusts key {kept.fingerprint[:16]}, but the signing key of this machine"
            f"{f' ({path})' if path else ''} is {own.fingerprint[:16]}. Either someone replaced the copy, or its "
            f"versions were signed with another key: name that one in registry.signing_key."
        )
