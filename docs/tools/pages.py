"""MkDocs hook: the site's pages that do not lie in `docs/`, and links from any page into the repository.

1. A folder in `nav` (`decisions/`) stands for its pages, `index.md` first, the others by name.
2. `ROOT_PAGES` are pages too.
3. A link to a source file leads to a page that shows the file. `#L12` is its line 12.

Strict mode then finds every link that leads nowhere, in README and CONTRIBUTING as in `docs/`.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).resolve().parents[2]
ROOT_PAGES = {
    "README.md": "readme.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "benchmarks/RESULTS.md": "results.md",
    "infra/README.md": "infra.md",
}
"""Pages outside of `docs/` by their path in the repository, and where they are in the site."""

_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)(?P<path>[^)\s#]+)(?P<anchor>#[^)\s]*)?(?=[\s)])")
_LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".json": "json", ".toml": "toml", ".sh": "bash"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Replace folders in `nav` by their pages; pages that nothing names come last."""
    docs = Path(config.docs_dir)
    config.nav = [_filled(item, docs) for item in config.nav or []]
    pages = {path.relative_to(docs).as_posix() for path in docs.rglob("*.md")}
    if others := sorted(pages - set(_paths(config.nav))):
        config.nav.append({"More": others})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the root and a page for each source file that some page links to."""
    for source, page in ROOT_PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    for path in sorted(set(_linked_sources(files.documentation_pages()))):
        files.append(
            File.generated(config, f"source/{path}.md", content=_shown(path), inclusion=InclusionLevel.NOT_IN_NAV)
        )
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links that leave `docs/` lead to the site's page of what they name."""
    here = page.file.src_uri
    return _LINK.sub(lambda link: _in_site(link, here), markdown)


def _filled(item: Any, docs: Path) -> Any:
    if isinstance(item, dict):
        return {title: _filled(value, docs) for title, value in item.items()}
    if isinstance(item, list):
        return [_filled(entry, docs) for entry in item]
    if not item.endswith("/"):
        return item
    pages = sorted((docs / item).glob("*.md"), key=lambda path: (path.name != "index.md", path.name))
    return [path.relative_to(docs).as_posix() for path in pages]


def _paths(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    else:
        for entry in nav.values() if isinstance(nav, dict) else nav:
            yield from _paths(entry)


def _linked_sources(pages: Iterable[File]) -> Iterator[str]:
    for page in pages:
        for link in _LINK.finditer(page.content_string):
            target = _target(link["path"], page.src_uri)
            if not target.startswith("docs/") and target not in ROOT_PAGES and (ROOT / target).is_file():
                yield target


def _target(path: str, page: str) -> str:
    """The linked path in the repository; `page` is where the link stands, in the site."""
    sources = {site: source for source, site in ROOT_PAGES.items()}
    folder = posixpath.dirname(sources.get(page, f"docs/{page}"))
    return posixpath.normpath(posixpath.join(folder, path))


def _in_site(link: re.Match[str], page: str) -> str:
    target, anchor = _target(link["path"], page), link["anchor"] or ""
    if target in ROOT_PAGES:
        found = ROOT_PAGES[target]
    elif target.startswith("docs/"):
        found = target.removeprefix("docs/")
    elif (ROOT / target).is_file():
        found = f"source/{target}.md"
        anchor = re.sub(r"^#L(\d+).*", r"#__codelineno-0-\1", anchor)
    else:
        return link[0]
    return posixpath.relpath(found, posixpath.dirname(page) or ".") + anchor


def _shown(path: str) -> str:
    language = _LANGUAGES.get(Path(path).suffix, "text")
    text = (ROOT / path).read_text(encoding="utf-8")
    fence = "~" * 10
    return f'---\nsearch:\n  exclude: true\n---\n# {path}\n\n{fence} {language} linenums="1"\n{text}\n{fence}\n'
