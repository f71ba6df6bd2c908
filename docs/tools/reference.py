"""Write the reference pages that follow from the code: `python -m docs.tools.reference`. A test holds them to it."""

from __future__ import annotations

import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import typer
from typer.cli import get_docs_for_click

from plumbline.data_contracts import artifact, errors, interactions, preference_pair, unpaired_response
from plumbline.data_contracts.quarantine_reasons import NO_DEFECT, REASONS
from plumbline.data_contracts.records import CuratedPair, Merged, PreferencePair, Quarantined, Record, UnpairedResponse
from plumbline.flows.cli.main import app
from plumbline.flows.graph.stages import STAGES
from plumbline.tasks.data.feedback.reader_table import READERS
from plumbline.tasks.params.describe import Param, all_params
from plumbline.tasks.registry.versions import manifest

FOLDER = Path(__file__).resolve().parents[1] / "reference"
_FORMS = (
    "A row is read by the first format whose columns it has. A null counts as absent. [Forms of feedback]"
    "(../guides/feedback-forms.md) has an example of each, and the rules for lists, ratings and votes."
)
_LONGEST = 60  # characters of a default that is shown
_NOTE = "<!-- Written by `make docs-reference` from the code. Change the code, not this page. -->\n\n"


def commands() -> str:
    """Every command with its arguments and options, from the command line itself."""
    command = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command, info_name="plumbline"), name="plumbline")
    return text.replace("# `plumbline`", "# Commands", 1)


def contracts() -> str:
    """The formats of feedback, the records, the checks, the reasons of quarantine and the errors."""
    parts = [
        "# Contracts",
        "Feedback becomes records. A contract checks them. A row that breaks it is set aside with one reason.",
        "## Formats of preference pairs",
        f"{_FORMS} Rows with one response give pairs if a file has several of them for a prompt.",
        _readers("pair", "list"),
        "## Formats of single responses",
        _FORMS,
        _readers("opinion", "rating"),
        *_contract("preference_pair", PreferencePair, preference_pair.SUITE),
        *_contract("unpaired_response", UnpairedResponse, unpaired_response.SUITE),
        "## Reasons of quarantine",
        "A row is counted under the first reason that applies. Reasons that are no defect do not count against "
        "`feedback.quarantine_threshold`.",
        _table(
            "reason", "meaning", "defect", rows=((f"`{k}`", v, _yes(k not in NO_DEFECT)) for k, v in REASONS.items())
        ),
        "## Records that curation writes",
        *_records(CuratedPair, Merged, Quarantined),
        "## Records of serving",
        _documentation(interactions),
        *_records(interactions.Interaction, interactions.ServedCompletion, interactions.InteractionFeedback),
        "## Errors and exit codes",
        _documentation(errors),
    ]
    return "\n\n".join(parts) + "\n"


def files() -> str:
    """The artifacts of the stages, the graph, and the manifests."""
    stages = (
        (
            f"`{stage.name}`",
            stage.title,
            f"`{stage.out}`",
            f"`{stage.contract}` v{stage.version}",
            ", ".join(f"`{path}`" for path in stage.deps.values()) or "nothing",
        )
        for stage in STAGES.values()
    )
    parts = [
        "# File formats",
        "## Artifacts",
        _documentation(artifact),
        "## Stages and what they write",
        _table("stage", "title", "writes", "contract", "reads", rows=stages),
        "## The manifest of a model version",
        _documentation(manifest),
    ]
    return "\n\n".join(parts) + "\n"


def params() -> str:
    """Every param with its default, the values that it takes and its description, a table for each section."""
    parts = [
        "# Params",
        "`plumbline params KEY` shows one with the value that it has in a workspace. Further arguments of TRL's config "
        "classes stand beside the keys of a method. [Params and recipes](../guides/params.md) says how to choose.",
    ]
    for title, rows in groupby(all_params(), key=lambda param: param.key.rpartition(".")[0]):
        parts += [
            f"## {title or 'Of the whole run'}",
            _table("key", "default", "allowed", "meaning", rows=map(_row, rows)),
        ]
    return "\n\n".join(parts) + "\n"


def _row(param: Param) -> list[str]:
    default = json.dumps(param.default, ensure_ascii=False)
    shown = default if len(default) <= _LONGEST else f"{default[:_LONGEST]} …"
    return [f"`{param.key.rpartition('.')[2]}`", f"`{shown}`", param.allowed, param.description]


PAGES: dict[str, Callable[[], str]] = {
    "commands.md": commands,
    "contracts.md": contracts,
    "files.md": files,
    "params.md": params,
}
"""Generated pages of `docs/reference/` by name."""


def write(folder: Path = FOLDER) -> None:
    """Write every generated page."""
    for name, page in PAGES.items():
        (folder / name).write_text(_NOTE + page(), encoding="utf-8")


def _documentation(module: types.ModuleType) -> str:
    return inspect.cleandoc(module.__doc__ or "")


def _readers(*kinds: str) -> str:
    rows = (
        (f"`{reader.name}`", reader.title, ", ".join(f"`{name}`" for name in reader.needs) or "see the example")
        for reader in READERS
        if reader.kind in kinds
    )
    return _table("format", "of", "needs", rows=rows)


def _contract(name: str, record: type[Record], suite: Path) -> Iterator[str]:
    yield f"## Contract `{name}`"
    yield from _records(record)
    yield "Checks, after types and fields were read:"
    checks = (
        (f"`{entry['meta']['field']}`", entry["meta"]["expected"], f"`{entry['meta']['quarantine_reason']}`")
        for entry in json.loads(suite.read_text(encoding="utf-8"))["expectations"]
    )
    yield _table("field", "expected", "else set aside as", rows=checks)


def _records(*kinds: type[Record]) -> Iterator[str]:
    for kind in kinds:
        fields = (
            (
                f"`{name}`",
                f"`{_type_name(field.annotation)}`",
                "yes" if field.is_required() else "no",
                field.description or "",
            )
            for name, field in kind.model_fields.items()
        )
        yield f"### `{kind.__name__}`"
        yield inspect.cleandoc(kind.__doc__ or "")
        yield _table("field", "type", "required", "meaning", rows=fields)


def _type_name(annotation: Any) -> str:
    if typing.get_origin(annotation) is typing.Literal:
        return " | ".join(repr(value) for value in typing.get_args(annotation))
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return annotation.__name__
    return re.sub(r"\b(?:\w+\.)+(?=[A-Z])", "", str(annotation))


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _table(*head: str, rows: Iterable[Iterable[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


if __name__ == "__main__":
    write()
