"""Verb: write a curated set as a file in the shape of another tool.

1. Find the set: what the workspace records now, one by its DVC hash, or that of a registered, signed version.
2. Check the bytes of the splits that are asked for against their hashes.
3. Write them in the shape, read the file back, compare, give it its name (`tasks.data.feedback.shape_files`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal, get_args

from plumbline.data_contracts.errors import RegistryRefused, UsageError, VersioningError
from plumbline.data_contracts.records import CuratedPair, Feedback, PreferencePair, UnpairedResponse, load_jsonl
from plumbline.tasks.data.curate_preferences import STAGE, UNPAIRED
from plumbline.tasks.data.feedback.shape_files import Exported, container_of, write_shape
from plumbline.tasks.data.feedback.shapes import SHAPES
from plumbline.tasks.params.feedback_limits import Limits
from plumbline.tasks.params.registry import RegistryParams
from plumbline.tasks.registry.index_dependents import open_index
from plumbline.tasks.registry.store.client import Store
from plumbline.tasks.registry.versions.manifest import all_paths
from plumbline.tasks.registry.versions.registered import StoredFiles, resolve
from plumbline.tasks.storage.versioning.lock import current_hashes
from plumbline.tasks.storage.versioning.objects import ObjectStore, md5_of

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

_CURATED = str(STAGE.out)
_SHORTEST = 7


@dataclass(frozen=True, slots=True)
class ExportedSet:
    """A file that was written, and the set (DVC hash) and splits that its records are of."""

    dataset: str
    splits: tuple[str, ...]
    file: Exported


def export_dataset(
    root: Path,
    params: RegistryParams,
    to: Path,
    shape: str,
    limits: Limits,
    *,
    dataset: str | None = None,
    model: str | None = None,
    splits: Sequence[Split] = SPLITS,
) -> ExportedSet:
    """Write the pairs of the splits, or the single responses, of one curated set to the file `to`.

    `dataset`: a DVC hash, or its first seven digits or more; `model`: a registered version. By default the set that
    the workspace records. Raises `UsageError` for a set, split or shape that has no such records, `VersioningError` if
    bytes are lost or changed, and `SignatureError` for a version that is not what was signed.
    """
    container_of(to, shape)
    digest = _find(root, params, dataset, model)
    kind = SHAPES[shape].kind
    names = [f"{split}.jsonl" for split in splits] if kind is PreferencePair else [UNPAIRED]
    objects = ObjectStore(root)
    with objects.local_files(digest, names) as files:
        _require_sound(objects, digest, files, names, shape)
        places = [files[name] for name in names]
        written = write_shape(to, shape, lambda: chain.from_iterable(_records(kind, path) for path in places), limits)
    return ExportedSet(digest, tuple(splits) if kind is PreferencePair else (), written)


def _records(kind: type[Feedback], path: Path) -> Iterator[Feedback]:
    return load_jsonl(path, CuratedPair if kind is PreferencePair else UnpairedResponse)


def _find(root: Path, params: RegistryParams, dataset: str | None, model: str | None) -> str:
    """The DVC hash of the set. Raises `UsageError`, `RegistryError` or `SignatureError`."""
    if dataset is not None and model is not None:
        raise UsageError("export: expected one of --dataset and --model, found both. Name one set.")
    if model is not None:
        return _of_model(root, params, model)
    present = current_hashes(root).get(_CURATED)
    if dataset is None:
        if present is None:
            raise UsageError(f"{_CURATED}: expected a curated set, found none. Run `plumbline retrain`, or name one.")
        return present
    return _of_hash(root, params, dataset.removesuffix(".dir"), present)


def _of_model(root: Path, params: RegistryParams, uri: str) -> str:
    store = Store(root, params, read_only=True)
    version = resolve(store, uri)
    stored = StoredFiles(store, version)
    if not (pinned := stored.check_manifest()).ok:
        raise RegistryRefused(
            f"{version.uri}: {pinned.problem()} What it names cannot be trusted; nothing was written."
        )
    stored.require_signed()
    return all_paths(stored.manifest())[_CURATED]


def _of_hash(root: Path, params: RegistryParams, start: str, present: str | None) -> str:
    index, _ = open_index(root, Store(root, params, read_only=True), params)
    known = {f"{digest}.dir" for digest, role in index.datasets(params.model_name) if role == "curated"}
    known |= {present} if present is not None else set()
    found = sorted(digest for digest in known if digest.startswith(start)) if len(start) >= _SHORTEST else []
    if len(found) != 1:
        raise UsageError(
            f"--dataset {start}: expected {_SHORTEST} or more digits of the hash of one curated set, found "
            f"{len(found)} such sets. There are: {', '.join(sorted(known)) or 'none'}."
        )
    return found[0]


def _require_sound(objects: ObjectStore, digest: str, files: dict[str, Path], names: Sequence[str], shape: str) -> None:
    """Raise unless every file is there, one of them has a record, and all have the bytes that their hashes say."""
    absent = [name for name in names if name not in files]
    if absent or not any(files[name].stat().st_size for name in names):
        what = ", ".join(absent or names)
        raise UsageError(
            f"--to {shape}: expected records in {what} of set {digest}, found none. Choose another shape or split."
        )
    listing = objects.listing(digest)
    for name in names:
        if (found := md5_of(files[name])) != listing[name]:
            raise VersioningError(
                f"{files[name]}: expected md5 {listing[name]}, found {found}: the cached copy of {name} was changed. "
                f"Remove that file, and `dvc pull` or `plumbline retrain` bring it back."
            )
