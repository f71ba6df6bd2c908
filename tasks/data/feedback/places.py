"""Places that a person names: files, folders, patterns, saved datasets and standard input, as one place per batch."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import orjson

from plumbline.data_contracts.errors import UsageError

FILE_SUFFIX = re.compile(
    r"\.(?:jsonl?|ndjson|csv|tsv|txt|parquet|arrow|feather)(?:\.(?:gz|zst|bz2|xz|zip))?$|\.(?:gz|zst|bz2|xz|zip)$"
)
"""Suffixes of files that may hold feedback. They choose files in a folder; what a file is, its bytes tell."""

_NO_FEEDBACK = frozenset(
    {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "manifest.json"}
)
_PATTERN = re.compile(r"[*?\[]")


def expand(paths: Sequence[str | Path]) -> list[str | Path]:
    """The places of all batches, in order.

    A folder stands for its files with a known suffix, by name and folders inside included, or for the splits of a
    dataset that `save_to_disk` wrote; a pattern for the files that it matches; `-` for standard input. Raises
    `UsageError` for a folder or pattern without files.
    """
    return [place for path in paths for place in _expanded(path)]


def _expanded(path: str | Path) -> Iterator[str | Path]:
    if str(path) == "-":
        yield "/dev/stdin"
    elif Path(path).is_dir():
        yield from _in_folder(Path(path))
    elif _PATTERN.search(str(path)) and not Path(path).exists():
        found = sorted(each for each in glob.glob(str(path), recursive=True) if Path(each).is_file())
        if not found:
            raise UsageError(f"{path}: no file is named so. Check the pattern; it is relative to the current folder.")
        yield from found
    else:
        yield path


def _in_folder(folder: Path) -> Iterator[Path]:
    if (folder / "state.json").is_file():
        yield folder
    elif (folder / "dataset_dict.json").is_file():
        yield from (folder / split for split in _splits(folder / "dataset_dict.json"))
    else:
        yield from _files(folder)


def _splits(listing: Path) -> list[str]:
    try:
        splits = orjson.loads(listing.read_bytes())["splits"]
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise UsageError(f"{listing}: expected the splits of a dataset, found none. Save it again.") from error
    return [str(split) for split in splits]


def _files(folder: Path) -> list[Path]:
    inside = [path for path in folder.rglob("*") if path.is_file() and _may_be_feedback(path.relative_to(folder))]
    if not inside:
        raise UsageError(
            f"{folder}: expected a file, or a folder that `datasets` wrote (save_to_disk: state.json or "
            f"dataset_dict.json) or that holds files of feedback, found a folder without either. Give files."
        )
    return sorted(inside)


def _may_be_feedback(path: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.parts)
    return not hidden and path.name not in _NO_FEEDBACK and FILE_SUFFIX.search(path.name.lower()) is not None
