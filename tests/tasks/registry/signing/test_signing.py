from __future__ import annotations

import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orjson
import pytest

from plumbline.data_contracts.artifact import sha256_file
from plumbline.data_contracts.errors import ParamsError, SignatureError
from plumbline.tasks.params.registry import RegistryParams
from plumbline.tasks.registry.signing.keys import PUBLIC_KEY, SigningKey, default_key_path, signing_key, verifying_key
from plumbline.tasks.registry.signing.signatures import (
    SEAL_TAG,
    SIGNATURE,
    check_signature,
    seal,
    sign_version_files,
    verify_signature,
)
from plumbline.tasks.registry.versions.registered import GATE_TAG, MANIFEST_TAG, resolve
from plumbline.tasks.registry.versions.serving_files import CHECKPOINT, verified_model, verified_version
from plumbline.tasks.registry.versions.stored import seal_facts


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return signing_key(tmp_path / "workspace", RegistryParams(signing_key=str(tmp_path / "key")))


@pytest.fixture
def signed(tmp_path: Path, key: SigningKey) -> Path:
    """A folder of two files and a manifest that names them, signed."""
    folder = tmp_path / "version"
    (folder / "model").mkdir(parents=True)
    (folder / "model/weights.bin").write_text("weights")
    (folder / "model/.gitignore").write_text("*.tmp\n")  # model-signing leaves such files out unless told not to
    write_manifest(folder)
    sign_version_files(folder, key, folder / SIGNATURE)
    return folder


def write_manifest(folder: Path) -> None:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    named = {path.relative_to(folder).as_posix(): {"sha256": sha256_file(path)} for path in files}
    named = {name: entry for name, entry in named.items() if name not in ("manifest.json", SIGNATURE)}
    (folder / "manifest.json").write_bytes(orjson.dumps({"files": named}))


def test_what_was_signed_is_verified(signed: Path, key: SigningKey) -> None:
    verify_signature(signed, key.public)
    assert check_signature(signed, key.public).ok


def _other_key(folder: Path) -> None:
    made = signing_key(folder.parent / "elsewhere", RegistryParams(signing_key=str(folder.parent / "other")))
    sign_version_files(folder, made, folder / SIGNATURE)


def _rewritten(folder: Path) -> None:
    """Weights and manifest changed together, as whoever can write all of them would."""
    (folder / "model/weights.bin").write_text("poison")
    write_manifest(folder)


TAMPERINGS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a changed byte": (lambda folder: (folder / "model/weights.bin").write_text("weightz"), "Hash mismatch.*weights"),
    "a changed hidden file": (lambda folder: (folder / "model/.gitignore").write_text("*"), r"Hash mismatch.*\.git"),
    "a changed manifest": (lambda folder: (folder / "manifest.json").write_text('{"files": {}}'), "manifest.json"),
    "an extra file": (lambda folder: (folder / "model/pickle.bin").write_text("x"), "Extra files.*pickle.bin"),
    "a second signature inside": (lambda folder: (folder / "model" / SIGNATURE).write_text("x"), "Extra files"),
    "an extra .git folder": (lambda folder: _write(folder / ".git/config"), r"Extra files.*\.git/config"),
    "a missing file": (lambda folder: (folder / "model/weights.bin").unlink(), "Missing files.*weights.bin"),
    "a link to the same bytes": (lambda folder: _link(folder / "model/weights.bin"), "symlink"),
    "everything rewritten together": (_rewritten, "Hash mismatch"),
    "no signature": (lambda folder: (folder / SIGNATURE).unlink(), "not signed: model.sig is missing"),
    "an empty signature": (lambda folder: (folder / SIGNATURE).write_text(""), "does not hold"),
    "a signature that is no bundle": (lambda folder: (folder / SIGNATURE).write_text("[1]"), "does not hold"),
    "a signature by another key": (_other_key, "Key mismatch"),
}


@pytest.mark.parametrize("how", TAMPERINGS)
def test_any_tampering_is_found_and_named(signed: Path, key: SigningKey, how: str) -> None:
    tamper, words = TAMPERINGS[how]
    tamper(signed)
    assert not check_signature(signed, key.public).ok
    with pytest.raises(SignatureError, match=words):
        verify_signature(signed, key.public)


def test_a_signature_over_more_than_the_manifest_names_is_refused(signed: Path, key: SigningKey) -> None:
    """Signed by the right key, but the manifest does not name the file: what is signed is what is hashed there."""
    (signed / "model/unnamed.bin").write_text("x")
    sign_version_files(signed, key, signed / SIGNATURE)
    with pytest.raises(SignatureError, match=r"covers other files than manifest.json: model/unnamed.bin"):
        verify_signature(signed, key.public)


def test_every_flipped_bit_of_the_signature_counts(signed: Path, key: SigningKey) -> None:
    """Every 97th byte of the bundle in turn. Only a change that leaves key, payload and signature alike may pass."""
    whole = (signed / SIGNATURE).read_bytes()
    payload = orjson.loads(whole)["dsseEnvelope"]
    for place in range(0, len(whole), 97):
        (signed / SIGNATURE).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        if check_signature(signed, key.public).ok:
            assert orjson.loads((signed / SIGNATURE).read_bytes())["dsseEnvelope"] == payload


def _write(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_text("x")


def _link(path: Path) -> None:
    moved = path.parents[2] / "elsewhere.bin"
    path.rename(moved)
    path.symlink_to(moved)


# The key


def test_the_key_is_made_once_and_its_owner_alone_reads_it(tmp_path: Path) -> None:
    """Eight at once make one key: all get the same."""
    params = RegistryParams(signing_key=str(tmp_path / "config/plumbline/key"))
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda number: signing_key(tmp_path / f"{number}", params).public.pem, range(8)))
    assert len(set(made)) == 1
    path = tmp_path / "config/plumbline/key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(path.parent) == ["key"]
    assert (tmp_path / "0" / PUBLIC_KEY).read_bytes() == made[0]


def test_the_key_is_in_the_persons_configuration_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert signing_key(tmp_path / "w", RegistryParams()).path == tmp_path / "config/plumbline/signing.key"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    assert default_key_path() == Path.home() / ".config/plumbline/signing.key"


@pytest.mark.parametrize("inside", ["signing.key", ".plumbline/signing.key", "link/signing.key"])
def test_a_private_key_never_lies_in_the_workspace(tmp_path: Path, inside: str) -> None:
    root = tmp_path / "workspace"
    (root / "data").mkdir(parents=True)
    (tmp_path / "link").symlink_to(root / "data")
    path = tmp_path / inside if inside.startswith("link") else root / inside
    with pytest.raises(ParamsError, match="outside the workspace"):
        signing_key(root, RegistryParams(signing_key=str(path)))
    assert not path.exists()


def test_a_key_that_others_can_read_is_refused(tmp_path: Path, key: SigningKey) -> None:
    key.path.chmod(0o644)
    with pytest.raises(SignatureError, match=r"found 0644"):
        signing_key(tmp_path / "workspace", RegistryParams(signing_key=str(key.path)))


@pytest.mark.parametrize("content", ["", "not a key", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_a_file_that_is_no_key_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "key"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(SignatureError, match="expected a private EC key"):
        signing_key(tmp_path / "workspace", RegistryParams(signing_key=str(path)))


def test_a_replaced_public_key_is_noticed_where_the_private_key_is(tmp_path: Path, key: SigningKey) -> None:
    root, params = tmp_path / "workspace", RegistryParams(signing_key=str(key.path))
    other = signing_key(tmp_path / "other", RegistryParams(signing_key=str(tmp_path / "attacker"))).public
    (root / PUBLIC_KEY).write_bytes(other.pem)
    for opened in (signing_key, verifying_key):
        with pytest.raises(SignatureError, match=f"trusts key {other.fingerprint[:16]}, but the signing key"):
            opened(root, params)


def test_a_machine_without_the_private_key_verifies_with_the_copy(
    tmp_path: Path, key: SigningKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PLUMBLINE_KEY", raising=False)
    elsewhere = RegistryParams(signing_key="$PLUMBLINE_KEY")
    assert verifying_key(tmp_path / "workspace", elsewhere) == key.public
    with pytest.raises(ParamsError, match="environment variable PLUMBLINE_KEY, found it unset"):
        signing_key(tmp_path / "workspace", elsewhere)
    with pytest.raises(SignatureError, match="expected the public key"):
        verifying_key(tmp_path / "bare", elsewhere)
    monkeypatch.setenv("PLUMBLINE_KEY", str(key.path))
    assert signing_key(tmp_path / "workspace", elsewhere) == key


def test_a_machine_that_can_only_verify_makes_no_key(tmp_path: Path, key: SigningKey) -> None:
    root, params = tmp_path / "workspace", RegistryParams(signing_key=str(tmp_path / "none"))
    with pytest.raises(SignatureError, match="can verify, not sign"):
        signing_key(root, params)
    assert not (tmp_path / "none").exists()
    assert verifying_key(root, params) == key.public


# Versions


@pytest.mark.slow
def test_a_registered_version_is_signed_and_sealed(registry: Any) -> None:
    version = registry.register("a")
    folder = verified_version(registry.store, version, registry.root)
    assert (folder / SIGNATURE).is_file()
    assert SEAL_TAG in version.tags


@pytest.mark.slow
def test_manifest_tag_and_file_rewritten_together_are_caught(registry: Any) -> None:
    """What stood in the known limits: every hash agrees with every other, only the key's signature does not."""
    version = registry.register("a")
    stored = registry.stored(version)
    (stored.folder / "model/weights.bin").write_text("poison")
    manifest = stored.manifest()
    manifest["files"]["model/weights.bin"]["sha256"] = sha256_file(stored.folder / "model/weights.bin")
    (stored.folder / "manifest.json").write_bytes(orjson.dumps(manifest))
    digest = sha256_file(stored.folder / "manifest.json")
    registry.store.client.set_model_version_tag(version.name, version.number, MANIFEST_TAG, digest)
    stored = registry.stored(version)
    assert stored.check_manifest().ok
    assert all(check.ok for check in stored.check_files(manifest["files"]))
    with pytest.raises(SignatureError, match="Hash mismatch"):
        stored.require_signed()


def _swap(registry: Any, first: Any, second: Any) -> None:
    """Version 1's folder gets everything of version 2, its valid signature included."""
    one, two = registry.stored(first).folder, registry.stored(second).folder
    for name in ("model/weights.bin", "manifest.json", SIGNATURE):
        (one / name).write_bytes((two / name).read_bytes())


@pytest.mark.slow
def test_the_checkpoint_of_another_version_does_not_fit(registry: Any) -> None:
    first, second = registry.register("a"), registry.register("b")
    _swap(registry, first, second)
    with pytest.raises(SignatureError, match=rf"{first.uri}: expected .*, found"):
        registry.stored(first).require_signed()
    client = registry.store.client
    for tag in (MANIFEST_TAG, "plumbline.key", SEAL_TAG):  # the tags too: signature and seal are genuine, of version 2
        client.set_model_version_tag(first.name, first.number, tag, second.tags[tag])
    with pytest.raises(SignatureError, match="a seal of other facts"):
        registry.stored(first).require_signed()


def test_a_verdict_that_was_turned_is_caught(registry: Any) -> None:
    version = registry.register("a", passed=False)
    registry.store.client.set_model_version_tag(version.name, version.number, GATE_TAG, "passed")
    with pytest.raises(SignatureError, match="a seal of other facts"):
        registry.stored(version).require_signed()


def test_registering_again_seals_no_verdict_that_was_turned(registry: Any) -> None:
    """The tag says passed and the seal is gone: the signed manifest says rejected, and it is believed."""
    version = registry.register("a", passed=False)
    registry.store.client.set_model_version_tag(version.name, version.number, GATE_TAG, "passed")
    registry.store.client.delete_model_version_tag(version.name, version.number, SEAL_TAG)
    with pytest.raises(SignatureError, match=r"plumbline.gate='passed' \(manifest: 'rejected'\).* not sealed"):
        registry.register("a", passed=False)
    found = resolve(registry.store, version.uri)
    assert (SEAL_TAG in found.tags, found.aliases) == (False, ())


@pytest.mark.slow
def test_aliases_are_given_to_verified_versions_alone(registry: Any) -> None:
    """The seal is genuine, of a rejected version; its tag says passed."""
    version = registry.register("a", passed=False)
    registry.store.client.set_model_version_tag(version.name, version.number, GATE_TAG, "passed")
    with pytest.raises(SignatureError, match="a seal of other facts"):
        registry.register("a", passed=False)
    assert resolve(registry.store, version.uri).aliases == ()


def test_a_verdict_changed_in_an_unsigned_manifest_is_not_signed(registry: Any) -> None:
    version = registry.register("a", passed=False)
    stored = registry.stored(version)
    (stored.folder / SIGNATURE).unlink()
    manifest = {**stored.manifest(), "gate": {"passed": True}}
    (stored.folder / "manifest.json").write_bytes(orjson.dumps(manifest))
    digest = sha256_file(stored.folder / "manifest.json")
    client = registry.store.client
    for tag, value in ((MANIFEST_TAG, digest), (GATE_TAG, "passed")):
        client.set_model_version_tag(version.name, version.number, tag, value)
    client.delete_model_version_tag(version.name, version.number, SEAL_TAG)
    with pytest.raises(SignatureError, match="gate: not that of the results at hand"):
        registry.register("a", passed=False)


@pytest.mark.slow
def test_the_seal_pins_the_bytes_of_the_signature(registry: Any) -> None:
    version = registry.register("a")
    with (registry.stored(version).folder / SIGNATURE).open("ab") as file:
        file.write(b" ")
    with pytest.raises(SignatureError, match="a seal of other facts"):
        registry.stored(version).require_signed()


@pytest.mark.slow
def test_a_seal_of_a_program_before_that_still_holds(registry: Any) -> None:
    version = registry.register("a")
    old = seal(signing_key(registry.root, registry.params), seal_facts(version))
    registry.store.client.set_model_version_tag(version.name, version.number, SEAL_TAG, old)
    registry.stored(version).require_signed()


@pytest.mark.slow
def test_a_lost_signature_is_made_again_with_its_seal(registry: Any) -> None:
    version = registry.register("a")
    (registry.stored(version).folder / SIGNATURE).unlink()
    registry.register("a")
    registry.stored(version).require_signed()


@pytest.mark.slow
def test_registering_again_signs_what_was_left_unsigned(registry: Any) -> None:
    version = registry.register("a")
    (registry.stored(version).folder / SIGNATURE).unlink()
    registry.store.client.delete_model_version_tag(version.name, version.number, SEAL_TAG)
    with pytest.raises(SignatureError, match="not signed"):
        registry.stored(version).require_signed()
    assert registry.register("a").number == version.number
    registry.stored(version).require_signed()


@pytest.mark.slow
def test_registering_again_signs_nothing_that_was_changed(registry: Any) -> None:
    version = registry.register("a")
    folder = registry.stored(version).folder
    (folder / SIGNATURE).unlink()
    (folder / "model/weights.bin").write_text("poison")
    with pytest.raises(SignatureError, match=r"model/weights.bin: changed in mlflow.*It was not signed"):
        registry.register("a")
    assert not (folder / SIGNATURE).exists()


@pytest.mark.slow
def test_a_checkpoint_must_hold_all_that_its_answers_need(registry: Any) -> None:
    version = registry.register("a")
    with pytest.raises(SignatureError, match=r"without the model's configuration, a tokenizer, .*generation settings"):
        verified_model(registry.store, version, registry.root)
    assert resolve(registry.store, version.uri) == version
    assert CHECKPOINT == "model"
