"""The Python of the pages runs; that of `docs/python.md` in `tests/flows/test_python_page.py`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str) -> str:
    """The Python of a page, from its first block to its last."""
    return "\n".join(_BLOCK.findall((ROOT / page).read_text(encoding="utf-8")))


def test_no_other_page_has_python_that_nothing_runs() -> None:
    found = {str(page.relative_to(ROOT)) for page in PAGES if _BLOCK.search(page.read_text(encoding="utf-8"))}
    assert found == {"docs/python.md", "docs/guides/params.md"}


def test_the_reward_function_of_the_guide_gives_one_for_the_right_number() -> None:
    """12 + 30 = 42: a completion that ends in 42 gets 1; another number, nothing and another question get 0."""
    names: dict[str, Any] = {}
    exec(blocks("docs/guides/params.md"), names)
    prompts = [[{"role": "user", "content": text}] for text in ["What is 12 + 30?"] * 3 + ["What is 1 + 1?"]]
    completions = [[{"role": "assistant", "content": text}] for text in ("It is 42", "It is 43", "", "2")]
    assert names["exact_answer"](prompts, completions) == [1.0, 0.0, 0.0, 0.0]
