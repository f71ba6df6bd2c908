"""`plumbline migrate`: the files of a workspace that an older Plumbline made, as this one reads them.

1. `params.yaml` keeps its choices under today's names; what equals a default of that time is dropped, for before 0.2
   the file held every param. A workspace that had the sample world names its recipe.
2. `dvc.yaml` becomes today's graph, and missing recipes come.
3. `dvc.lock` keeps each stage whose params mean the same, so that its output is reused; the others run again.
4. Where params set every length of completions, stage `lengths` samples nothing: it is made here, and the stages that
   read it now are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from plumbline.data_contracts.artifact import MANIFEST, write_bytes
from plumbline.flows.graph.params_stage import values_for_dvc
from plumbline.flows.graph.stages import STAGES
from plumbline.flows.graph.workspaces import SAMPLE_WORLD, template_files, write_made, write_missing
from plumbline.tasks.params.document import dumped, merge, read_document, require_strict
from plumbline.tasks.params.layers import layers_with, put_values
from plumbline.tasks.params.renamed import BEFORE, renamed
from plumbline.tasks.params.section import PARAMS_FILE, RECIPES, RESOLVED_FILE, SCHEMA_FILE, flatten, nested, value_at
from plumbline.tasks.params.whole import Params
from plumbline.tasks.pipeline.stage import execute
from plumbline.tasks.storage.versioning.lock import (
    LOCK,
    PARAMS_STAGE,
    read_lock,
    record_input,
    record_params,
    recorded_params,
)
from plumbline.tasks.storage.versioning.workspace import Versions
from plumbline.tasks.training.measure_lengths import STAGE as LENGTHS

_GRAPH_FILE = "dvc.yaml"


def migrate(root: Path) -> list[str]:
    """Bring a workspace to today's files; return a line for each change; none if it is of today.

    Raises `ParamsError` for a choice that does not hold today; then it writes nothing but missing recipes.
    """
    old, whole = read_document(root / PARAMS_FILE), _held_every_param(root)
    document, lines = _choices(old) if whole else _renamed_only(old)
    templates = template_files()
    recipes = [name for name in templates if name.startswith(f"{RECIPES}/")]
    written = [f"{name}: written" for name in recipes if write_missing(root / name, templates[name])]
    params = layers_with(root, document).validate()
    text = dumped(document)
    require_strict(text, document, root / PARAMS_FILE)
    if lines:
        write_bytes(root / PARAMS_FILE, text.encode())
    lines += written
    if (root / _GRAPH_FILE).read_bytes() != templates[_GRAPH_FILE]:
        write_bytes(root / _GRAPH_FILE, templates[_GRAPH_FILE])
        lines.append(f"{_GRAPH_FILE}: the graph of today")
    lines += [f"{name}: written" for name in write_made(root)]
    lines += _keep_records(root, values_for_dvc(params))
    return [*lines, *_add_set_lengths(root, params)]


def _held_every_param(root: Path) -> bool:
    """Tell if the workspace is from before 0.2: its graph makes no resolved params.

    A migration that was killed may have left a file of choices beside that graph; it names its schema.
    """
    if SCHEMA_FILE in (root / PARAMS_FILE).read_text(encoding="utf-8"):
        return False
    graph = YAML(typ="safe").load((root / _GRAPH_FILE).read_bytes()) or {}
    return PARAMS_STAGE not in (graph.get("stages") or {})


def _choices(old: CommentedMap) -> tuple[CommentedMap, list[str]]:
    """What a file of every param chose, in a fresh file of choices."""
    source = files("plumbline.flows.graph") / "workspace" / "defaults-0.1.yaml"
    defaults = YAML(typ="safe").load(source.read_bytes())
    chosen = _differing(old, defaults)
    invented = old.get("sample_world") or {}
    had_world = invented.get("enabled", True) if isinstance(invented, Mapping) else True
    if isinstance(chosen.get("sample_world"), dict):
        chosen["sample_world"].pop("enabled", None)
        if not chosen["sample_world"]:
            del chosen["sample_world"]
    under_new_names, lines = renamed(chosen)
    document: CommentedMap = YAML().load(template_files(SAMPLE_WORLD if had_world else None)[PARAMS_FILE])
    merge(document, under_new_names)
    kept, all_values = len(dict(flatten(chosen))), len(dict(flatten(old)))
    lines = [f"{PARAMS_FILE}: {line}" for line in lines]
    lines.append(f"{PARAMS_FILE}: kept {kept} choices, dropped {all_values - kept} values that were defaults")
    if had_world:
        lines.append(f"{PARAMS_FILE}: recipe: {SAMPLE_WORLD}, because the sample world was on")
    return document, lines


def _renamed_only(old: CommentedMap) -> tuple[Any, list[str]]:
    document, lines = renamed(old)
    return document, [f"{PARAMS_FILE}: {line}" for line in lines]


def _differing(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are not those of the defaults, nested alike."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        default = defaults.get(key)
        if isinstance(value, Mapping) and isinstance(default, Mapping) and default:
            inside = _differing(value, default)
            if inside:
                found[key] = inside
        elif key not in defaults or value != default:
            found[key] = value
    return found


def _keep_records(root: Path, values: Mapping[str, Any]) -> list[str]:
    """Let `dvc.lock` name the resolved params for the stages whose params mean the same; a line for the others.

    A param that came later had the effect of its default, or that in `BEFORE`.
    """
    same, other = {}, []
    for name, recorded in recorded_params(root, PARAMS_FILE).items():
        was = Params().model_dump(mode="json")
        put_values(was, nested(BEFORE), f"{LOCK}: stage {name}")
        put_values(was, renamed(nested(recorded))[0], f"{LOCK}: stage {name}")
        keys = STAGES[name].params if name in STAGES else ()
        now = {key: value_at(values, key) for key in keys}
        if keys and now == {key: value_at(was, key) for key in keys}:
            same[name] = now
        else:
            other.append(name)
    record_params(root, PARAMS_FILE, RESOLVED_FILE, same)
    return [f"stage {name}: its params have other values now; the next run runs it" for name in other]


def _add_set_lengths(root: Path, params: Params) -> list[str]:
    """Make stage `lengths` where it samples nothing, and record it for the stages that ran before there was one."""
    recorded = read_lock(root)
    readers = [
        name
        for name, stage in STAGES.items()
        if LENGTHS.out in stage.deps.values() and name in recorded and LENGTHS.out not in recorded[name]["deps"]
    ]
    there = all((root / path / MANIFEST).is_file() for path in LENGTHS.deps.values())
    if not readers or not there or params.derived.measures_lengths:
        return []
    execute(LENGTHS, root, params)
    Versions(root).commit_stage(LENGTHS.name)
    record_input(root, LENGTHS.name, readers)
    return [f"stage {LENGTHS.name}: made; params set every length, so nothing was sampled"]
