"""Canonical forms: what makes two texts the same, whatever their spacing or case."""

from __future__ import annotations

import unicodedata

from plumbline.tasks.params.curation import MatchingParams


def canonical(text: str, params: MatchingParams) -> str:
    """Unicode NFKC, then case folded and white space collapsed as params say. Idempotent.

    NFKC runs again after folding, since folding may undo it (Unicode 3.13, D146).
    """
    text = _composed(text)
    if params.fold_case:
        text = _composed(text.casefold())
    return " ".join(text.split()) if params.fold_space else text


def _composed(text: str) -> str:
    """NFKC, which leaves ASCII as it is."""
    return text if text.isascii() else unicodedata.normalize("NFKC", text)
