"""All params of a run: the sections of the nouns in one typed whole, and the file they live in.

1. `params.yaml` in the workspace holds every tunable; a stage sees only the keys it declares.
2. Overlays (`--params FILE`) and settings (`--set KEY=VALUE`) are merged on top, validated, and
   then written into `params.yaml`, as `dvc exp run --set-param` does: DVC decides what to re-run
   from that file, so what ran is always what the file says.
3. A wrong key or value stops the command before any work, naming file, line, key, value and range.
4. DVC reads the file with a stricter parser than ours: what was set is written in block style, and no text replaces
   the file that DVC could not read back as the same values.
"""

from __future__ import annotations

import difflib
import io
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import CommentMark, YAMLError
from ruamel.yaml.representer import RoundTripRepresenter
from ruamel.yaml.tokens import CommentToken

from plumbline.data_contracts.artifact import full_disk_as_stage_error, write_bytes
from plumbline.data_contracts.errors import ParamsError, UsageError
from plumbline.data_contracts.secrets import mask
from plumbline.tasks.params.section import PARAMS_FILE as PARAMS_FILE
from plumbline.tasks.params.section import flatten
from plumbline.tasks.params.whole import Params

_WIDTH = 120


def load_params(root: Path, overlays: Sequence[Path] = (), settings: Sequence[str] = ()) -> tuple[Params, CommentedMap]:
    """Read `params.yaml`, merge overlays and `KEY=VALUE` settings, validate.

    Returns the params and the merged document, comments kept. Raises `ParamsError`.
    """
    document = _read(root / PARAMS_FILE)
    for overlay in overlays:
        _merge(document, _read(overlay), where=str(overlay))
    for setting in settings:
        _merge(document, _parse_setting(setting), where=f"--set {setting}")
    return validate_params(document, root / PARAMS_FILE), document


def resolve_overlays(root: Path, overlays: Sequence[str | Path]) -> list[Path]:
    """Overlay paths as given, or inside the workspace where they do not exist here."""
    return [Path(path).resolve() if Path(path).exists() else root / path for path in overlays]


def save_params(root: Path, document: CommentedMap) -> list[str]:
    """Write the merged document to `params.yaml` if it changed; return the changed keys with old and new value.

    Raises `ParamsError`, and writes nothing, where DVC could not read what stands there or would.
    """
    path = root / PARAMS_FILE
    changed = changed_keys(root, document)
    text = _dumped(document) if changed else path.read_text(encoding="utf-8")
    _require_strict(text, document, path)
    if changed:
        with full_disk_as_stage_error(path):
            write_bytes(path, text.encode())
    return changed


def changed_keys(root: Path, document: Mapping[str, Any]) -> list[str]:
    """A line for each key in which a document differs from `params.yaml`, with old and new value."""
    before = dict(flatten(_read(root / PARAMS_FILE)))
    after = dict(flatten(document))
    return [f"{key}: {before.get(key)!r} -> {value!r}" for key, value in after.items() if before.get(key) != value]


def _dumped(document: CommentedMap) -> str:
    buffer = io.StringIO()
    _yaml().dump(document, buffer)
    return buffer.getvalue()


def _require_strict(text: str, document: CommentedMap, path: Path) -> None:
    """Raise `ParamsError` unless the parser that DVC reads params with (`dvc.utils.serialize`) finds the same values.

    It is libyaml: `{function: module:f}` and tags, for instance, are beyond it.
    """
    try:
        found = YAML(typ="safe").load(text)
    except YAMLError as error:
        raise ParamsError(
            f"{path}: expected params that DVC can read, so nothing was written: {error}. Put quotes around text that "
            "holds any of : { } [ ] , & * # ? | < > = ! % @, and leave tags (!) out."
        ) from error
    if found != document:
        ours, theirs = dict(flatten(document)), dict(flatten(found if isinstance(found, Mapping) else {}))
        wrong = [key for key in ours | theirs if ours.get(key) != theirs.get(key)]
        raise ParamsError(
            f"{path}: expected params that DVC reads as we do, so nothing was written. It would read "
            + "; ".join(f"{key}: {theirs.get(key)!r} in place of {ours.get(key)!r}" for key in wrong[:3])
            + ". Put quotes around them."
        )


def validate_params(document: Mapping[str, Any], source: Path) -> Params:
    """Validate a document against every section. Raises `ParamsError` with one line a mistake."""
    try:
        return Params.model_validate(document)
    except ValidationError as error:
        lines = [_explain(detail, document, source) for detail in error.errors()]
        raise ParamsError("\n".join(lines)) from None


def render_defaults() -> str:
    """The text of a fresh `params.yaml`: every field with its default and its description."""
    header = "# Every tunable of Plumbline, with its default. A wrong key or value is refused before any work starts.\n"
    return header + _dumped(_documented(Params()))


def _documented(section: BaseModel, depth: int = 0, *, in_list: bool = False) -> CommentedMap:
    """The section as a mapping with a comment above each key; in a list the first key's stands above the dash."""
    document = CommentedMap()
    plain, indent = section.model_dump(mode="json"), 2 * depth
    for place, name in enumerate(type(section).model_fields):
        value = getattr(section, name)
        document[name] = plain[name]
        if isinstance(value, BaseModel):
            document[name] = _documented(value, depth + 1)
        elif isinstance(value, tuple) and any(isinstance(item, BaseModel) for item in value):
            document[name] = _documented_list(value, depth + 1)
        if not (in_list and place == 0):
            before = _comment(section, name, indent)
            document.yaml_set_comment_before_after_key(
                name, before=f"\n{before}" if depth == 0 else before, indent=indent
            )
    return document


def _documented_list(sections: Sequence[BaseModel], depth: int) -> CommentedSeq:
    document = CommentedSeq()
    for place, section in enumerate(sections):
        document.append(_documented(section, depth, in_list=True))
        first = next(iter(type(section).model_fields))
        before = _comment(section, first, 2 * depth - 2)
        document.yaml_set_comment_before_after_key(place, before=before, indent=2 * depth - 2)
    return document


def _comment(section: BaseModel, name: str, indent: int) -> str:
    return textwrap.fill(type(section).model_fields[name].description or "", _WIDTH - indent - 2)


def _read(path: Path) -> CommentedMap:
    try:
        document = _yaml().load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(
            f"{path}: no such params file. Make a workspace with `plumbline init DIR`, or correct the path."
        ) from error
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise ParamsError(f"{path}: expected a YAML mapping of params, could not read it: {error}") from error
    if document is None:
        return CommentedMap()
    if not isinstance(document, CommentedMap):
        raise ParamsError(f"{path}: expected a YAML mapping of params, found {type(document).__name__}.")
    return document


def _parse_setting(setting: str) -> CommentedMap:
    key, sign, text = setting.partition("=")
    if not sign or not all(key.split(".")):
        raise ParamsError(f"--set {setting}: expected KEY=VALUE with a dotted key, such as finetune.dpo.beta=0.2.")
    try:
        value: Any = _yaml().load(text) if text else None
    except YAMLError as error:
        raise ParamsError(f"--set {setting}: the value is not readable as YAML: {error}") from error
    *heads, last = key.split(".")
    setting_map = CommentedMap({last: value})
    for part in reversed(heads):
        setting_map = CommentedMap({part: setting_map})
    return setting_map


def _merge(document: CommentedMap, overlay: Mapping[str, Any], where: str, prefix: str = "") -> None:
    for key, value in overlay.items():
        if isinstance(value, Mapping) and isinstance(document.get(key), Mapping):
            with _keeping_what_follows(document, key):
                _merge(document[key], value, where, f"{prefix}{key}.")
        elif isinstance(document.get(key), Mapping) and document[key] and value is not None:
            raise ParamsError(
                f"{where}: {prefix}{key} is a section with keys {', '.join(document[key])}; found {value!r}."
            )
        else:
            with _keeping_what_follows(document, key):
                inside = document.ca.items.get(key)
                if inside and len(inside) > 3:
                    inside[3] = None  # a comment on the first item of the list that goes
                document[key] = _in_blocks(value)


@contextmanager
def _keeping_what_follows(document: CommentedMap, key: str) -> Iterator[None]:
    """Keep comments behind a value before the next key while the block gives this key another value.

    ruamel.yaml keeps the comment above the next key with the last line of the value before it.
    """
    following = _take_following(document, key) if key in document else ""
    yield
    keys = list(document)
    if following and keys[-1] != key:
        tokens = document.ca.items.setdefault(keys[keys.index(key) + 1], [None, None, None, None])
        tokens[1] = [*map(_comment_line, following.splitlines()[1:]), *(tokens[1] or [])]


def _comment_line(line: str) -> CommentToken:
    text = line.lstrip()
    return CommentToken(f"{text}\n", CommentMark(len(line) - len(text)))


def _take_following(document: CommentedMap, key: str) -> str:
    """Cut off what stands behind the line on which a value ends, up to the next key; "" if there is nothing."""
    holder, last, slot = _end_of(document, key)
    tokens = holder.ca.items.get(last) or [None] * 4
    line, newline, following = ("" if tokens[slot] is None else tokens[slot].value).partition("\n")
    if not following.strip():
        return ""
    tokens[slot].value = line  # a comment on the line itself
    if not line:
        tokens[slot] = None
    return newline + following


def _end_of(holder: CommentedMap | CommentedSeq, key: Any) -> tuple[CommentedMap | CommentedSeq, Any, int]:
    """The innermost holder and key of the last line of a value, and which of its tokens is the comment behind it."""
    value = holder[key]
    if isinstance(value, CommentedMap | CommentedSeq) and value and not value.fa.flow_style():
        return _end_of(value, list(value)[-1] if isinstance(value, CommentedMap) else len(value) - 1)
    return holder, key, 2 if isinstance(holder, CommentedMap) else 0


def _in_blocks(value: Any) -> Any:
    """The value with its lists and mappings in block style, comments kept: flow style needs more quotes."""
    if isinstance(value, CommentedMap | CommentedSeq):
        value.fa.set_block_style()
        for item in value.values() if isinstance(value, CommentedMap) else value:
            _in_blocks(item)
    return value


def _explain(detail: ErrorDetails, document: Mapping[str, Any], source: Path) -> str:
    """One line: file, line, key, what was expected, what was found, what to do."""
    path = [str(part) for part in detail["loc"]]
    key = ".".join(path)
    where = f"{source}{_line_of(document, path)}: {key or 'params'}"
    if detail["type"] == "extra_forbidden":
        known = list(_fields_at(path[:-1]))
        near = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"did you mean {'.'.join([*path[:-1], near[0]])!r}?" if near else f"known keys: {', '.join(known)}."
        return f"{where}: unknown key; {hint}"
    found = "" if isinstance(detail["input"], Mapping) else f"; found {mask(repr(detail['input']))}"
    return f"{where}: {detail['msg'].removesuffix('.')}{found}.".replace("Value error, ", "")


def _fields_at(path: Iterable[str]) -> Iterable[str]:
    section: Any = Params()
    for part in path:
        section = getattr(section, part, None)
    return type(section).model_fields if isinstance(section, BaseModel) else ()


def _line_of(document: Any, path: Sequence[str]) -> str:
    """`:LINE` of a key in the file, or nothing where a setting on the command line brought it."""
    for part in path[:-1]:
        document = document.get(part) if isinstance(document, Mapping) else None
    try:
        return f":{document.lc.key(path[-1])[0] + 1}"
    except (AttributeError, KeyError, TypeError, IndexError):
        return ""


def _yaml() -> YAML:
    yaml = YAML()
    yaml.width = _WIDTH
    yaml.Representer = _NullRepresenter
    return yaml


class _NullRepresenter(RoundTripRepresenter):
    """Writes `null` where ruamel writes nothing. A class of its own, because DVC writes its lock with the parent."""


_NullRepresenter.add_representer(
    type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
)
