"""Differences of two versions of one file, by kind: weights, metrics, records, anything else."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from plumbline.tasks.params.section import flatten

_SHOWN = 5


def compare_files(name: str, recorded: Path, found: Path) -> dict[str, Any]:
    """{"file", "kind", ...}: weights: max_abs, relative_norm; metrics: the largest; records: differing lines."""
    if name.endswith(".safetensors"):
        return {"file": name, "kind": "weights", **compare_weights(recorded, found)}
    if name.endswith(".jsonl"):
        return {"file": name, "kind": "records", **compare_lines(recorded, found)}
    if name.endswith(".json"):
        return {"file": name, "kind": "figures", **compare_figures(recorded, found)}
    return {"file": name, "kind": "bytes", "sizes": [recorded.stat().st_size, found.stat().st_size]}


def compare_weights(recorded: Path, found: Path) -> dict[str, Any]:
    """Largest |difference| of one weight, and the norm of all differences over the norm of the recorded weights."""
    from safetensors import safe_open

    largest, where, squares, norm = 0.0, "", 0.0, 0.0
    with safe_open(recorded, framework="pt") as a, safe_open(found, framework="pt") as b:
        shared = sorted(set(a.keys()) & set(b.keys()))
        only = sorted(set(a.keys()) ^ set(b.keys()))
        for key in shared:
            one, other = a.get_tensor(key).double(), b.get_tensor(key).double()
            if one.shape != other.shape:
                only.append(f"{key}: {list(one.shape)} against {list(other.shape)}")
                continue
            delta = (one - other).abs()
            peak = float(delta.max()) if delta.numel() else 0.0
            if math.isnan(peak) or peak > largest:
                largest, where = peak, key
            squares += float((delta**2).sum())
            norm += float((one**2).sum())
    relative = math.sqrt(squares / norm) if norm else math.sqrt(squares)
    return {"max_abs": largest, "at": where, "relative_norm": relative, "unmatched": only[:_SHOWN]}


def compare_lines(recorded: Path, found: Path) -> dict[str, Any]:
    """The number of lines in one file alone, in any order; `reordered` if only the order differs."""
    one, other = (Counter(path.read_bytes().splitlines()) for path in (recorded, found))
    missing, new = (one - other).total(), (other - one).total()
    return {"missing": missing, "new": new, "of": one.total(), "reordered": missing == new == 0}


def compare_figures(recorded: Path, found: Path) -> dict[str, Any]:
    """The leaves that differ, the largest difference first, and how many they are."""
    one, other = _leaves(recorded), _leaves(found)
    if one is None or other is None:
        return {"differing": None, "largest": []}
    pairs = [(key, one.get(key), other.get(key)) for key in sorted(one.keys() | other.keys())]
    apart = [(key, a, b) for key, a, b in pairs if a != b]
    apart.sort(key=lambda item: -_distance(item[1], item[2]))
    shown = [{"key": key, "recorded": a, "found": b} for key, a, b in apart[:_SHOWN]]
    return {"differing": len(apart), "largest": shown}


def _leaves(path: Path) -> dict[str, Any] | None:
    try:
        document = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError:
        return None
    return {key: value for key, value in flatten(document)} if isinstance(document, Mapping) else {"": document}


def _distance(one: Any, other: Any) -> float:
    numbers = isinstance(one, int | float) and isinstance(other, int | float)
    return abs(one - other) if numbers else 0.0


def compare_environments(recorded: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """The differences of two environment locks, in words."""
    words = [
        f"{name}: {recorded[name]} then, {found[name]} here"
        for name in ("python", "platform")
        if recorded[name] != found[name]
    ]
    then, here = recorded["packages"], found["packages"]
    for package in sorted(then.keys() | here.keys()):
        if then.get(package) != here.get(package):
            words.append(f"{package}: {then.get(package, 'absent')} then, {here.get(package, 'absent')} here")
    return words
