"""The reference pages say what the code says."""

from __future__ import annotations

from pathlib import Path

from docs.tools import reference


def test_the_generated_pages_follow_from_the_code(tmp_path: Path) -> None:
    reference.write(tmp_path)
    stale = [
        page.name for page in tmp_path.iterdir() if page.read_bytes() != (reference.FOLDER / page.name).read_bytes()
    ]
    assert stale == [], "run `make docs-reference`"


def test_every_command_and_every_reason_is_there() -> None:
    commands = (reference.FOLDER / "commands.md").read_text()
    assert "## `plumbline retrain`" in commands
    assert "### `plumbline keys rotate`" in commands
    contracts = (reference.FOLDER / "contracts.md").read_text()
    missing = [reason for reason in reference.REASONS if f"| `{reason}` |" not in contracts]
    assert missing == []
