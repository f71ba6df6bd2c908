"""Near duplicates among distinct texts: candidates by LSH, verdicts by exact similarity.

The template trap. Fills of one template ("What is the refund window for X?") share most of their
shingles, and no threshold on plain Jaccard tells them from copies with an edit. Two measures do:

1. shingles are weighted by their inverse document frequency, so that what all share weighs least;
2. within a neighbourhood of `template_texts` or more texts that resemble one another, frequency is
   measured again among its members alone. A shingle that all hold (the frame) weighs log(n / n) = 0, and one
   text must hold nearly all of the other's content: its words (a greeting beside a blank changes shingles, not words),
   and most of its shingles. Another fill does not; a copy edited in its frame does.

Numbers, operators and negations are decisive: texts in which their sequence differs are never near duplicates.

Where a bucket holds very many texts, its pairs are not all compared; the texts of a neighbourhood that
large are hashed again without its frame, which brings the copies together and parts the fills.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from plumbline.tasks.data.curation.minhash import (
    Pairs,
    Signatures,
    band_keys,
    bucket_chains,
    bucket_pairs,
    distinct_pairs,
    estimated_jaccard,
    signatures,
)
from plumbline.tasks.data.curation.shingles import I64, U64, Shingles, shingle
from plumbline.tasks.data.curation.similarity import (
    F64,
    inverse_document_frequency,
    larger_containment,
    local_document_frequency,
    weighted_jaccard,
)
from plumbline.tasks.data.curation.sketches import Sketches, sketch
from plumbline.tasks.params.curation import MatchingParams

_RESEMBLES = 0.4  # estimated Jaccard that links bucket neighbours into a neighbourhood
_CONTENT_ROWS = 2  # content is a few shingles a text: short bands, or edits in it would hide a copy
_WINDOW = 8  # neighbours in text order that a text of a crowded bucket still meets
_CONTENT_ORDER = 0.65  # share of content shingles that must agree too: the same words in other blanks do not
_CONTENT_SHARE = 0.5  # a shingle that more than half of a neighbourhood holds is its frame


@dataclass(frozen=True, slots=True)
class NearDuplicates:
    """Near duplicates among the texts `alive` of n distinct texts, which are known by number.

    `pairs` are the verified ones, `groups` their connected components (0-based, in order of first member),
    `neighbourhoods` the texts that resemble one another at all, `candidates` what was compared.
    """

    sketches: Sketches
    alive: I64
    candidates: Pairs  # (c, 2)
    pairs: Pairs  # (p, 2)
    groups: I64  # (n,)
    neighbourhoods: I64  # (n,)
    crowded: int

    @property
    def texts(self) -> Sequence[str]:
        """All n texts."""
        return self.sketches.texts


def find_near_duplicates(texts: Sequence[str], params: MatchingParams, seed: int) -> NearDuplicates:
    """Near duplicates among distinct texts. Sort the texts first and the result does not depend on their order."""
    return near_duplicates_among(sketch(texts, params, seed), np.arange(len(texts)), params, seed)


def near_duplicates_among(sketches: Sketches, alive: I64, params: MatchingParams, seed: int) -> NearDuplicates:
    """Near duplicates among some of the texts that were sketched with the same params and seed."""
    # 1. texts that share a bucket with another
    members = alive[sketches.met[alive]]
    if not params.near or not len(members):
        return _none(sketches, alive)
    shingles = sketches.shingles(members)
    # 2. candidates
    length = params.bands * params.rows
    signature = signatures(shingles.row_hashes(), shingles.offsets, length, seed % 2**32)
    keys = np.ascontiguousarray(sketches.keys[:, members])
    neighbourhoods = _neighbourhoods(signature, keys)
    candidates, crowded = bucket_pairs(keys, params.bucket_texts, _WINDOW)
    if crowded:
        extra, still_crowded = _content_pairs(shingles, neighbourhoods, params, seed)
        candidates, crowded = distinct_pairs(np.concatenate([candidates, extra])), crowded + still_crowded
    # 3. verdicts
    weights = inverse_document_frequency(shingles, sketches.frequency(alive), len(alive))
    texts = [sketches.texts[number] for number in members.tolist()]
    pairs = members[_verify(texts, shingles, weights, neighbourhoods, candidates, params)]
    # 4. components
    size = len(sketches.texts)
    joined = _spread_labels(neighbourhoods, members, size)
    return NearDuplicates(sketches, alive, members[candidates], pairs, components(size, pairs), joined, crowded)


def join_equal(near: NearDuplicates, keys: U64) -> NearDuplicates:
    """The same with texts of one key as near duplicates, too: the first of each key with every other.

    `keys` (n,) holds one for each text.
    """
    order = near.alive[np.argsort(keys[near.alive], kind="stable")]
    fresh = np.concatenate([[True], keys[order[1:]] != keys[order[:-1]]])
    first = order[np.flatnonzero(fresh)][np.cumsum(fresh) - 1] if len(order) else order
    extra = np.column_stack([first, order])[first != order]
    if not len(extra):
        return near
    pairs = distinct_pairs(np.concatenate([near.pairs, extra]))
    return replace(near, pairs=pairs, groups=components(len(keys), pairs))


def components(size: int, pairs: Pairs) -> I64:
    """Connected component of each of `size` nodes (0-based, numbered by first member)."""
    graph = coo_matrix((np.ones(len(pairs), dtype=np.int8), (pairs[:, 0], pairs[:, 1])), shape=(size, size))
    _, labels = connected_components(graph.tocsr(), directed=False)
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.asarray(np.argsort(np.argsort(first))[inverse], dtype=np.int64)


def content_weights(shingles: Shingles, neighbourhoods: I64) -> F64:
    """log(n / df) of each entry within its neighbourhood of n texts: 0 for what all share."""
    sizes = np.bincount(neighbourhoods, minlength=1)[neighbourhoods[shingles.rows()]]
    return np.asarray(np.log(sizes / local_document_frequency(shingles, neighbourhoods)), dtype=np.float64)


def _none(sketches: Sketches, alive: I64) -> NearDuplicates:
    no_pairs = np.zeros((0, 2), dtype=np.int64)
    alone = np.arange(len(sketches.texts), dtype=np.int64)
    return NearDuplicates(sketches, alive, no_pairs, no_pairs, alone, alone, 0)


def _spread_labels(labels: I64, members: I64, size: int) -> I64:
    """The labels of members among `size` texts, each other text with a label of its own."""
    found: I64 = np.arange(size, dtype=np.int64) + labels.max() + 1
    found[members] = labels
    return found


def _neighbourhoods(signature: Signatures, keys: U64) -> I64:
    chains = bucket_chains(keys)
    return components(len(signature), chains[estimated_jaccard(signature, chains) >= _RESEMBLES])


def _content_pairs(shingles: Shingles, neighbourhoods: I64, params: MatchingParams, seed: int) -> tuple[Pairs, int]:
    """Candidates within large neighbourhoods, by the shingles that are not their frame."""
    large = np.flatnonzero(np.bincount(neighbourhoods)[neighbourhoods] > params.bucket_texts)
    shingles, neighbourhoods = shingles.take(large), neighbourhoods[large]
    sizes = np.bincount(neighbourhoods, minlength=1)[neighbourhoods[shingles.rows()]]
    frequency = local_document_frequency(shingles, neighbourhoods)
    content = frequency <= _CONTENT_SHARE * sizes
    counts = np.bincount(shingles.rows()[content], minlength=shingles.texts)
    members = np.flatnonzero(counts)
    if not len(members):
        return np.zeros((0, 2), dtype=np.int64), 0
    offsets = np.concatenate([[0], np.cumsum(counts[members])]).astype(np.int64)
    length = params.bands * params.rows // _CONTENT_ROWS * _CONTENT_ROWS
    signature = signatures(shingles.row_hashes()[content], offsets, max(length, _CONTENT_ROWS), seed % 2**32)
    pairs, crowded = bucket_pairs(
        band_keys(signature, signature.shape[1] // _CONTENT_ROWS), params.bucket_texts, params.bucket_texts
    )
    return large[members[pairs]], crowded


def _verify(
    texts: Sequence[str],
    shingles: Shingles,
    weights: F64,
    neighbourhoods: I64,
    candidates: Pairs,
    params: MatchingParams,
) -> Pairs:
    agree = shingles.decisive[candidates[:, 0]] == shingles.decisive[candidates[:, 1]]
    pairs = candidates[agree]
    sizes = np.bincount(neighbourhoods)
    label = neighbourhoods[pairs]
    templated = (label[:, 0] == label[:, 1]) & (sizes[label[:, 0]] >= params.template_texts)
    plain = pairs[~templated]
    plain = plain[weighted_jaccard(shingles, weights, plain) >= params.threshold]
    filled = _verify_filled(texts, shingles, neighbourhoods, pairs[templated], params)
    return distinct_pairs(np.concatenate([plain, filled]))


def _verify_filled(
    texts: Sequence[str], shingles: Shingles, neighbourhoods: I64, pairs: Pairs, params: MatchingParams
) -> Pairs:
    """The near duplicates among pairs within neighbourhoods of templates, which alone are looked at."""
    chosen = np.zeros(neighbourhoods.max() + 1, dtype=bool)
    chosen[neighbourhoods[pairs[:, 0]]] = True
    rows = np.flatnonzero(chosen[neighbourhoods])
    near, shingles, labels = np.searchsorted(rows, pairs), shingles.take(rows), neighbourhoods[rows]
    near = near[_held(shingles, labels, near) >= _CONTENT_ORDER]
    words = shingle([texts[row] for row in rows.tolist()], 1, counted=True)
    near = near[_held(words, labels, near) >= params.containment]
    return rows[near[weighted_jaccard(shingles, np.ones(len(shingles.columns)), near) >= params.threshold]]


def _held(shingles: Shingles, neighbourhoods: I64, pairs: Pairs) -> F64:
    return larger_containment(shingles, content_weights(shingles, neighbourhoods), pairs)
