"""The rule of plain sentences, as far as a program can hold it: `python -m docs.tools.words`.

1. The docstring of a public name opens with a verb or a noun, not with a question word.
2. No text (docstring, comment, message, page) uses a phrase of `BANNED`, each with the words to use instead.

"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
ROOT = Path(__file__).resolve().parents[2]
CODE = ("data_contracts", "flows", "tasks", "benchmarks", "examples", "docs/tools")
PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "infra", "benchmarks", "docs")
QUESTIONS = frozenset({"what", "whether", "how", "where", "who", "when"})
BANNED = {
    r"(is|are|was|were|be|been|being|not) told\b": "sent, reported, found",
    r"\btold (of|to|apart)\b": "sent to, distinguished",
    r"\btells? of\b": "reports, records",
    r"\b(hears?|heard)\b": "receives, notices",
    r"\bwhat (came|comes|became|becomes) of\b": "the outcome of",
    r"\bwhich run it had\b": "the run that it started",
    r"\bnobody's\b": "no one's, none",
    r"\bvouch\w*": "signs, records, verifies",
    r"\bstrangers?\b": "another user",
    r"\bin va[i]n\b": "without success",
    r"\b(the rail|the books) of\b": "the frame, the counts",
    r"\bwho said so\b": "who decided it",
    r"\b(none|null|empty) where\b": "None if",
    r"\b(one|line|row|object) a (line|row|pair|prompt|response|stage|seed|record|process|second)\b": "one per line",
}
"""A pattern of riddles and metaphors, and the words to use instead."""

_BANNED = re.compile("|".join(f"(?:{pattern})" for pattern in BANNED), re.IGNORECASE)
_FILLED = re.compile(r"\{[^}]*\}|`[^`]*`")


def problems(root: Path = ROOT) -> Iterator[str]:
    """Every place that breaks the rule, as `path:line: what to change`."""
    for path in _files(root, CODE, "*.py"):
        text = path.read_text(encoding="utf-8")
        yield from (f"{path.relative_to(root)}:{found}" for found in _openings(text))
        yield from (f"{path.relative_to(root)}:{found}" for found in _phrases(_texts_of(text)))
    for path in _files(root, PAGES, "*.md"):
        lines = enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        yield from (f"{path.relative_to(root)}:{found}" for found in _phrases(lines))


def _files(root: Path, places: tuple[str, ...], pattern: str) -> Iterator[Path]:
    for place in places:
        found = root / place
        files = [found] if found.is_file() else sorted(found.rglob(pattern))
        yield from (file for file in files if not file.is_relative_to(root / "tasks/params"))


def _openings(text: str) -> Iterator[str]:
    for node in _public(ast.parse(text)):
        documentation = ast.get_docstring(node)
        first = documentation.split()[0].strip(",:;.") if documentation else ""
        if first.lower() in QUESTIONS:
            name = getattr(node, "name", "module")
            yield f"{node.body[0].lineno}: docstring of {name} opens with {first!r}; open with a verb or a noun"


def _public(node: Documented) -> Iterator[Documented]:
    yield node
    for child in node.body:
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and not child.name.startswith("_"):
            yield from _public(child)


def _texts_of(source: str) -> Iterator[tuple[int, str]]:
    """Lines of comments, docstrings and messages; a text without a space is a name or a key."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        name = tokenize.tok_name[token.type]
        if name in ("COMMENT", "STRING", "FSTRING_MIDDLE") and " " in token.string:
            yield from enumerate(token.string.splitlines(), start=token.start[0])


def _phrases(lines: Iterator[tuple[int, str]]) -> Iterator[str]:
    for number, line in lines:
        if found := _BANNED.search(_FILLED.sub("", line)):
            instead = next(words for pattern, words in BANNED.items() if re.fullmatch(pattern, found[0], re.IGNORECASE))
            yield f"{number}: {found[0]!r}; say {instead}"


def main() -> int:
    """Print every problem; 1 if there is one."""
    found = list(problems())
    sys.stdout.writelines(f"{line}\n" for line in found)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
