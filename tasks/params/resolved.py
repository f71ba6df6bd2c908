"""The resolved set: every param with its value, written to `params.resolved.yaml`, which DVC and the manifest read.

`graph` in it holds the values that name inputs of stages: DVC fills them into `dvc.yaml`, in which a key that
`params.yaml` may hold as well would be given twice. `derived` holds what follows from other params.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from plumbline.data_contracts.artifact import full_disk_as_stage_error, write_bytes
from plumbline.data_contracts.errors import ParamsError
from plumbline.tasks.params.document import dumped, require_strict
from plumbline.tasks.params.renamed import renamed
from plumbline.tasks.params.section import PARAMS_FILE, RESOLVED_FILE, nested, value_at
from plumbline.tasks.params.validation import validate_params
from plumbline.tasks.params.whole import Params

GRAPH = "graph"
"""The key of the values that `dvc.yaml` is filled from."""

DERIVED = "derived"
"""The key of the values that follow from others (`Params.derived`)."""

_HEADER = "# Every param with its value, made from params.yaml: change it there. `plumbline params KEY` explains one.\n"


def resolved_values(params: Params, graph_keys: Iterable[str]) -> dict[str, Any]:
    """Every param by name, below `graph` those with these dotted keys again, and what follows below `derived`."""
    values = params.model_dump(mode="json")
    graph = nested({key: value_at(values, key) for key in graph_keys})
    return {**values, GRAPH: graph, DERIVED: params.derived.model_dump(mode="json")}


def write_resolved(root: Path, values: Mapping[str, Any]) -> bool:
    """Write the resolved set if it is another; True if it was. Raises `ParamsError` where DVC could not read it."""
    path = root / RESOLVED_FILE
    text = _HEADER + dumped(values)
    require_strict(text, values, path)
    if path.is_file() and path.read_bytes() == text.encode():
        return False
    with full_disk_as_stage_error(path):
        write_bytes(path, text.encode())
    return True


def read_resolved(root: Path) -> dict[str, Any]:
    """The values as written; from before 0.2, those of `params.yaml` under their names of today."""
    path = root / RESOLVED_FILE
    of_one_file = not path.is_file()
    if of_one_file:
        path = root / PARAMS_FILE
    try:
        values = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise ParamsError(
            f"{path}: expected the resolved params, could not read them: {error}. `plumbline stage params` writes them."
        ) from error
    return dict(renamed(values)[0] if of_one_file else values)


def load_resolved(root: Path) -> Params:
    """The params that the resolved set holds. Raises `ParamsError`."""
    values = read_resolved(root)
    for made in (GRAPH, DERIVED):
        values.pop(made, None)
    return validate_params(values, root / RESOLVED_FILE)
