"""The part of a manifest that a version rests on: a stage that params switched off made nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def in_use(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    """The manifest without the stages that were switched off, their outputs, and what would have read those."""
    stages = manifest["stages"]
    off = {name for name, facts in manifest["as_run"].items() if name in stages and facts.get("enabled") is False}
    if not off:
        return manifest
    unused = {path for name in off for path in stages[name]["outs"]}
    left = {
        name: {**stage, "deps": {path: entry for path, entry in stage["deps"].items() if path not in unused}}
        for name, stage in stages.items()
        if name not in off
    }
    objects = {role: entry for role, entry in manifest["objects"].items() if entry["path"] not in unused}
    return {**manifest, "stages": left, "objects": objects}
