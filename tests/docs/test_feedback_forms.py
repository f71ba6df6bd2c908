"""The page of forms has an example of every reader, which is read as the page says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from plumbline.data_contracts.preference_pair import check_pairs
from plumbline.data_contracts.records import Message, PreferencePair, UnpairedResponse
from plumbline.data_contracts.unpaired_response import check_unpaired
from plumbline.tasks.data.feedback import SOURCES
from plumbline.tasks.data.feedback.reader_table import READERS
from plumbline.tasks.params.feedback_rules import MAP_NAMES

PAGE = Path(__file__).resolve().parents[2] / "docs/guides/feedback-forms.md"
EXAMPLES = dict(re.findall(r"^### `(\w+)`\n\n.*?\n\n```json\n(.*?)\n```$", PAGE.read_text(), re.MULTILINE))
BY_NAME = {reader.name: reader for reader in READERS}


def test_every_reader_is_on_the_page_once_and_no_other() -> None:
    assert re.findall(r"^### `(\w+)`$", PAGE.read_text(), re.MULTILINE) == [reader.name for reader in READERS]


@pytest.mark.parametrize("name", BY_NAME)
def test_the_example_of_a_reader_is_read_as_the_page_says(name: str) -> None:
    """The answer that people preferred, or liked, is the same in all."""
    pairs = BY_NAME[name].kind in ("pair", "list")
    source = "human_pairs" if pairs else "unpaired_responses"
    (row,) = SOURCES[source]([EXAMPLES[name].encode()], "page")
    assert row.format == name
    record = row.outcome
    if pairs:
        assert isinstance(record, PreferencePair), record
        assert (record.chosen, record.rejected) == ("Yes, it is.", "No.")
        assert check_pairs([record], plainly=True) == []
    else:
        assert isinstance(record, UnpairedResponse), record
        assert (record.response, record.desirable) == ("Yes, it is.", True)
        assert check_unpaired([record], plainly=True) == []
    assert record.prompt == (Message(role="user", content="Is it blue?"),)


@pytest.mark.parametrize("name", BY_NAME)
def test_a_row_without_a_needed_column_names_it(name: str) -> None:
    """Or it has what another form needs: then that one reads it, or names what is missing."""
    whole = json.loads(EXAMPLES[name])
    for column in {need.split(".")[0] for need in BY_NAME[name].needs}:
        text = json.dumps({key: value for key, value in whole.items() if key != column}).encode()
        for source in ("human_pairs", "unpaired_responses"):
            for row in SOURCES[source]([text], "page"):
                assert row.format != name or getattr(row.outcome, "reason", "") in ("missing_field", "no_opinion")


def test_every_name_of_a_map_is_on_the_page() -> None:
    assert [
        name for name in MAP_NAMES if f"`{name}`" not in PAGE.read_text() and f"{name}=" not in PAGE.read_text()
    ] == []
