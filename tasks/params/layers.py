"""Layers that values of params come from, weakest first: recipe, `params.yaml`, overlays, settings, those of one run.

A value stands in the strongest layer that has its key; what no layer has is a default. Errors and `plumbline params`
name that layer with its line.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from ruamel.yaml.comments import CommentedMap

from plumbline.data_contracts.errors import ParamsError
from plumbline.tasks.params.document import merge, parse_setting, read_document
from plumbline.tasks.params.finetuning import FinetuneParams
from plumbline.tasks.params.section import PARAMS_FILE, RECIPES, plain, section_of
from plumbline.tasks.params.training import METHODS, fits, share, shared_key
from plumbline.tasks.params.validation import validate_params
from plumbline.tasks.params.whole import Params

_RECIPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class Layer:
    """One source of values: its name for people (a file, `--set KEY=VALUE`), and the values with their lines."""

    name: str
    document: Mapping[str, Any]

    def place_of(self, path: Sequence[str]) -> str | None:
        """The name of this layer and the line of a key in it; None if the key is not in it."""
        section: Any = self.document
        for part in path[:-1]:
            section = section.get(part) if isinstance(section, Mapping) else None
        if not isinstance(section, Mapping) or path[-1] not in section:
            return None
        lines: Mapping[str, Any] = getattr(getattr(section, "lc", None), "data", None) or {}
        return f"{self.name}:{lines[path[-1]][0] + 1}" if path[-1] in lines else self.name


@dataclass(frozen=True, slots=True)
class Layers:
    """All layers of a workspace's params, and `document`: what `params.yaml` holds once they are kept."""

    root: Path
    layers: tuple[Layer, ...]
    document: CommentedMap
    values: dict[str, Any]

    def validate(self) -> Params:
        """The typed params. Raises `ParamsError` with a line for each mistake."""
        return validate_params(self.values, self.root / PARAMS_FILE, self.place_of)

    def place_of(self, path: Sequence[str]) -> str | None:
        """The strongest layer that has a key, or the key of `training` it is from, with its line; None if none has."""
        shared = shared_key(path)
        for layer in reversed(self.layers):
            if place := layer.place_of(path) or (layer.place_of(shared) if shared else None):
                return place
        return None


def load_layers(
    root: Path, overlays: Sequence[Path] = (), settings: Sequence[str] = (), once: Sequence[str] = ()
) -> Layers:
    """Read a workspace's `params.yaml` and its recipe; put overlays, settings and `once` on top.

    Only `once` is no part of `document`. Raises `ParamsError`, and `UsageError` if there is no such file.
    """
    own = read_document(root / PARAMS_FILE)
    kept = [Layer(str(path), read_document(path)) for path in overlays]
    kept += [Layer(f"--set {setting}", parse_setting(setting, "--set")) for setting in settings]
    passing = [Layer(f"--once {setting}", parse_setting(setting, "--once")) for setting in once]
    document = deepcopy(own)
    for layer in kept:
        merge(document, layer.document)
    recipe = _recipe(root, [*(layer.document.get("recipe") for layer in reversed(passing)), document.get("recipe")])
    layers = (*recipe, Layer(str(root / PARAMS_FILE), own), *kept, *passing)
    return Layers(root, layers, document, _values_of(layers))


def layers_with(root: Path, document: CommentedMap) -> Layers:
    """As `load_layers`, with a document that is to become `params.yaml`."""
    layers = (*_recipe(root, [document.get("recipe")]), Layer(str(root / PARAMS_FILE), document))
    return Layers(root, layers, document, _values_of(layers))


def _values_of(layers: Sequence[Layer]) -> dict[str, Any]:
    """The values of all layers over the defaults.

    What a layer shares among trainings (`training`) stands below what it says of one of them, and above all of that in
    weaker layers. A method that does not run takes it only if it fits.
    """
    named = [
        place["methods"]
        for layer in layers
        if isinstance(place := layer.document.get("finetune"), Mapping) and "methods" in place
    ]
    used = named[-1] if named and isinstance(named[-1], list) else FinetuneParams.model_fields["methods"].default
    values = _merged(layers, used)
    if any(layer.document.get("training") for layer in layers):
        everywhere = _merged(layers, METHODS)["finetune"]
        values["finetune"] |= {
            name: everywhere[name] for name in METHODS if name not in used and fits(name, everywhere[name])
        }
    return values


def _merged(layers: Sequence[Layer], sharing: Collection[str]) -> dict[str, Any]:
    values = Params().model_dump(mode="json")
    for layer in layers:
        put_values(values, share(_without_empty(layer.document, Params), sharing), layer.name)
    return values


def load_params(
    root: Path, overlays: Sequence[Path] = (), settings: Sequence[str] = (), once: Sequence[str] = ()
) -> tuple[Params, CommentedMap]:
    """Load and validate the params of a workspace as `load_layers` does.

    Returns the params, and the document that `save_params` keeps: overlays and settings in it, its comments kept.
    """
    layers = load_layers(root, overlays, settings, once)
    return layers.validate(), layers.document


def resolve_overlays(root: Path, overlays: Sequence[str | Path]) -> list[Path]:
    """Overlay paths as given, or inside the workspace where they do not exist here."""
    return [Path(path).resolve() if Path(path).exists() else root / path for path in overlays]


def recipes_of(root: Path) -> list[str]:
    """The names of the recipes in a workspace."""
    return sorted(path.stem for path in (root / RECIPES).glob("*.yaml"))


def _without_empty(chosen: Mapping[str, Any], section: type[BaseModel] | None) -> dict[str, Any]:
    """What a layer chooses: nothing of a section without a key, as where all its lines are comments.

    Null for a section that can be off is a choice.
    """
    found = {}
    for key, value in chosen.items():
        inside, nullable = section_of(section, key)
        if value is not None or inside is None or nullable:
            found[key] = _without_empty(value, inside) if isinstance(value, Mapping) and inside is not None else value
    return found


def put_values(values: dict[str, Any], chosen: Mapping[str, Any], where: str, prefix: str = "") -> None:
    """Put what a layer chooses over the values below it. Raises `ParamsError` for a value in place of a section."""
    for key, value in chosen.items():
        below = values.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            put_values(values[key], value, where, f"{prefix}{key}.")
        elif isinstance(below, Mapping) and below and value is not None:
            raise ParamsError(f"{where}: {prefix}{key} is a section with keys {', '.join(below)}; found {value!r}.")
        else:
            values[key] = plain(value)


def _recipe(root: Path, named: Sequence[Any]) -> tuple[Layer, ...]:
    """The recipe that the strongest layer names, as a layer; empty if none does."""
    name = next((name for name in named if name is not None), None)
    if name is None:
        return ()
    path = root / RECIPES / f"{name}.yaml"
    if not isinstance(name, str) or not _RECIPE.fullmatch(name) or not path.is_file():
        raise ParamsError(
            f"{root / PARAMS_FILE}: recipe: expected the name of a recipe in {RECIPES}/, "
            f"{', '.join(recipes_of(root)) or 'which has none'}; found {name!r}. `plumbline init` writes those of the "
            f"program; remove the key to do without."
        )
    document = read_document(path)
    if "recipe" in document:
        raise ParamsError(f"{path}: a recipe names no other recipe. Copy what you need of it, and remove `recipe`.")
    return (Layer(str(path), document),)
