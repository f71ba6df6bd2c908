"""The page on Python as one script in a trained workspace: every block in its order, with the asserts of the page."""

from __future__ import annotations

import re
import sys

import pytest

from tests.docs.test_python_blocks import blocks
from tests.flows.conftest import Workspace, write_hh_pairs


@pytest.mark.training
def test_the_page_on_python_is_a_script_that_runs(copy: Workspace) -> None:
    """It prints the version that it trained, the gate's checks, and at last why β may not be negative."""
    write_hh_pairs(copy.root / "feedback.jsonl", 24, seed=8)
    (copy.root / "page.py").write_text(blocks("docs/python.md"), encoding="utf-8")
    done = copy.shell(sys.executable, "page.py")
    assert done.code == 0, done.out + done.err
    assert "models:/assistant/2 True\n" in done.out
    assert re.search(r"^True prompts judged \d+ ≥ 10", done.out, re.MULTILINE), done.out
    assert "finetune.dpo.beta" in done.out.splitlines()[-1]
