from pathlib import Path

import orjson
import pytest

from plumbline.tasks.data.sample_world.generate import generate
from plumbline.tasks.params.sample_world import DefectRates, SampleWorldParams

RATES = DefectRates(
    exact_duplicate=0.02,
    near_duplicate=0.04,
    contradiction=0.02,
    leaked_label=0.03,
    empty_response=0.01,
    overlong_response=0.01,
    broken_json=0.01,
    wrong_type=0.02,
    unknown_field=0.01,
)
SMALL = SampleWorldParams(pairs=600, demonstrations=300, defects=RATES)


class World:
    """A small world, read back."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.facts = generate(SMALL, 5, folder)
        self.record = orjson.loads((folder / "planted.json").read_bytes())
        self.planted = self.record["planted"]
        self.lines = (folder / "feedback/human_pairs.jsonl").read_bytes().splitlines()
        self.defective = {one["line"] for kind in self.planted.values() for one in kind}

    def row(self, line):
        return orjson.loads(self.lines[line - 1])

    def clean_rows(self):
        return [self.row(line) for line in range(1, len(self.lines) + 1) if line not in self.defective]


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("world"))
