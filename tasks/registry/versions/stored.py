"""A registered version and its files as MLflow keeps them, to be verified against tags, seal and signature."""

from __future__ import annotations

import hashlib
import re
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from plumbline.data_contracts.artifact import MANIFEST, sha256_file
from plumbline.data_contracts.errors import RegistryError, SignatureError
from plumbline.data_contracts.verification import HashCheck
from plumbline.tasks.registry.signing.keys import VerifyingKey, verifying_key
from plumbline.tasks.registry.signing.signatures import SEAL_TAG, SIGNATURE, check_seal, check_signature, explain
from plumbline.tasks.registry.store.client import Store
from plumbline.tasks.registry.store.fetching import cached, in_place, scratch
from plumbline.tasks.registry.store.lookup import location_of

KEY_TAG, MANIFEST_TAG, GATE_TAG = "plumbline.key", "plumbline.manifest_sha256", "plumbline.gate"


@dataclass(frozen=True, slots=True)
class Version:
    """One registered version. `tags` hold the gate's verdict, the manifest's SHA-256 and DVC hashes by role."""

    name: str
    number: str
    aliases: tuple[str, ...]
    tags: Mapping[str, str]
    run_id: str | None

    @property
    def uri(self) -> str:
        """The URI that names this version for good."""
        return f"models:/{self.name}/{self.number}"

    @property
    def passed(self) -> bool:
        """True if it passed the gate."""
        return self.tags.get(GATE_TAG) == "passed"


class StoredFiles:
    """The files of a version as MLflow keeps them; fetched first where the store is not on this machine."""

    def __init__(self, store: Store, version: Version) -> None:
        location = location_of(store, version.name, version.number)
        self.store = store
        self.version = version
        self.folder = self._fetch(location)

    def manifest(self) -> dict[str, Any]:
        """The manifest. Raises `RegistryError` when it is missing or unreadable."""
        try:
            manifest: dict[str, Any] = orjson.loads((self.folder / MANIFEST).read_bytes())
        except (OSError, orjson.JSONDecodeError) as error:
            raise RegistryError(f"{self.version.uri}: its {MANIFEST} cannot be read: {error}") from error
        return manifest

    def facts(self) -> dict[str, str]:
        """The facts that the seal signs, from the files themselves: call it where their signature was verified."""
        manifest = self.manifest()
        return {
            "model": self.version.name,
            "version": self.version.number,
            KEY_TAG: str(manifest["model"]["key"]),
            MANIFEST_TAG: sha256_file(self.folder / MANIFEST),
            GATE_TAG: "passed" if manifest["gate"]["passed"] else "rejected",
            SIGNATURE: sha256_file(self.folder / SIGNATURE),
        }

    def check_manifest(self) -> HashCheck:
        """Re-hash the manifest against the SHA-256 in the version's tags."""
        path = self.folder / MANIFEST
        found = sha256_file(path) if path.is_file() else None
        return HashCheck(MANIFEST, "manifest", self.version.tags.get(MANIFEST_TAG, "no tag"), "mlflow", found)

    def check_signed(self, key: VerifyingKey | None = None) -> list[HashCheck]:
        """Verify the signature over all files, and the seal that binds them to this version: one row each.

        By the key that the store's workspace trusts, or the one given.
        """
        key = verifying_key(self.store.root, self.store.params) if key is None else key
        return [check_signature(self.folder, key, self.store.params.signing), self._check_seal(key)]

    def require_signed(self, key: VerifyingKey | None = None) -> None:
        """`check_manifest` and `check_signed`. Raises `SignatureError` at the first that is not ok."""
        for check in (self.check_manifest(), *self.check_signed(key)):
            if not check.ok:
                raise SignatureError(explain(self.version.uri, check))

    def check_files(self, files: Mapping[str, Mapping[str, Any]]) -> list[HashCheck]:
        """Re-hash every file that the manifest names; a file it does not name fails too."""
        return check_folder(self.folder, files)

    def _check_seal(self, key: VerifyingKey) -> HashCheck:
        """The seal pins the bytes of `model.sig`; one of a program before that did not, and holds as it was made."""
        facts, sign = seal_facts(self.version), self.version.tags.get(SEAL_TAG)
        path = self.folder / SIGNATURE
        pinned = {**facts, SIGNATURE: sha256_file(path) if path.is_file() else ""}
        found = check_seal(pinned, sign, key)
        old = check_seal(facts, sign, key)
        return old if old.ok else found

    def _fetch(self, location: str) -> Path:
        folder, seal = in_place(location), self.version.tags.get(SEAL_TAG)
        if folder is not None:
            return folder
        if seal is None:  # nothing pins it: looked at, and not kept
            folder, remove = scratch(self.store, location)
            weakref.finalize(self, remove)
            return folder
        pinned = self.version.tags.get(MANIFEST_TAG, "")
        if not re.fullmatch("[0-9a-f]{64}", pinned):
            raise SignatureError(
                f"{self.version.uri}: expected a SHA-256 in tag {MANIFEST_TAG}, found {pinned[:70]!r}."
            )
        name = f"{pinned}/{hashlib.sha256(seal.encode()).hexdigest()[:16]}"
        return cached(self.store, location, name, lambda kept: self._whole(kept, pinned))

    @staticmethod
    def _whole(folder: Path, pinned: str) -> bool:
        """True if a kept folder still is the pinned manifest and all that it names."""
        path = folder / MANIFEST
        if not path.is_file() or sha256_file(path) != pinned or not (folder / SIGNATURE).is_file():
            return False
        return all(check.ok for check in check_folder(folder, orjson.loads(path.read_bytes())["files"]))


def seal_facts(version: Version) -> dict[str, str]:
    """The facts that a version's seal signs, by its tags."""
    tags = {tag: version.tags.get(tag, "") for tag in (KEY_TAG, MANIFEST_TAG, GATE_TAG)}
    return {"model": version.name, "version": version.number, **tags}


def check_folder(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> list[HashCheck]:
    """Re-hash every file that is named; a file that is not named fails too."""
    checks = []
    for name, entry in sorted(files.items()):
        path = folder / name
        found = sha256_file(path) if path.is_file() else None
        checks.append(HashCheck(name, _kind(name), entry["sha256"], "mlflow", found))
    present = (item.relative_to(folder).as_posix() for item in sorted(folder.rglob("*")) if item.is_file())
    extra = [name for name in present if name not in files and name not in (MANIFEST, SIGNATURE)]
    return checks + [HashCheck(name, _kind(name), "no such file", "mlflow", "an extra file") for name in extra]


def _kind(name: str) -> str:
    return {"model": "registered model", "evaluation": "evaluation", "gate": "gate"}.get(name.split("/")[0], "report")
