"""A key as a file: EC on P-256, PEM; the private half 0600 outside every workspace, made whole or not at all."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import stat
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from plumbline.data_contracts.artifact import write_synced
from plumbline.data_contracts.errors import SignatureError, SigningError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

PUBLIC_KEY = Path(".plumbline") / "signing.pub"


@dataclass(frozen=True, slots=True)
class VerifyingKey:
    """The public half of a key, as PEM, and the `others` that are trusted beside it.

    `kept` is None for a key in force. For a revoked one it holds the digests of the signatures (`signature_digest`)
    that stay good.
    """

    pem: bytes
    kept: frozenset[str] | None = None
    others: tuple[VerifyingKey, ...] = field(default=())

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the PEM, as model-signing writes it into a signature; its first 16 characters name it."""
        return hashlib.sha256(self.pem).hexdigest()

    @property
    def each(self) -> tuple[VerifyingKey, ...]:
        """The key itself and the others."""
        return (self, *self.others)

    @property
    def title(self) -> str:
        """The keys in force, for messages."""
        names = [key.fingerprint[:16] for key in self.each if key.kept is None] or [self.fingerprint[:16]]
        return f"key {names[0]}" if len(names) == 1 else f"one of the keys {', '.join(names)}"

    def accepts(self, data: bytes, signature: str) -> bool:
        """True if one of the keys signed these bytes (ECDSA with SHA-256, base64), and is still trusted for it."""
        return any(key._signed(data, signature) and key.still_trusts(signature.encode()) for key in self.each)

    def still_trusts(self, signature: bytes) -> bool:
        """True if this key alone stands by a signature of its own: it is in force, or it was kept at the revocation."""
        return self.kept is None or signature_digest(signature) in self.kept

    def _signed(self, data: bytes, signature: str) -> bool:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec

        try:
            read_public(self.pem).verify(base64.b64decode(signature, validate=True), data, ec.ECDSA(hashes.SHA256()))
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
        return VerifyingKey(_public_pem(_private(self.path)))


def signature_digest(signature: bytes) -> str:
    """The digest that names a signature in the record of a revocation."""
    return hashlib.sha256(signature).hexdigest()


def make_key(path: Path) -> None:
    """A new key, whole or not at all; of two processes that make it at once the first one's stands."""
    _write_key(_new_pem(), path)


def make_key_beside(path: Path) -> SigningKey:
    """A new key in the folder of another, named after that file and its own fingerprint."""
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    pem = _new_pem()
    fingerprint = VerifyingKey(_public_pem(load_pem_private_key(pem, None))).fingerprint  # type: ignore[arg-type]
    made = beside(path, fingerprint)
    _write_key(pem, made)
    return SigningKey(made)


def beside(path: Path, fingerprint: str) -> Path:
    """The path of a key that took the place of the one at `path`: `signing-0123456789abcdef.key`."""
    return path.with_name(f"{path.stem}-{fingerprint[:16]}{path.suffix}")


def read_public(pem: bytes, name: Path | str = PUBLIC_KEY) -> EllipticCurvePublicKey:
    """A public key. Raises `SignatureError`, naming where it was found."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(pem)
    except ValueError as error:
        raise SignatureError(f"{name}: expected a public key as PEM, could not read it ({error}).") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise SignatureError(f"{name}: expected a public EC key on P-256, found {type(key).__name__}.")
    return key


def canonical_pem(pem: bytes, name: Path | str) -> bytes:
    """A public key in the one spelling that has its fingerprint. Raises `SignatureError`."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return read_public(pem, name).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _new_pem() -> bytes:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _public_pem(key: EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _write_key(pem: bytes, path: Path) -> None:
    stand_in = os.environ.get("PLUMBLINE_STAND_IN_HOME")
    if stand_in and path.is_relative_to(stand_in):
        raise SigningError(
            f"registry.signing_key: expected a lasting place for the key that signs versions; this user has no home "
            f"that can be written to, and {stand_in} is temporary. Set HOME, XDG_CONFIG_HOME or registry.signing_key."
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, scratch = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # O_EXCL, mode 0600
        try:
            write_synced(handle, pem)
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
