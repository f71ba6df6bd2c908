"""Signatures of versions: over every file (OpenSSF model-signing 1.1, EC key), and over the version's own facts.

1. `model.sig`, beside the files: a detached model-signing bundle over all of them, `manifest.json` included and
   `model.sig` alone left out. Symbolic links are refused, and so are files that git would ignore. What the bundle signs
   must be, name by name and hash by hash, what the manifest says.
2. A seal in the version's tags: the same key over model, number, results key, manifest hash and the gate's verdict.
   It binds the files to this version: a validly signed checkpoint of another version does not fit.
"""

from __future__ import annotations

import base64
import hashlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from plumbline.data_contracts.artifact import MANIFEST as MANIFEST
from plumbline.data_contracts.errors import SignatureError, SigningError
from plumbline.data_contracts.verification import HashCheck
from plumbline.tasks.params.registry import SigningParams
from plumbline.tasks.registry.signing.key_files import SigningKey, VerifyingKey

SIGNATURE = "model.sig"
SEAL_TAG = "plumbline.seal"
_PURPOSE = "plumbline.version"


def sign_version_files(folder: Path, key: SigningKey, to: Path, params: SigningParams | None = None) -> Path:
    """Sign every file of a version's folder (but `model.sig`) and write the bundle to the path `to`; return it.

    By the key, or as `registry.signing` says.

    Raises `SignatureError` when the folder holds something that cannot be signed, such as a symbolic link.
    """
    from model_signing import signing

    key.public  # noqa: B018  (names an unreadable or open key file before anything is hashed)
    config = signing.Config().set_hashing_config(_hashing())  # type: ignore[no-untyped-call]
    try:
        _signer(config, key, params or SigningParams()).sign(folder, to)
    # Tokens, identity providers and their network each fail in a way of their own; none leaves a signature.
    except Exception as error:
        raise SigningError(f"{folder}: cannot be signed: {_first_line(error)}.") from error
    return to


def _signer(config: Any, key: SigningKey, params: SigningParams) -> Any:
    """model-signing's own signer for each method."""
    if params.method == "pkcs11":
        return config.use_pkcs11_signer(pkcs11_uri=params.pkcs11_uri, module_paths=list(params.pkcs11_modules))
    if params.method == "certificate":
        chain = [Path(path).expanduser() for path in params.certificate_chain]
        certificate = Path(str(params.certificate)).expanduser()
        return config.use_certificate_signer(
            private_key=key.path, signing_certificate=certificate, certificate_chain=chain
        )
    if params.method == "sigstore":
        return config.use_sigstore_signer(use_ambient_credentials=params.ambient_credentials)
    return config.use_elliptic_key_signer(private_key=key.path)


def check_signature(folder: Path, key: VerifyingKey, params: SigningParams | None = None) -> HashCheck:
    """Verify a version's files against their signature, and the signature against the manifest: a row of an audit.

    A signature by a key is held to the keys that are trusted; one by a certificate or an identity to `params`.
    """
    want = f"signed by {key.title}"
    if not (folder / SIGNATURE).is_file():
        return HashCheck(SIGNATURE, "signature", want, "mlflow", None)
    try:
        signed = _signed_hashes(folder, key, params or SigningParams())
    except SignatureError as error:
        return HashCheck(SIGNATURE, "signature", want, "mlflow", str(error))
    strange = _unlike_manifest(folder, signed)
    return HashCheck(SIGNATURE, "signature", want, "mlflow", f"a signature that {strange}" if strange else want)


def verify_signature(folder: Path, key: VerifyingKey, params: SigningParams | None = None) -> None:
    """`check_signature`, raising `SignatureError` where it is not ok."""
    check = check_signature(folder, key, params)
    if not check.ok:
        raise SignatureError(explain(str(folder), check))


def seal(key: SigningKey, facts: Mapping[str, str]) -> str:
    """The signature over a version's own facts (`seal_facts`)."""
    return key.sign(_sealed(facts))


def check_seal(facts: Mapping[str, str], signature: str | None, key: VerifyingKey) -> HashCheck:
    """Check that the seal in a version's tags is of these facts and this key."""
    want = f"sealed by {key.title}"
    found: str | None = want
    if signature is None:
        found = None
    elif not key.accepts(_sealed(facts), signature):
        found = "a seal of other facts, or by another or a revoked key"
    return HashCheck(f"tag {SEAL_TAG}", "signature", want, "mlflow", found)


def explain(what: str, check: HashCheck) -> str:
    """A signature that is not ok, for people."""
    if check.found is None:
        return (
            f"{what}: not signed: {check.name} is missing. Nothing unsigned is loaded; `plumbline retrain` signs the "
            f"version again where its results are still those of the workspace, else register it anew."
        )
    return (
        f"{what}: expected {check.hash}, found {check.found}. It is not what was registered: nothing was loaded. "
        f"`plumbline audit {what}` names every file; `plumbline rollback` returns to a verified version."
    )


def _signed_hashes(folder: Path, keys: VerifyingKey, params: SigningParams) -> dict[str, str]:
    """Name -> SHA-256 of every file, once the bundle and all bytes on disk have been found to agree."""
    from model_signing import verifying

    with tempfile.TemporaryDirectory() as scratch:
        bundle, data = Path(scratch) / SIGNATURE, (folder / SIGNATURE).read_bytes()
        bundle.write_bytes(data)  # read once: what is verified is what is parsed
        config = verifying.Config().set_hashing_config(_hashing())  # type: ignore[no-untyped-call]
        try:
            _verifier(config, orjson.loads(data), data, keys, params, Path(scratch)).verify(folder, bundle)
            payload = orjson.loads(data)["dsseEnvelope"]["payload"]
            resources = orjson.loads(base64.b64decode(payload))["predicate"]["resources"]
            return {str(item["name"]): str(item["digest"]) for item in resources}
        # A hostile bundle breaks its parsers in many ways; each means the same: not verified.
        except Exception as error:
            raise SignatureError(f"a signature that does not hold: {_first_line(error)}") from error


def _verifier(config: Any, bundle: Any, data: bytes, keys: VerifyingKey, params: SigningParams, scratch: Path) -> Any:
    """model-signing's verifier for a bundle: by the trusted key that it names, or as params ask for."""
    material = bundle["verificationMaterial"]
    if "publicKey" not in material and params.method == "certificate":
        chain = [Path(path).expanduser() for path in params.certificate_chain]
        return config.use_certificate_verifier(certificate_chain=chain)
    if "publicKey" not in material and params.method == "sigstore":
        return config.use_sigstore_verifier(identity=params.identity, oidc_issuer=params.oidc_issuer)
    named = material.get("publicKey", {}).get("hint")
    key = next((each for each in keys.each if each.fingerprint == named), keys)
    if not key.still_trusts(data):
        raise SignatureError(f"key {key.fingerprint[:16]} was revoked, and this signature is none that was kept")
    public = scratch / "key.pub"
    public.write_bytes(key.pem)
    return config.use_elliptic_key_verifier(public_key=public)


def _unlike_manifest(folder: Path, signed: Mapping[str, str]) -> str | None:
    """The signed hashes that are not those of the manifest, in words."""
    data = (folder / MANIFEST).read_bytes() if (folder / MANIFEST).is_file() else b""
    if signed.get(MANIFEST) != hashlib.sha256(data).hexdigest():
        return f"does not cover {MANIFEST}"
    try:
        manifest: Any = orjson.loads(data)
        named = {str(name): str(entry["sha256"]) for name, entry in manifest["files"].items()}
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        return f"covers a {MANIFEST} that cannot be read"
    wrong = sorted(name for name in (named.keys() | signed.keys()) - {MANIFEST} if named.get(name) != signed.get(name))
    return f"covers other files than {MANIFEST}: {', '.join(wrong[:3])}" if wrong else None


def _sealed(facts: Mapping[str, str]) -> bytes:
    return orjson.dumps({"purpose": _PURPOSE, **facts}, option=orjson.OPT_SORT_KEYS)


def _hashing() -> Any:
    from model_signing import hashing

    config = hashing.Config()  # type: ignore[no-untyped-call]
    return config.set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False).set_allow_symlinks(False)


def _first_line(error: BaseException) -> str:
    words = " ".join(str(error).split())[:300].rstrip(".")
    return words or type(error).__name__
