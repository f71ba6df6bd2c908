from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from plumbline.data_contracts.records import Message, Origin, PreferencePair

Maker = Callable[..., PreferencePair]
_SHARED = Path(__file__).parents[5] / "shared" / "data"


@pytest.fixture(scope="session")
def make_pair() -> Maker:
    """A pair with a line of its own; whatever is not given is unlike that of any other pair."""

    def make(line: int, prompt: str | None = None, chosen: str | None = None, rejected: str | None = None, **more: Any):
        return PreferencePair(
            id=more.pop("id", f"p{line}"),
            prompt=(Message(role="user", content=prompt if prompt is not None else f"question{line} about{line}?"),),
            chosen=chosen if chosen is not None else f"good{line} reply{line}",
            rejected=rejected if rejected is not None else f"bad{line} words{line} here{line}",
            source="test",
            origin=Origin(file="batch.jsonl", line=line),
            **more,
        )

    return make


@pytest.fixture(scope="session")
def read_shared() -> Callable[[str], list[PreferencePair]]:
    """Pairs of a public set under ../shared/data, or a skip."""

    def read(name: str) -> list[PreferencePair]:
        path = _SHARED / f"{name}.jsonl.gz"
        if not path.exists():
            pytest.skip(f"{path.name} is not in ../shared/data")
        with gzip.open(path) as file:
            rows = [orjson.loads(line) for line in file]
        pairs = []
        for line, row in enumerate(rows, start=1):
            sides = (row["response_a"], row["response_b"])
            chosen, rejected = sides if row["label"] == "a" else sides[::-1]
            pairs.append(
                PreferencePair(
                    id=row["id"],
                    prompt=(Message(role="user", content=row["prompt"]),),
                    chosen=chosen,
                    rejected=rejected,
                    source=name,
                    origin=Origin(file=name, line=line),
                )
            )
        return pairs

    return read
