"""The methods of model-signing beside a key file: a certificate, and a key in a (software) hardware token."""

from __future__ import annotations

import datetime
import os
import shutil
import subprocess
from pathlib import Path

import orjson
import pytest
from pydantic import ValidationError

from plumbline.data_contracts.artifact import sha256_file
from plumbline.data_contracts.errors import SignatureError
from plumbline.tasks.params.registry import RegistryParams, SigningParams
from plumbline.tasks.registry.signing.keys import SigningKey, VerifyingKey, signing_key
from plumbline.tasks.registry.signing.signatures import SIGNATURE, check_signature, sign_version_files, verify_signature

MODULES = [path for path in (os.environ.get("SOFTHSM2_MODULE"), "/usr/lib/softhsm/libsofthsm2.so") if path]


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return signing_key(tmp_path / "workspace", RegistryParams(signing_key=str(tmp_path / "key")))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "version"
    made.mkdir()
    (made / "weights.bin").write_text("weights")
    files = {"weights.bin": {"sha256": sha256_file(made / "weights.bin")}}
    (made / "manifest.json").write_bytes(orjson.dumps({"files": files}))
    return made


def certified(tmp_path: Path, key: SigningKey, name: str) -> SigningParams:
    """The key's certificate by an authority of that name, made here."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    now = datetime.datetime.now(datetime.UTC)
    authority = ec.generate_private_key(ec.SECP256R1())
    signer = serialization.load_pem_private_key(key.path.read_bytes(), None)
    issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])

    def certificate(subject: x509.Name, public: object, *, ca: bool) -> bytes:
        usage = dict.fromkeys(
            ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only"), False
        )
        usage |= {"decipher_only": False, "crl_sign": ca, "key_cert_sign": ca, "digital_signature": True}
        made = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(public)  # type: ignore[arg-type]
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.KeyUsage(**usage), critical=True)
            .sign(authority, hashes.SHA256())
        )
        return made.public_bytes(serialization.Encoding.PEM)

    own = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "signer")])
    paths = {"root": certificate(issuer, authority.public_key(), ca=True)}
    paths["own"] = certificate(own, signer.public_key(), ca=False)
    for file, pem in paths.items():
        (tmp_path / f"{name}-{file}.pem").write_bytes(pem)
    return SigningParams(
        method="certificate",
        certificate=str(tmp_path / f"{name}-own.pem"),
        certificate_chain=(str(tmp_path / f"{name}-root.pem"),),
    )


def test_a_certificate_is_held_to_its_authority(folder: Path, key: SigningKey, tmp_path: Path) -> None:
    params = certified(tmp_path, key, "ours")
    sign_version_files(folder, key, folder / SIGNATURE, params)
    verify_signature(folder, key.public, params)
    theirs = certified(tmp_path, key, "theirs")
    assert not check_signature(folder, key.public, theirs).ok
    assert not check_signature(folder, key.public).ok  # a certificate where keys alone are accepted
    (folder / "weights.bin").write_text("poison")
    with pytest.raises(SignatureError, match="Hash mismatch"):
        verify_signature(folder, key.public, params)


def test_what_a_key_signed_holds_after_the_method_changed(folder: Path, key: SigningKey, tmp_path: Path) -> None:
    sign_version_files(folder, key, folder / SIGNATURE)
    verify_signature(folder, key.public, certified(tmp_path, key, "ours"))


def test_a_key_in_a_token_signs_and_its_public_half_verifies(
    folder: Path, key: SigningKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("PyKCS11", reason="needs model-signing[pkcs11]")
    module = next((path for path in MODULES if Path(path).is_file()), None)
    tool = os.environ.get("SOFTHSM2_UTIL") or shutil.which("softhsm2-util")
    if module is None or tool is None:
        pytest.skip("needs SoftHSM 2 (apt install softhsm2), a token in software")
    (tmp_path / "tokens").mkdir()
    (tmp_path / "softhsm2.conf").write_text(f"directories.tokendir = {tmp_path}/tokens\n")
    monkeypatch.setenv("SOFTHSM2_CONF", str(tmp_path / "softhsm2.conf"))
    (tmp_path / "pin").write_text("1234")
    at = [tool, "--module", module]
    start = [*at, "--init-token", "--free", "--label", "t", "--pin", "1234", "--so-pin", "1234"]
    subprocess.run(start, check=True, capture_output=True)
    move = [*at, "--import", str(key.path), "--token", "t", "--label", "k", "--id", "a1", "--pin", "1234"]
    subprocess.run(move, check=True, capture_output=True)
    uri = f"pkcs11:token=t;object=k?module-path={module}&pin-source={tmp_path}/pin"
    params = SigningParams(method="pkcs11", pkcs11_uri=uri)
    sign_version_files(folder, key, folder / SIGNATURE, params)
    verify_signature(folder, VerifyingKey(key.public.pem), params)
    (folder / "weights.bin").write_text("poison")
    assert not check_signature(folder, key.public, params).ok


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"method": "pkcs11"}, "needs pkcs11_uri"),
        ({"method": "certificate"}, "needs certificate and certificate_chain"),
        ({"method": "sigstore", "identity": "me@example.org"}, "needs oidc_issuer"),
        ({"method": "pkcs11", "pkcs11_uri": "pkcs11:object=k?pin-value=1234"}, "without pin-value"),
    ],
)
def test_a_method_without_what_it_needs_is_refused(given: dict[str, str], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        SigningParams(**given)


def test_a_token_that_is_not_there_is_named(folder: Path, key: SigningKey) -> None:
    params = SigningParams(method="pkcs11", pkcs11_uri="pkcs11:token=none;object=k?module-path=/no/such.so")
    with pytest.raises(SignatureError, match="cannot be signed"):
        sign_version_files(folder, key, folder / SIGNATURE, params)
    assert not (folder / SIGNATURE).exists()
