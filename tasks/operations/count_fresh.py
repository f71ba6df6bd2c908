"""Verb: how many records of a batch are new to the last model.

Counted are the rows of a batch that

1. were not withdrawn, and satisfy the contract (the very check of the run, each batch by itself),
2. pass the steps of curation that look at one pair alone (leaked labels, length limits), and
3. have a canonical prompt, chosen and rejected that neither the last model's curated dataset nor a batch
   counted before them holds.

Not taken off: near duplicates, contradictions, and ids that two batches give to other content. Those are found
among all records, by the run itself, so that the count is an upper bound of what the dataset grows by.
Contents are kept as digests under `.plumbline/freshness`, so that a poll reads each batch once.
"""

from __future__ import annotations

import hashlib
import io
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from plumbline.data_contracts.artifact import write_bytes
from plumbline.data_contracts.records import CuratedPair, PreferencePair, UnpairedResponse, load_jsonl
from plumbline.tasks.data.curate_preferences import UNPAIRED
from plumbline.tasks.data.curation.canonical import canonical
from plumbline.tasks.data.curation.leakage import clean_leaks
from plumbline.tasks.data.curation.limits import apply_limits
from plumbline.tasks.data.curation.pair_texts import contents
from plumbline.tasks.data.curation.verdicts import Item
from plumbline.tasks.data.feedback.readings import map_digest
from plumbline.tasks.data.feedback.validate import sort_rows
from plumbline.tasks.data.feedback.withdrawals import load_withdrawals
from plumbline.tasks.data.validate_feedback import RAW
from plumbline.tasks.params.curation import SPLITS, CurationParams
from plumbline.tasks.params.feedback import FeedbackParams
from plumbline.tasks.params.section import Section
from plumbline.tasks.storage.versioning.objects import ObjectStore

Digests = npt.NDArray[np.bytes_]  # (N,) S16, sorted, distinct: one canonical content each

_BYTES = 16
_CODE = 3  # part of a cache's name: count it up where what is counted changes


def count_fresh(
    root: Path, batches: Mapping[str, Path], known: Digests, feedback: FeedbackParams, curation: CurationParams
) -> dict[str, int]:
    """New records of each batch, beside what is known and beside the batches before it. Keys are `source/name`."""
    counts = {}
    for key, path in batches.items():
        found = batch_contents(root, key.partition("/")[0], path, feedback, curation)
        new = np.setdiff1d(found, known, assume_unique=True)
        counts[key] = len(new)
        known = np.union1d(known, new)
    return counts


def batch_contents(root: Path, source: str, path: Path, feedback: FeedbackParams, curation: CurationParams) -> Digests:
    """The distinct contents of a batch that would come through contract and per-row curation."""
    withdrawn = load_withdrawals(root / RAW)
    cache = _cache(root, f"{source}-{path.name}{withdrawn.digest}{map_digest(path)}", feedback, curation)
    if cache.exists():
        return _read(cache)
    with tempfile.TemporaryDirectory(dir=cache.parent) as name:
        folder = Path(name)
        # no rule on whole data sets: a batch of thumbs, or of one label, is a sound part of one
        named = [(source, _named(root, path), path)]
        sort_rows(named, feedback, folder, withdrawn=withdrawn, skip_unreadable=True)
        pairs = load_jsonl(folder / "accepted.jsonl", PreferencePair)
        single = folder / UNPAIRED
        responses = load_jsonl(single, UnpairedResponse) if single.exists() else ()
        return _write(cache, _distinct([*_of_pairs(pairs, curation), *_of_responses(responses, curation)]))


def _named(root: Path, path: Path) -> str:
    """The batch's name in records, by which it is withdrawn."""
    return path.resolve().relative_to(root.resolve()).as_posix()


def known_contents(root: Path, manifest: Mapping[str, Any] | None, curation: CurationParams) -> Digests:
    """The contents of the curated dataset that a model's manifest names; none without a model."""
    curated = (manifest or {}).get("objects", {}).get("curated")
    if curated is None:
        return _distinct([])
    cache = _cache(root, f"curated-{curated['md5']}", curation)
    if cache.exists():
        return _read(cache)
    with ObjectStore(root).local_files(curated["md5"], [*(f"{split}.jsonl" for split in SPLITS), UNPAIRED]) as files:
        single = files.pop(UNPAIRED, None)
        pairs = (pair for path in files.values() for pair in load_jsonl(path, CuratedPair))
        responses = load_jsonl(single, UnpairedResponse) if single else ()
        return _write(cache, _distinct([*_of_pairs(pairs, curation), *_of_responses(responses, curation)]))


def _of_pairs(pairs: Iterable[PreferencePair], curation: CurationParams) -> Iterator[bytes]:
    items = [Item.of(pair, place) for place, pair in enumerate(pairs)]
    if curation.clean_leaks:
        items = clean_leaks(items).kept
    found = contents(apply_limits(items, curation.limits).kept, curation.matching)
    return (orjson.dumps([content.prompt, content.chosen, content.rejected]) for content in found)


def _of_responses(responses: Iterable[UnpairedResponse], curation: CurationParams) -> Iterator[bytes]:
    for record in responses:
        texts = [canonical(text, curation.matching) for text in (record.prompt_text(), record.response)]
        yield orjson.dumps([*texts, record.desirable])


def _distinct(texts: Iterable[bytes]) -> Digests:
    # the last byte is set, because numpy cuts zero bytes off the end of a bytes value
    raw = [hashlib.blake2b(text, digest_size=_BYTES - 1).digest() + b"\x01" for text in texts]
    return np.unique(np.array(raw, dtype=f"S{_BYTES}"))


def _cache(root: Path, name: str, *sections: Section) -> Path:
    """The cache's file: another one wherever params, and so what is counted, differ."""
    made_with = orjson.dumps([_CODE, *(section.model_dump(mode="json") for section in sections)])
    folder = root / ".plumbline" / "freshness"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}.{hashlib.sha256(made_with).hexdigest()[:12]}.npy"


def _read(cache: Path) -> Digests:
    loaded: Digests = np.load(cache, allow_pickle=False)
    return loaded


def _write(cache: Path, digests: Digests) -> Digests:
    buffer = io.BytesIO()
    np.save(buffer, digests, allow_pickle=False)
    write_bytes(cache, buffer.getvalue())
    return digests
