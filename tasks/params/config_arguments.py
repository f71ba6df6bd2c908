"""Names and types of the arguments that config classes of TRL and transformers take, read from their source.

Every command reads params, and importing TRL takes seconds, so the source is parsed instead.

Not covered: types beyond bool, int, float, str, dict and list; the config class itself refuses wrong values of those.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plumbline.data_contracts.errors import ParamsError
from plumbline.data_contracts.secrets import mask

_FILES = {
    "TrainingArguments": ("transformers", "training_args.py"),
    "_BaseConfig": ("trl", "trainer/base_config.py"),
    "SFTConfig": ("trl", "trainer/sft_config.py"),
    "DPOConfig": ("trl", "trainer/dpo_config.py"),
    "KTOConfig": ("trl", "trainer/kto_config.py"),
    "GRPOConfig": ("trl", "trainer/grpo_config.py"),
    "RewardConfig": ("trl", "trainer/reward_config.py"),
    "ORPOConfig": ("trl", "experimental/orpo/orpo_config.py"),
}
"""Library of each config class, and the file in it; base classes that are not named here add no arguments."""

_TYPES: Mapping[str, tuple[type, ...]] = {
    "bool": (bool,),
    "int": (int,),
    "float": (float, int),
    "str": (str,),
    "dict": (dict,),
    "list": (list, tuple),
    "None": (type(None),),
}


_JSON_TYPES: Mapping[type, str] = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    dict: "object",
    list: "array",
    tuple: "array",
    type(None): "null",
}


@functools.cache
def arguments_of(config_class: str) -> Mapping[str, ast.expr]:
    """Name -> annotation of each argument of a config class, those of its bases included."""
    library, file = _FILES[config_class]
    path = _folder_of(library) / file
    classes = [node for node in _parsed(path).body if isinstance(node, ast.ClassDef) and node.name == config_class]
    if not classes:
        raise ParamsError(f"{path}: expected the class {config_class}, found none. Install the pinned {library}.")
    (found,) = classes
    inherited = [arguments_of(base.id) for base in found.bases if isinstance(base, ast.Name) and base.id in _FILES]
    own = {
        node.target.id: node.annotation
        for node in found.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and _is_argument(node)
    }
    return {name: annotation for each in [*inherited, own] for name, annotation in each.items()}


def misfit(annotation: ast.expr, value: Any) -> str | None:
    """Say what was expected where a value is of another type than the annotation allows; None if it fits."""
    types = _types_of(annotation)
    if types is None or (isinstance(value, types) and not (isinstance(value, bool) and bool not in types)):
        return None
    return f"expected {ast.unparse(annotation)}, as the config class declares it; found {mask(repr(value))}."


def json_types_of(annotation: ast.expr) -> list[str]:
    """The types of JSON that fit an annotation; empty where only the config class can tell."""
    return list(dict.fromkeys(_JSON_TYPES[each] for each in _types_of(annotation) or ()))


def _is_argument(node: ast.AnnAssign) -> bool:
    assert isinstance(node.target, ast.Name)
    return not node.target.id.startswith("_") and not ast.unparse(node.annotation).startswith("ClassVar")


def _types_of(annotation: ast.expr) -> tuple[type, ...] | None:
    """The types of the values that fit; None where only the config class can tell."""
    match annotation:
        case ast.Constant(value=None):
            return _TYPES["None"]
        case ast.Constant(value=str(text)):
            return _types_of(ast.parse(text, mode="eval").body)
        case ast.Name(id=name):
            return _TYPES.get(name)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _either(_types_of(left), _types_of(right))
        case ast.Subscript(value=ast.Name(id="Optional"), slice=inner):
            return _either(_types_of(inner), _TYPES["None"])
        case ast.Subscript(value=ast.Name(id="dict" | "list" as name)):
            return _TYPES[name]
    return None


def _either(one: tuple[type, ...] | None, other: tuple[type, ...] | None) -> tuple[type, ...] | None:
    return None if one is None or other is None else one + other


@functools.cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def _folder_of(library: str) -> Path:
    found = importlib.util.find_spec(library)
    if found is None or found.origin is None:
        raise ParamsError(f"Expected the library {library}, found none. Install Plumbline with its dependencies.")
    return Path(found.origin).parent
