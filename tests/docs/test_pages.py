"""The site: what it links to is there, nothing comes from elsewhere, and what a page shows holds."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from plumbline.data_contracts.preference_pair import check_pairs
from plumbline.data_contracts.records import PreferencePair, UnpairedResponse
from plumbline.tasks.data.feedback import SOURCES
from plumbline.tasks.params.feedback_limits import LIMITS

ROOT = Path(__file__).resolve().parents[2]
_ROW = re.compile(r"^```json\n(\{.*?\})\n```$", re.MULTILINE | re.DOTALL)


def build(root: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; strict, so that a link or an anchor that leads nowhere fails here."""
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    """No font, script, style or image of another host: only links that a reader follows."""
    loads = re.compile(
        r"""<(?:script|img|iframe)[^>]*\ssrc=["']?(https?:)?//|<link[^>]*rel=["']?(?:stylesheet|preconnect)[^>]*//"""
    )
    pages = list(site.rglob("*.html"))
    assert len(pages) > 40
    assert [page.name for page in pages if loads.search(page.read_text())] == []


@pytest.mark.slow
def test_a_link_to_source_leads_to_a_page_that_shows_it(site: Path) -> None:
    assert "def render_dvc_yaml" in re.sub(r"<[^>]+>", "", (site / "source/flows/graph/stages.py.html").read_text())


@pytest.mark.slow
def test_the_roots_pages_and_every_decision_are_in_the_site(site: Path) -> None:
    names = {page.relative_to(site).as_posix() for page in site.rglob("*.html")}
    decisions = {f"decisions/{path.stem}.html" for path in (ROOT / "docs/decisions").glob("*.md")}
    assert decisions | {"contributing.html", "results.html", "readme.html"} <= names


@pytest.mark.slow
def test_links_that_lead_nowhere_fail_the_build(tmp_path: Path) -> None:
    """A page, an anchor and a source file that are not there, each named."""
    for name in ("benchmarks", "data_contracts", "docs", "examples", "flows", "infra", "tasks"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("mkdocs.yml", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "README.md").write_text(
        "# README\n\n[a](docs/gone.md), [b](docs/start/demo.md#gone), [c](flows/gone.py), [d](docs/start/demo.md)\n"
    )
    done = build(tmp_path, tmp_path / "site")
    warnings = [line for line in done.stderr.splitlines() if line.startswith("WARNING")]
    named = [any(name in line for line in warnings) for name in ("'gone.md'", "demo.md#gone", "'flows/gone.py'")]
    assert (done.returncode, named, len(warnings)) == (1, [True, True, True], 3), done.stderr


@pytest.mark.parametrize("page", ["README.md", "docs/start/own-data.md"])
def test_the_example_row_has_every_field_and_is_accepted(page: str) -> None:
    text = _ROW.findall((ROOT / page).read_text(encoding="utf-8"))[0].replace("\n", "")
    (read,) = SOURCES["human_pairs"]([text.encode()], "feedback.jsonl", LIMITS)
    assert isinstance(read.outcome, PreferencePair)
    assert check_pairs([read.outcome], plainly=True) == []
    by_the_reader = {"origin", "given_id"}
    assert set(json.loads(text)) == set(PreferencePair.model_fields) - by_the_reader


def test_the_example_of_a_single_response_is_accepted() -> None:
    text = _ROW.findall((ROOT / "docs/start/own-data.md").read_text(encoding="utf-8"))[1].replace("\n", "")
    (read,) = SOURCES["unpaired_responses"]([text.encode()], "thumbs.jsonl", LIMITS)
    assert isinstance(read.outcome, UnpairedResponse)
    assert read.outcome.desirable


def test_each_message_of_the_troubleshooting_is_one_of_the_code() -> None:
    """A heading is a part of a message; `…` stands for what the code fills in."""
    messages = " \n".join(_texts())
    headings = re.findall(r"^### (.*)$", (ROOT / "docs/troubleshooting.md").read_text(), re.MULTILINE)
    assert len(headings) > 20
    unknown = [head for head in headings if not all(part.strip() in messages for part in head.split("…"))]
    assert unknown == []


def _texts() -> Iterator[str]:
    """Every text in the code, adjacent ones as one; what is filled in becomes `{}`."""
    for folder in ("data_contracts", "flows", "tasks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    yield "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def test_every_path_that_a_page_names_is_there() -> None:
    """`tasks/…/file.py` in README, CONTRIBUTING and `docs/`: a file that moved takes its name along."""
    named = re.compile(r"`((?:data_contracts|flows|tasks|tests|benchmarks|infra|docs)/[\w/.-]+)`")
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *(ROOT / "docs").rglob("*.md")]
    gone = {
        f"{page.relative_to(ROOT)}: {path}"
        for page in pages
        for path in named.findall(page.read_text(encoding="utf-8"))
        if not (ROOT / path).exists()
    }
    assert gone == set()
