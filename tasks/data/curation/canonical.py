"""Canonical forms: what makes two texts the same, whatever their spacing or case."""

from __future__ import annotations

import unicodedata

from plumbline.tasks.params.curation import MatchingParams


def canonical(text: str, params: MatchingParams) -> str:
    """Unicode NFKC, then case folded and white space collapsed as params say. Idempotent.

    NFKC runs again after folding, since folding may undo it (Unicode 3.13, D146).
    """
    text = unicodedata.normalize("NFKC", text)
    if params.fold_case:
        text = unicodedata.normalize("NFKC", text.casefold())
    return " ".join(text.split()) if params.fold_space else text
