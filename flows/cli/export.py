"""`plumbline export`: a curated set as a file that another tool reads."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from plumbline.data_contracts.errors import UsageError
from plumbline.flows.cli import completion
from plumbline.flows.cli.arguments import HERE, Directory, Json, loaded
from plumbline.flows.cli.output import Output

if TYPE_CHECKING:
    from plumbline.tasks.registry.export_dataset import ExportedSet, Split

app = typer.Typer()


@app.command(epilog="Example: plumbline export train.jsonl --to trl-conversational --split train")
def export(
    out: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write: .jsonl, .json or .parquet.")],
    to: Annotated[
        str,
        typer.Option(
            help="Shape: trl, trl-conversational, trl-unpaired, trl-unpaired-conversational, openai, sharegpt or "
            "label-studio.",
            autocompletion=completion.shapes,
        ),
    ],
    split: Annotated[
        list[str] | None, typer.Option(help="train, validation or test; by default all three. Repeatable.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="The set of this version, models:/NAME@ALIAS.", autocompletion=completion.models),
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="The set of this DVC hash, or its first digits.")] = None,
    workspace: Directory = HERE,
    json: Json = False,
) -> None:
    """Write curated feedback in the shape of another tool.

    The file is read back before it gets its name: `plumbline ingest` gives the same records.
    """
    from plumbline.tasks.registry.export_dataset import export_dataset

    _require_shape(to)
    splits = _splits(split)
    root, params = loaded(workspace)
    output = Output(json)
    limits = params.feedback.limits().of_stored()
    with output.working(f"writing {out}"):
        done = export_dataset(root, params.registry, out, to, limits, dataset=dataset, model=model, splits=splits)
    output.result(asdict(done), lambda: _exported(done))


def _require_shape(name: str) -> None:
    from plumbline.tasks.data.feedback.shapes import SHAPES

    if name not in SHAPES:
        raise UsageError(f"--to {name}: no such shape. Choose among {', '.join(SHAPES)}.")


def _splits(names: list[str] | None) -> tuple[Split, ...]:
    from plumbline.tasks.registry.export_dataset import SPLITS

    for name in names or ():
        if name not in SPLITS:
            raise UsageError(f"--split {name}: no such split. Choose among {', '.join(SPLITS)}.")
    return tuple(split for split in SPLITS if not names or split in names)


def _exported(done: ExportedSet) -> Table:
    file = done.file
    table = Table("wrote", "shape", "records", "bytes", "of set", box=None)
    table.columns[0].overflow = "fold"
    table.add_row(escape(file.path), file.shape, str(file.records), f"{file.bytes:,}", done.dataset[:12])
    return table
