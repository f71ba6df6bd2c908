"""The end of a comparison, for people and for programs: the table, the recommendation, where the files are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from plumbline.tasks.evaluation.comparison.report import verdict
from plumbline.tasks.evaluation.comparison.table import HEADER, cells

if TYPE_CHECKING:
    from plumbline.tasks.evaluation.compare_policies import Compared


def comparison_payload(compared: Compared) -> dict[str, Any]:
    """The JSON object of `plumbline compare --json`: the report's own facts, what was reused, and where it lies."""
    return {
        **compared.comparison.facts,
        "trials": [
            {
                "label": outcome.attempt.label,
                "folder": str(outcome.folder),
                "reused": outcome.reused,
                "failure": outcome.failure,
            }
            for outcome in compared.outcomes
        ],
        "shared_stages": [{"name": record.name, "reused": record.reused} for record in compared.stages],
        "report": str(compared.report),
    }


def comparison_view(compared: Compared) -> RenderableType:
    """A row a figure and a column a variant: narrow terminals hold a few variants, not thirteen figures."""
    comparison = compared.comparison
    table = Table(
        "", *(escape(row.name) for row in comparison.rows), box=None, title="Comparison", title_justify="left"
    )
    figures = zip(HEADER, *cells(comparison.rows, comparison.front), strict=True)
    for name, *values in list(figures)[1:]:
        table.add_row(name, *values)
    return Group(table, Text(f"\n{verdict(comparison)}"), Text(f"\nReport:  {compared.report}"))
