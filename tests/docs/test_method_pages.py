"""The pages of the methods name functions that are there, in the files that they link to."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "docs" / "methods" / f"{method}.md" for method in ("dpo", "grpo", "ppo")]
LINK = re.compile(r"\[`([^`]+)`\]\(([^)#]+\.py)\)")


def defined(file: Path) -> set[str]:
    """Names that a module defines at its top, and the methods of its classes."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    named = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    bodies = [tree.body, *(node.body for node in tree.body if isinstance(node, ast.ClassDef))]
    return {node.name for body in bodies for node in body if isinstance(node, named)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_function_is_where_the_page_says(page: Path) -> None:
    links = LINK.findall(page.read_text(encoding="utf-8"))
    assert len(links) > 8
    for name, target in links:
        file = (page.parent / target).resolve()
        assert file.is_file(), f"{target} is gone"
        assert name.endswith(".py") or name in defined(file), f"{target} defines no {name}"


def test_every_method_that_samples_or_reads_pairs_has_its_page_and_its_script() -> None:
    for method in ("dpo", "grpo", "ppo"):
        page = (ROOT / "docs" / "methods" / f"{method}.md").read_text(encoding="utf-8")
        assert f"(../../examples/{method}_from_scratch.py)" in page
        assert f"docs/methods/{method}.md" in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
        assert f"docs/methods/{method}.md" in (ROOT / "examples" / f"{method}_from_scratch.py").read_text("utf-8")
