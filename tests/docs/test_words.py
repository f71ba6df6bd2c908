"""The rule of plain sentences holds, and the program that says so finds what breaks it."""

from __future__ import annotations

from pathlib import Path

import pytest

from docs.tools import words


def found(root: Path, name: str, text: str) -> list[str]:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text, encoding="utf-8")
    return list(words.problems(root))


@pytest.mark.slow
def test_the_rule_holds() -> None:
    assert list(words.problems()) == []


@pytest.mark.parametrize("word", ["What", "Whether", "How", "Where,", "Who", "When"])
def test_a_docstring_that_opens_with_a_question_word_is_found(word: str, tmp_path: Path) -> None:
    text = f'def run() -> None:\n    """{word} it runs."""\n\n\ndef _run() -> None:\n    """{word} it runs."""\n'
    (line,) = found(tmp_path, "flows/run.py", text)
    assert line.startswith("flows/run.py:2: docstring of run opens with")


@pytest.mark.parametrize(
    "text",
    [
        '"""A flow."""\n\nX = 1  # the server is told of it\n',
        '"""A flow: nobody\'s business."""\n',
        'def run(name: str) -> str:\n    """Run."""\n    return f"{name} was told"\n',
    ],
)
def test_a_phrase_is_found_in_comments_docstrings_and_messages(text: str, tmp_path: Path) -> None:
    assert len(found(tmp_path, "tasks/run.py", text)) == 1


def test_names_in_code_and_quoted_words_are_let_alone(tmp_path: Path) -> None:
    text = '"""A flow that reads `told of`."""\n\ntold = {"told": 1}\nheard = f"{told}"\n'
    assert found(tmp_path, "tasks/run.py", text) == []


def test_pages_are_read_too(tmp_path: Path) -> None:
    (line,) = found(tmp_path, "docs/page.md", "# Page\n\nThe server is told.\n")
    assert line == "docs/page.md:3: 'is told'; say sent, reported, found"
