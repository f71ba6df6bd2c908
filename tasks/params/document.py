"""The file `params.yaml`: read, merge and write it with its comments kept.

1. It holds choices alone; what it does not name comes from a recipe or is a default (`tasks.params.layers`).
2. Overlays (`--params FILE`) and settings (`--set KEY=VALUE`) are merged into it and stay; `--once` never reaches it.
3. DVC reads it with a stricter parser than ours: what was set is written in block style, and no text replaces
   the file that DVC could not read back as the same values.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import CommentMark, YAMLError
from ruamel.yaml.representer import RoundTripRepresenter
from ruamel.yaml.tokens import CommentToken

from plumbline.data_contracts.artifact import full_disk_as_stage_error, write_bytes
from plumbline.data_contracts.errors import ParamsError, UsageError
from plumbline.tasks.params.section import PARAMS_FILE, flatten

WIDTH = 120
"""Longest line of params that are written."""

_NOT_SET = "not set"


def save_params(root: Path, document: CommentedMap) -> list[str]:
    """Write the merged document to `params.yaml` if it changed; return the changed keys with old and new value.

    Raises `ParamsError`, and writes nothing, where DVC could not read what stands there or would.
    """
    path = root / PARAMS_FILE
    changed = changed_keys(root, document)
    text = dumped(document) if changed else path.read_text(encoding="utf-8")
    require_strict(text, document, path)
    if changed:
        with full_disk_as_stage_error(path):
            write_bytes(path, text.encode())
    return changed


def changed_keys(root: Path, document: Mapping[str, Any]) -> list[str]:
    """A line for each key in which a document differs from `params.yaml`, with old and new value."""
    before = dict(flatten(read_document(root / PARAMS_FILE)))
    after = dict(flatten(document))
    differing = [
        key for key in {**before, **after} if key not in before or key not in after or before[key] != after[key]
    ]
    return [f"{key}: {_shown(before, key)} -> {_shown(after, key)}" for key in differing]


def without(document: CommentedMap, key: str) -> bool:
    """Remove a dotted key from a document, and the sections that it leaves empty; False if it is not there."""
    *heads, last = key.split(".")
    sections = [document]
    for head in heads:
        section = sections[-1].get(head)
        if not isinstance(section, CommentedMap):
            return False
        sections.append(section)
    if last not in sections[-1]:
        return False
    for section, name in zip(reversed(sections), reversed([*heads, last]), strict=True):
        take_following(section, name)
        del section[name]
        if section:
            break
    return True


def _shown(values: Mapping[str, Any], key: str) -> str:
    return repr(values[key]) if key in values else _NOT_SET


def dumped(document: Mapping[str, Any]) -> str:
    """The text of a document, in block style."""
    buffer = io.StringIO()
    _yaml().dump(document, buffer)
    return buffer.getvalue()


def require_strict(text: str, document: Mapping[str, Any], path: Path) -> None:
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


def read_document(path: Path) -> CommentedMap:
    """Read a YAML mapping, comments kept; an empty file is an empty one. Raises `ParamsError` and `UsageError`."""
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


def parse_setting(setting: str, option: str) -> CommentedMap:
    """Read `KEY=VALUE` with a dotted key as a nested mapping. `option` names where it was given, for errors."""
    key, sign, text = setting.partition("=")
    if not sign or not all(key.split(".")):
        raise ParamsError(f"{option} {setting}: expected KEY=VALUE with a dotted key, such as finetune.dpo.beta=0.2.")
    try:
        value: Any = _yaml().load(text) if text else None
    except YAMLError as error:
        raise ParamsError(f"{option} {setting}: the value is not readable as YAML: {error}") from error
    *heads, last = key.split(".")
    setting_map = CommentedMap({last: value})
    for part in reversed(heads):
        setting_map = CommentedMap({part: setting_map})
    return setting_map


def merge(document: CommentedMap, overlay: Mapping[str, Any]) -> None:
    """Put the values of an overlay into a document; comments of both stay."""
    for key, value in overlay.items():
        if isinstance(value, Mapping) and isinstance(document.get(key), Mapping):
            with _keeping_what_follows(document, key):
                merge(document[key], value)
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
    following = take_following(document, key) if key in document else ""
    yield
    keys = list(document)
    if following and keys[-1] != key:
        tokens = document.ca.items.setdefault(keys[keys.index(key) + 1], [None, None, None, None])
        tokens[1] = [*map(_comment_line, following.splitlines()[1:]), *(tokens[1] or [])]


def _comment_line(line: str) -> CommentToken:
    text = line.lstrip()
    return CommentToken(f"{text}\n", CommentMark(len(line) - len(text)))


def take_following(document: CommentedMap, key: str) -> str:
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


def _yaml() -> YAML:
    yaml = YAML()
    yaml.width = WIDTH
    yaml.Representer = _NullRepresenter
    return yaml


class _NullRepresenter(RoundTripRepresenter):
    """Writes `null` where ruamel writes nothing. A class of its own, because DVC writes its lock with the parent."""


_NullRepresenter.add_representer(
    type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
)
