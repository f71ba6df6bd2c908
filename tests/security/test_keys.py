"""Keys: rotated, revoked, trusted by an auditor; a stranger's key and a changed record of keys are refused."""

from __future__ import annotations

import shutil
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest

from plumbline.data_contracts.errors import SignatureError, UsageError
from plumbline.tasks.params.operations import OperationsParams
from plumbline.tasks.params.registry import RegistryParams
from plumbline.tasks.registry.ledger.ledger import history, verify_chain
from plumbline.tasks.registry.manage_keys import add_key, list_keys, public_keys, revoke_key, rotate_key
from plumbline.tasks.registry.signing.keys import PUBLIC_KEY, pin, signing_key, verifying_key
from plumbline.tasks.registry.signing.signatures import SEAL_TAG, seal
from plumbline.tasks.registry.signing.trust import TRUSTED, load_trust, state
from plumbline.tasks.registry.versions.registered import StoredFiles, resolve
from tests.tasks.registry.conftest import Registry

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Settings:
    """The sections that the verb needs."""

    registry: RegistryParams
    operations: OperationsParams = field(default_factory=OperationsParams)


WHO: dict[str, Any] = {"by": "ops", "reason": "yearly"}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The configuration folder of the one who signs; its key is made on first use."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "signer"))
    return tmp_path / "signer" / "plumbline"


@pytest.fixture
def registry(tmp_path: Path, home: Path) -> Registry:
    return Registry(tmp_path / "workspace", "keys")


def check(registry: Registry, number: str) -> None:
    StoredFiles(registry.store, resolve(registry.store, f"models:/keys/{number}")).require_signed()


def fingerprint(registry: Registry) -> str:
    return signing_key(registry.root, registry.params).public.fingerprint


def whole(registry: Registry) -> list[str]:
    return verify_chain(registry.ledger, registry.store)


def test_what_the_old_key_signed_stays_good_after_a_rotation_and_a_revocation(registry: Registry, home: Path) -> None:
    settings = Settings(registry.params)
    registry.register("a")
    old = fingerprint(registry)
    rotate_key(registry.root, settings, **WHO)
    new = fingerprint(registry)
    assert new != old
    made = home / f"signing-{new[:16]}.key"
    assert (stat.S_IMODE(made.stat().st_mode), stat.S_IMODE(home.stat().st_mode)) == (0o600, 0o700)
    registry.register("b")
    for number in "12":
        check(registry, number)
    assert whole(registry) == []

    revoke_key(registry.root, settings, old[:16], everything=False, **WHO)
    for number in "12":
        check(registry, number)
    assert whole(registry) == []
    assert [(row.fingerprint, row.standing) for row in list_keys(registry.root, registry.params)] == [
        (old, "revoked"),
        (new, "signs"),
    ]
    told = [entry for entry in history(registry.ledger, "keys") if entry.action == "keys"]
    assert [(entry.actor, entry.reason, entry.evidence["change"]) for entry in told] == [
        ("ops", "yearly", "add"),
        ("ops", "yearly", "revoke"),
    ]


def test_a_revoked_key_signs_nothing_more(registry: Registry, tmp_path: Path) -> None:
    """Its thief has the private half, and write access to the registry: a new seal and new ledger lines are refused."""
    settings = Settings(registry.params)
    version = registry.register("a")
    stolen = signing_key(registry.root, registry.params)
    rotate_key(registry.root, settings, **WHO)
    revoke_key(registry.root, settings, stolen.public.fingerprint, everything=False, **WHO)
    trusted = verifying_key(registry.root, registry.params)
    assert not trusted.accepts(b"anything new", stolen.sign(b"anything new"))
    forged = StoredFiles(registry.store, version)
    facts = {**forged.facts(), "plumbline.gate": "passed"}

    registry.store.client.set_model_version_tag(version.name, version.number, SEAL_TAG, seal(stolen, facts))
    with pytest.raises(SignatureError, match="revoked key"):
        check(registry, "1")


def test_a_stolen_key_can_be_revoked_with_all_that_it_signed(registry: Registry) -> None:
    settings = Settings(registry.params)
    registry.register("a")
    old = fingerprint(registry)
    rotate_key(registry.root, settings, **WHO)
    registry.register("b")
    revoke_key(registry.root, settings, old, everything=True, **WHO)
    with pytest.raises(SignatureError, match="was revoked"):
        check(registry, "1")
    check(registry, "2")
    assert whole(registry) == []


def test_a_key_does_not_revoke_itself_and_an_unknown_one_is_refused(registry: Registry) -> None:
    settings = Settings(registry.params)
    registry.register("a")
    with pytest.raises(UsageError, match="rotate` first"):
        revoke_key(registry.root, settings, fingerprint(registry), everything=False, **WHO)
    with pytest.raises(UsageError, match="there are"):
        revoke_key(registry.root, settings, "0" * 16, everything=False, **WHO)


def test_an_auditor_verifies_with_the_public_key_alone_and_makes_none(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another configuration folder, with a signing key of its own for other workspaces, and the pinned public key."""
    registry.register("a")
    rotate_key(registry.root, Settings(registry.params), **WHO)
    registry.register("b")
    given = tmp_path / "given.pub"
    given.write_bytes(public_keys(registry.root, registry.params))
    auditor = tmp_path / "auditor"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(auditor))
    check(registry, "2")  # found as it is, nobody to hold it against
    assert not auditor.exists(), "reading makes no key"

    signing_key(tmp_path / "own workspace", RegistryParams())
    with pytest.raises(SignatureError, match="but the signing key of this machine"):
        check(registry, "2")
    pin(given)
    for number in "12":
        check(registry, number)
    assert whole(registry) == []
    with pytest.raises(SignatureError, match="this machine can verify, not sign"):
        signing_key(registry.root, registry.params)


def test_a_stranger_s_key_is_refused(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything signed anew by a stranger, who replaced the workspace's keys by their own: pins and own keys tell."""
    registry.register("a")
    given = tmp_path / "given.pub"
    given.write_bytes(public_keys(registry.root, registry.params))
    copy = (registry.root / PUBLIC_KEY).read_bytes()

    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "stranger"))
    (registry.root / PUBLIC_KEY).unlink()
    stranger = signing_key(registry.root, registry.params)

    state(registry.root, stranger, "add", copy, by="stranger", reason="to look as if it were the owner's")
    check_by = (("signer", False), ("auditor", True))
    for folder, pins in check_by:
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / folder))
        if pins:
            pin(given)
        trusted = verifying_key(registry.root, registry.params)
        assert not trusted.accepts(b"x", stranger.sign(b"x"))


def test_statements_by_nobody_are_refused(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.register("a")
    rotate_key(registry.root, Settings(registry.params), **WHO)
    path = registry.root / TRUSTED
    whole_file = path.read_bytes()
    (entry,) = orjson.loads(whole_file)
    with monkeypatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path / "stranger"))
        stranger = signing_key(tmp_path / "elsewhere", RegistryParams())
    attempts: list[Any] = [
        [{**entry, "reason": "another"}],
        [{**entry, "key": stranger.public.pem.decode()}],
        [{**entry, "signer": stranger.public.fingerprint, "signature": stranger.sign(b"x")}],
        [entry, entry],
        [{**entry, "action": "revoke"}],
        [{"action": "add"}],
        {"keys": []},
    ]
    for attempt in attempts:
        path.write_bytes(orjson.dumps(attempt))
        with pytest.raises(SignatureError, match="expected a chain of statements"):
            load_trust(registry.root)
    path.write_bytes(b"no json")
    with pytest.raises(SignatureError, match="no JSON"):
        check(registry, "1")
    path.write_bytes(whole_file)
    check(registry, "1")


def test_a_revocation_that_was_cut_off_is_missed(registry: Registry) -> None:
    settings = Settings(registry.params)
    registry.register("a")
    old = fingerprint(registry)
    rotate_key(registry.root, settings, **WHO)
    revoke_key(registry.root, settings, old, everything=False, **WHO)
    path = registry.root / TRUSTED
    path.write_bytes(orjson.dumps(orjson.loads(path.read_bytes())[:1]))
    assert "lacks the change of keys" in whole(registry)[0]


def test_two_machines_sign_each_with_its_own_key(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(registry.params)
    registry.register("a")
    first = tmp_path / "first.pub"
    first.write_bytes(public_keys(registry.root, registry.params))
    other = tmp_path / "other.pub"
    with monkeypatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path / "colleague"))
        other.write_bytes(signing_key(tmp_path / "scratch", RegistryParams()).public.pem)
    add_key(registry.root, settings, other, **WHO)
    with pytest.raises(UsageError, match="trusted already"):
        add_key(registry.root, settings, other, **WHO)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "colleague"))
    pin(first)
    registry.register("b")
    assert fingerprint(registry) != list_keys(registry.root, registry.params)[0].fingerprint
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "signer"))
    for number in "12":
        check(registry, number)
    assert whole(registry) == []
    shutil.rmtree(tmp_path / "colleague")
