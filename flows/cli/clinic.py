"""`plumbline clinic`: how good the labels are, who labels noisily, and which pairs to look at again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from plumbline.flows.cli import completion
from plumbline.flows.cli.arguments import HERE, Directory, Json, Trial, TrialOverlays, loaded, loaded_or_default
from plumbline.flows.cli.feedback import Map, source_and_files
from plumbline.flows.cli.output import Output

app = typer.Typer()
_SHOWN = 15  # annotators in the table


@app.command(epilog="Example: plumbline clinic pairs.jsonl --out clinic")
def clinic(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SOURCE] [FILE]...",
            help="Files, folders or patterns; without any, all feedback of the workspace.",
            autocompletion=completion.sources,
        ),
    ] = None,
    most: Annotated[int, typer.Option(min=0, help="Pairs to write for a second look.")] = 200,
    out: Annotated[Path | None, typer.Option(help="Folder of the report (by default reports/clinic).")] = None,
    columns: Map = None,
    params: TrialOverlays = None,
    settings: Trial = None,
    workspace: Directory = HERE,
    json: Json = False,
) -> None:
    """Examine labels, and name pairs worth a second look.

    Agreement, annotators, the accuracy that a model can reach, and how far the surface tells the label.

    The pairs are written for people or a judge to label; `plumbline ingest` takes their votes back. Needs the extra
    `clinic`.
    """
    from plumbline.tasks.data.feedback.mapping import parse_map
    from plumbline.tasks.training.examine_labels import examine_labels

    output = Output(json)
    source, files = source_and_files(words) if words else (None, [])
    if files:
        root, read = loaded_or_default(workspace, output, params, settings)
    else:
        root, read = loaded(workspace, params, settings)
    with output.working("examining labels"):
        report = examine_labels(root, read, source, files, out=out, most=most, columns=parse_map(columns or []))
    output.result(report, lambda: Group(*_view(report)))


def _view(report: Mapping[str, Any]) -> Iterator[RenderableType]:
    read, votes = report["read"], report["votes"]
    yield Text(
        f"Read {read['rows']} rows = {read['pairs']} pairs + {read['ties']} ties + {read['set_aside']} set aside.\n"
        f"{votes['votes']} votes of {votes['annotators']} annotators ({votes['unsigned']} votes unsigned, "
        f"{votes['ties']} ties) on {votes['units']} different pairs; {votes['judged_twice']} pairs have two or more."
    )
    yield _figures(report)
    yield from _not_measured(report)
    yield from _leaks(report["leak"])
    yield from _people(report["annotators"])
    yield from _again(report)


def _figures(report: Mapping[str, Any]) -> Table:
    """Each figure on one line of a narrow terminal; what was not measured says why."""
    table = Table("figure", "value", "95 % interval", "n", box=None, title="\nLabels", title_justify="left")
    rows = (
        ("Krippendorff's alpha (1 perfect, 0 chance)", report["alpha"]),
        ("two annotators agree, ties a label", report["agreement"]),
        ("best accuracy of a reward model, least", report["ceiling"]["least"]),
        ("best accuracy of a reward model, most", report["ceiling"]["most"]),
        ("label predicted by the surface (0.5 chance)", report["leak"]["accuracy"]),
        ("first shown is preferred (0.5 no bias)", report["position"]),
    )
    for name, figure in rows:
        table.add_row(name, *_cells(figure))
    return table


def _cells(figure: Mapping[str, Any]) -> tuple[str, str, str]:
    if figure["value"] is None:
        return "-", "", str(figure["n"])
    interval = "" if figure["low"] is None else f"{figure['low']:.3f} to {figure['high']:.3f}"
    return f"{figure['value']:.3f}", interval, str(figure["n"])


def _not_measured(report: Mapping[str, Any]) -> Iterator[Text]:
    """Each reason for which a figure was not measured, once."""
    figures = (report["alpha"], report["agreement"], report["ceiling"]["most"], report["leak"]["accuracy"])
    for why in dict.fromkeys(figure["why"] for figure in (*figures, report["position"]) if "why" in figure):
        yield Text(f"  - {why}")


def _leaks(leak: Mapping[str, Any]) -> Iterator[Text]:
    if leak["telling"]:
        told = ", ".join(f"{row['prefers']} {row['feature']}" for row in leak["telling"])
        yield Text(f"\nThe surface tells the label by (AUC {leak['auc']:.3f}): {told}")


def _people(found: Mapping[str, Any]) -> Iterator[RenderableType]:
    listed: Sequence[Mapping[str, Any]] = found["listed"]
    if found["why"] is not None:
        yield Text(f"\nAnnotators: {found['why']}.")
    if not listed:
        return
    title = f"\nAnnotators ({min(len(listed), _SHOWN)} of {len(listed)}, suspicious first)"
    names = ("annotator", "labels", "agrees", "skill", "first shown", "longer", "seconds", "suspicious")
    table = Table(*names, box=None, title=title, title_justify="left")
    for row in listed[:_SHOWN]:
        cells = [_value(row[name]) for name in ("agreement", "skill", "first_shown", "longer")]
        seconds = "-" if row["seconds"] is None else f"{row['seconds']:.0f}"
        checks = ", ".join(flag["check"] for flag in row["suspicious"])
        table.add_row(escape(row["annotator"]), str(row["labels"]), *cells, seconds, checks)
    yield table
    yield from _suspicions(listed)


def _value(figure: Mapping[str, Any]) -> str:
    return "-" if figure["value"] is None else f"{figure['value']:.2f}"


def _suspicions(listed: Sequence[Mapping[str, Any]]) -> Iterator[Text]:
    """A line for each reason to suspect somebody: the share, its interval over all tests, and what was expected."""
    flags = [(row["annotator"], flag) for row in listed for flag in row["suspicious"]]
    if flags:
        yield Text("\nSuspicious, with intervals that hold for all annotators together:")
    for name, flag in flags[:_SHOWN]:
        interval = f"{flag['value']:.2f} ({flag['low']:.2f} to {flag['high']:.2f}) of {flag['n']}"
        yield Text(f"  {name} {flag['reason']}: {interval}, expected {flag['expected']:.2f}")
    if len(flags) > _SHOWN:
        yield Text(f"  and {len(flags) - _SHOWN} more in the report")


def _again(report: Mapping[str, Any]) -> Iterator[Text]:
    found, folder = report["second_look"], report["folder"]
    if not found["doubtful"]:
        yield Text(f"\nNo pair gives a reason for a second look. The report: {folder}")
        return
    yield Text(
        f"\n{found['doubtful']} pairs give a reason for a second look; {found['listed']} of them are in\n"
        f"  {folder}/second_look.jsonl (fill in label and annotator, delete rows without, `plumbline ingest` it)\n"
        f"  {folder}/reasons.jsonl (why, and the present label; not for those who label)"
    )
