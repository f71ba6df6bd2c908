from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from plumbline.tasks.data.clinic.units import Units, group_votes
from plumbline.tasks.data.feedback.votes import VotesRead, read_votes
from plumbline.tasks.params.curation import MatchingParams
from plumbline.tasks.params.feedback import FeedbackParams

Row = dict[str, Any]
Read = Callable[[Sequence[Row]], VotesRead]
Group = Callable[[Sequence[Row]], Units]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """The votes of rows, through a file."""

    def read_rows(rows: Sequence[Row]) -> VotesRead:
        path = tmp_path / "rows.jsonl"
        path.write_bytes(b"\n".join(orjson.dumps(row) for row in rows) + b"\n")
        return read_votes([("human_pairs", "rows.jsonl", path)], FeedbackParams())

    return read_rows


@pytest.fixture
def group(read: Read) -> Group:
    """The units of rows."""
    return lambda rows: group_votes(read(rows).votes, MatchingParams())


@pytest.fixture(scope="session")
def judged() -> Callable[..., Row]:
    """A row with a label on pair number `n`, whose response a is the one that side "x" stands for."""

    def make(n: int, label: str, annotator: str | None = None, **more: Any) -> Row:
        row = {
            "prompt": f"question{n} on topic{n}?",
            "response_a": f"first reply{n} words{n}",
            "response_b": f"second answer{n} texts{n}",
            "label": label,
            **more,
        }
        return row if annotator is None else {**row, "annotator": annotator}

    return make
