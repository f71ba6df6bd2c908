"""Model versions in MLflow: registration that a crash cannot spoil, aliases, look-up, stored files.

Order of a registration, each step safe to repeat:

1. a logged model tagged with the key of the results (reused when a crash left one);
2. its artifacts, re-hashed where they lie against what the manifest will say;
3. their signature, verified against them;
4. manifest, then the version itself, created with all its tags at once: the commit point;
5. the seal, a signed tag that binds number and manifest;
6. the alias `candidate`, through the promotion ledger: it names the latest version that passed the gate, and serves
   nobody. No alias that serves is given here (`tasks.operations.promote_model` does, behind its gates).

Steps 3 and 5 are made up for where a crash, or a program before signing, left a version without them.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import Engine

from plumbline.data_contracts.artifact import MANIFEST as MANIFEST
from plumbline.data_contracts.artifact import write_bytes
from plumbline.data_contracts.errors import RegistryError, SignatureError, UnknownModelError
from plumbline.tasks.params.operations import OperationsParams
from plumbline.tasks.registry.ledger.ledger import Move, alias_state, history, move_aliases, open_ledger
from plumbline.tasks.registry.signing.keys import signing_key, verifying_key
from plumbline.tasks.registry.signing.signatures import SEAL_TAG, SIGNATURE, seal, sign_version_files, verify_signature
from plumbline.tasks.registry.store.client import Store, refusals
from plumbline.tasks.registry.store.fetching import fetched
from plumbline.tasks.registry.store.reader import VersionRecord
from plumbline.tasks.registry.versions.stored import GATE_TAG as GATE_TAG
from plumbline.tasks.registry.versions.stored import KEY_TAG as KEY_TAG
from plumbline.tasks.registry.versions.stored import MANIFEST_TAG as MANIFEST_TAG
from plumbline.tasks.registry.versions.stored import StoredFiles as StoredFiles
from plumbline.tasks.registry.versions.stored import Version as Version
from plumbline.tasks.registry.versions.stored import check_folder

CANDIDATE, CHAMPION = "candidate", "champion"
REGISTRATION = "registration"  # who moves aliases when a version is registered
OBJECT_TAG = "plumbline.md5."
_VERDICT = ("gate", "evaluation")  # parts of a manifest that decide, and are the same whenever it is made
_URI = re.compile(
    r"^(?:models:/)?(?P<name>[A-Za-z0-9][A-Za-z0-9_.-]*)(?:@(?P<alias>[^/@]+)|/(?P<version>[1-9][0-9]*))?$"
)


@dataclass(frozen=True, slots=True)
class Upload:
    """A folder to register, under a name within the version's artifacts."""

    folder: Path
    name: str


def results_key(digests: Sequence[str]) -> str:
    """One key for the results that a version stands for (policy, evaluation, gate): SHA-256 of their digests."""
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def register(
    store: Store,
    *,
    key: str,
    run_id: str,
    experiment_id: str,
    uploads: Sequence[Upload],
    texts: Mapping[str, str],
    manifest: Mapping[str, Any],
    ledger: Engine | None = None,
) -> Version:
    """Register and sign results as a new version, or finish and return the version they already have.

    `texts` are further files (the model card), `manifest` names every file with its SHA-256. `ledger` is the
    operations database, the workspace's own SQLite where None. Raises `RegistryError`, also when what MLflow stored
    is not what was handed over, and `SignatureError`.
    """
    name = store.params.model_name
    ledger = open_ledger(store.root, OperationsParams()) if ledger is None else ledger
    known = find_by_key(store, name, key)
    if known is None:
        data = orjson.dumps(manifest, option=orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2) + b"\n"
        with refusals(f"registering {name}"):
            model_id = _logged_model(store, experiment_id, name, key, run_id)
            _upload(store, model_id, uploads, {**texts, MANIFEST: data.decode()})
            _verify_upload(store, model_id, manifest["files"])
            _sign_upload(store, model_id)
            store.client.finalize_logged_model(model_id, "READY")
            _create_version(store, name, model_id, run_id, _tags(key, manifest, data))
    else:
        _complete_signature(store, known, manifest)
    _complete_seal(store, find_by_key(store, name, key))
    return settle_candidate(store, name, key, ledger)


def settle_candidate(store: Store, name: str, key: str, ledger: Engine) -> Version:
    """Make a version that passed the candidate, on record; a rejected one gets no alias. Returns it as it then is."""
    version = find_by_key(store, name, key)
    if version is None:
        raise RegistryError(f"{name}: the version just registered is not to be found. Run again.")
    if version.passed:
        moves = _candidate_move(store, version, ledger)
        if moves:
            StoredFiles(store, version).require_signed(verifying_key(store.root, store.params))
            move_aliases(
                ledger,
                store,
                moves,
                action="assign",
                actor=REGISTRATION,
                reason="registered, and passed its gate",
                evidence={"gate": "passed", "manifest_sha256": version.tags.get(MANIFEST_TAG)},
                outside="record",
            )
    return resolve(store, version.uri)


def settled_version(store: Store, key: str, ledger: Engine) -> Version | None:
    """The version of these results where registering them again would change nothing; None if it would."""
    found = (item for item in all_versions(store, store.params.model_name) if item.tags.get(KEY_TAG) == key)
    version = next(found, None)
    if version is None or SEAL_TAG not in version.tags or (version.passed and _candidate_move(store, version, ledger)):
        return None
    return version if (StoredFiles(store, version).folder / SIGNATURE).is_file() else None


def _candidate_move(store: Store, version: Version, ledger: Engine) -> list[Move]:
    """`candidate` to this version, unless it is there."""
    state = alias_state(history(ledger, version.name))
    holders = {alias: item.number for item in all_versions(store, version.name) for alias in item.aliases}
    before = state[CANDIDATE].version if CANDIDATE in state else None
    there = before == holders.get(CANDIDATE) == version.number
    return [] if there else [Move(CANDIDATE, version.number, before)]


def find_by_key(store: Store, name: str, key: str) -> Version | None:
    """The version that stands for these results, if they were registered before."""
    with refusals(f"looking up {name}"):
        found = store.client.search_model_versions(f"name = '{name}' and tags.`{KEY_TAG}` = '{key}'", max_results=1)
    return resolve(store, f"models:/{name}/{found[0].version}") if found else None


def all_versions(store: Store, name: str) -> list[Version]:
    """Every version of a model, oldest first, with its aliases."""
    with refusals(f"listing {name}"):
        model, found = store.reader.model(name), store.reader.versions(name)
    return [_version(name, item, model[0] if model else {}) for item in found]


def resolve(store: Store, uri: str) -> Version:
    """The version that a URI names: `models:/NAME@ALIAS`, `models:/NAME/NUMBER`, or NAME alone.

    NAME alone means its champion, or else its candidate, or else its latest version.
    Raises `UnknownModelError` when there is none.
    """
    match = _URI.fullmatch(uri)
    if match is None:
        raise UnknownModelError(f"{uri}: expected models:/NAME@ALIAS, models:/NAME/VERSION or NAME.")
    name, number = match["name"], match["version"]
    with refusals(f"looking up {name}"):
        model = store.reader.model(name)
        holders = model[0] if model else {}
        if number is None:
            number = _holder(holders, match["alias"])
        if number is None and match["alias"] is None:
            number = store.reader.latest(name)
        found = store.reader.version(name, number) if number is not None else None
    if found is None:
        raise _unknown(store, uri, name)
    return _version(name, found, holders)


def _holder(holders: Mapping[str, str], alias: str | None) -> str | None:
    """The version that an alias names, or, where none is asked for, the champion or else the candidate."""
    wanted = [alias] if alias is not None else [CHAMPION, CANDIDATE]
    return next((holders[item] for item in wanted if item in holders), None)


def _unknown(store: Store, uri: str, name: str) -> UnknownModelError:
    versions = all_versions(store, name)
    if not versions:
        return UnknownModelError(f"{uri}: no version of {name!r} in {store.name}. `plumbline retrain` registers one.")
    known = sorted({alias for version in versions for alias in version.aliases})
    return UnknownModelError(
        f"{uri}: no such version; {name} has versions {versions[0].number} to {versions[-1].number} "
        f"and aliases {', '.join(known) or 'none'}."
    )


def _logged_model(store: Store, experiment_id: str, name: str, key: str, run_id: str) -> str:
    """The logged model for these results: one that a crash left, or a new one."""
    query = f"name = '{name}' AND tags.`{KEY_TAG}` = '{key}'"
    left = store.client.search_logged_models([experiment_id], query, max_results=1)
    if left:
        return str(left[0].model_id)
    made = store.client.create_logged_model(experiment_id, name=name, source_run_id=run_id, tags={KEY_TAG: key})
    return str(made.model_id)


def _upload(store: Store, model_id: str, uploads: Sequence[Upload], texts: Mapping[str, str]) -> None:
    store.located(str(store.client.get_logged_model(model_id).artifact_location))
    for upload in uploads:
        store.client.log_model_artifacts(model_id, str(upload.folder), upload.name)
    with tempfile.TemporaryDirectory() as scratch:
        for name, text in texts.items():
            write_bytes(Path(scratch) / name, text.encode())
        store.client.log_model_artifacts(model_id, scratch)


def _verify_upload(store: Store, model_id: str, files: Mapping[str, Mapping[str, Any]]) -> None:
    location = str(store.client.get_logged_model(model_id).artifact_location)
    with fetched(store, location) as folder:
        bad = [check.problem() for check in check_folder(folder, files) if not check.ok]
    if bad:
        raise RegistryError(
            f"what MLflow stored is not what was handed over: {' '.join(bad[:3])} Was a file changed meanwhile? "
            f"Run again; nothing was registered."
        )


def _sign_upload(store: Store, model_id: str) -> None:
    """Sign the files where they lie, put the signature beside them, and verify it there."""
    location = str(store.client.get_logged_model(model_id).artifact_location)
    key = signing_key(store.root, store.params)
    with tempfile.TemporaryDirectory() as scratch:
        with fetched(store, location) as folder:
            sign_version_files(folder, key, Path(scratch) / SIGNATURE, store.params.signing)
        store.client.log_model_artifacts(model_id, scratch)
    with fetched(store, location) as folder:
        verify_signature(folder, verifying_key(store.root, store.params), store.params.signing)


def _complete_signature(store: Store, version: Version, manifest: Mapping[str, Any]) -> None:
    """Sign a version that was left unsigned, if its files and its verdict are still the results at hand."""
    stored = StoredFiles(store, version)
    if (stored.folder / SIGNATURE).is_file():
        return
    results = {name: entry["sha256"] for name, entry in manifest["files"].items() if "/" in name}
    kept = stored.manifest()
    named = kept["files"]
    checks = (stored.check_manifest(), *stored.check_files(named))
    bad = [check.problem() for check in checks if not check.ok]
    bad += [
        f"{name}: not the results at hand." for name, sha in results.items() if named.get(name, {}).get("sha256") != sha
    ]
    bad += [
        f"{part}: not that of the results at hand." for part in _VERDICT if _plain(kept, part) != _plain(manifest, part)
    ]
    if bad:
        raise SignatureError(
            f"{version.uri}: unsigned, and not what these results are: {' '.join(bad[:3])} It was not signed. Find out "
            f"who changed it (`plumbline audit {version.uri}`); delete it (`plumbline delete`) to register anew."
        )
    with refusals(f"signing {version.uri}"):
        if SEAL_TAG in version.tags:  # it seals the signature that is gone; first, so that a crash leaves no misfit
            store.client.delete_model_version_tag(version.name, version.number, SEAL_TAG)
        source = str(store.client.get_model_version(version.name, version.number).source)
        _sign_upload(store, source.removeprefix("models:/"))


def _plain(manifest: Mapping[str, Any], part: str) -> bytes:
    return orjson.dumps(manifest.get(part), option=orjson.OPT_SORT_KEYS)


def _complete_seal(store: Store, version: Version | None) -> None:
    """Seal a version that has no seal, once its files are verified. A seal that does not fit stays, to be found.

    What is sealed is what the verified manifest says; tags that say otherwise were changed, and are refused.
    """
    if version is None or SEAL_TAG in version.tags:
        return
    stored = StoredFiles(store, version)
    key = signing_key(store.root, store.params)
    verify_signature(stored.folder, verifying_key(store.root, store.params), store.params.signing)
    facts = stored.facts()
    wrong = [tag for tag in (KEY_TAG, MANIFEST_TAG, GATE_TAG) if version.tags.get(tag) != facts[tag]]
    if wrong:
        found = ", ".join(f"{tag}={version.tags.get(tag)!r} (manifest: {facts[tag]!r})" for tag in wrong)
        raise SignatureError(
            f"{version.uri}: expected the tags that its signed manifest stands for, found {found}. It was not sealed. "
            f"Find out who changed them in MLflow; delete it (`plumbline delete`) to register anew."
        )
    with refusals(f"sealing {version.uri}"):
        store.client.set_model_version_tag(version.name, version.number, SEAL_TAG, seal(key, facts))


def _create_version(store: Store, name: str, model_id: str, run_id: str, tags: Mapping[str, str]) -> None:
    from mlflow.exceptions import MlflowException

    try:
        store.client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    with store.as_default():
        store.client.create_model_version(
            name, source=f"models:/{model_id}", run_id=run_id, model_id=model_id, tags=dict(tags)
        )


def _tags(key: str, manifest: Mapping[str, Any], data: bytes) -> dict[str, str]:
    return {
        KEY_TAG: key,
        MANIFEST_TAG: hashlib.sha256(data).hexdigest(),
        GATE_TAG: "passed" if manifest["gate"]["passed"] else "rejected",
        **{f"{OBJECT_TAG}{role}": entry["md5"] for role, entry in manifest["objects"].items()},
    }


def _version(name: str, found: VersionRecord, holders: Mapping[str, str]) -> Version:
    """A version of a reader. `holders`: alias -> number of the version that it names."""
    aliases = sorted(alias for alias, number in holders.items() if number == found.number)
    return Version(name, found.number, tuple(aliases), found.tags, found.run_id)
