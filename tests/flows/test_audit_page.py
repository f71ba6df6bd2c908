"""The audit page in a real browser: what a person sees, and what hostile feedback cannot do."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.flows.conftest import Trained, Workspace

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
EVIL = '<script>document.title="owned"</script>"><img src=x onerror="document.title=1">'


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, "--disable-sync", "--no-first-run"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def page_file(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the trained version, of a manifest in which annotators and params are hostile."""
    from plumbline.tasks.params.layers import load_params
    from plumbline.tasks.registry.audit_lineage import audit_version
    from plumbline.tasks.registry.lineage.build import build_graph
    from plumbline.tasks.registry.lineage.page import render_page

    params = load_params(trained.root)[0]
    walk = audit_version(trained.root, "assistant", params.registry, params.operations)
    manifest = orjson.loads(orjson.dumps(walk.manifest))
    manifest["accounts"]["curated"]["annotators"] = {"train": {EVIL: 3, "ann-1": 2}}
    manifest["texts"]["params.yaml"]["text"] = EVIL
    checked = {"objects": walk.report.objects, "problems": [EVIL], "notes": []}
    html = render_page(build_graph(manifest, walk.about), manifest, False, checked, walk.report.timeline)
    path = tmp_path_factory.mktemp("page") / "lineage.html"
    path.write_text(html)
    return path


@pytest.fixture
def opened(browser: Any, page_file: Path) -> Iterator[tuple[Any, list[str]]]:
    """The page with the network cut, and everything that the browser complained of or asked for."""
    context = browser.new_context(offline=True, viewport={"width": 1500, "height": 950})
    page, heard = context.new_page(), []
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("request", lambda request: heard.append(request.url) if not request.url.startswith("file:") else None)
    page.goto(page_file.as_uri())
    yield page, heard
    context.close()


def test_it_loads_alone_and_without_complaint(opened: tuple[Any, list[str]]) -> None:
    page, heard = opened
    assert page.title() == "Lineage of models:/assistant/1"
    assert heard == []


def test_its_boxes_are_visible_and_apart(opened: tuple[Any, list[str]]) -> None:
    page, _ = opened
    boxes = [box.bounding_box() for box in page.locator(".node .box").all()]
    assert len(boxes) >= 20
    assert all(box["width"] > 100 and box["height"] > 30 for box in boxes)
    for number, one in enumerate(boxes):
        for other in boxes[number + 1 :]:
            beside = one["x"] + one["width"] <= other["x"] or other["x"] + other["width"] <= one["x"]
            below = one["y"] + one["height"] <= other["y"] or other["y"] + other["height"] <= one["y"]
            assert beside or below
    # a label ends inside its box
    for node in page.locator(".node").all():
        label, box = node.locator(".label").bounding_box(), node.locator(".box").bounding_box()
        assert label["x"] + label["width"] <= box["x"] + box["width"]


def test_a_click_shows_what_a_box_is_and_a_link_leads_on(opened: tuple[Any, list[str]]) -> None:
    page, heard = opened
    page.locator(".node.reward_model").click()
    panel = page.locator("#panel")
    assert "reward model" in panel.inner_text()
    assert "models/reward" in panel.inner_text()
    assert page.locator(".node.faded").count() > 0, "what is not connected steps back"
    panel.get_by_role("link", name="curated preferences").first.click()
    assert "data/curated" in panel.inner_text()
    assert heard == []


def test_the_search_box_finds_by_text_and_by_digest(opened: tuple[Any, list[str]]) -> None:
    page, _ = opened
    total = page.locator(".node").count()
    digest = page.locator(".node.environment title").text_content().split()[-1]
    page.locator("#search").fill(digest)
    assert page.locator("#matches").inner_text() == f"1 of {total} boxes"
    page.locator("#search").press("Enter")
    assert "torch" in page.locator("#panel").inner_html()
    page.locator("#search").press("Escape")
    assert page.locator(".node.faded").count() == 0


def test_hostile_texts_stay_texts(opened: tuple[Any, list[str]]) -> None:
    page, heard = opened
    page.locator(".node.annotator").first.click()
    page.locator("#search").fill("owned")
    assert page.title() == "Lineage of models:/assistant/1"
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 1
    assert EVIL in page.locator("#panel").inner_text()
    assert heard == []


def test_it_can_be_read_without_javascript(browser: Any, page_file: Path) -> None:
    context = browser.new_context(offline=True, java_script_enabled=False)
    page = context.new_page()
    page.goto(page_file.as_uri())
    page.locator(".node.reward_model").click()
    assert page.url.rsplit("#", 1)[1].startswith("n")
    assert page.locator(".detail:target").is_visible()
    context.close()


def test_the_command_writes_page_bill_and_events(trained: Trained, tmp_path: Path) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    done = trained.run("audit", "assistant", "--format", "html", "--out", tmp_path / "a.html", "--no-rehash", "--json")
    assert (done.code, done.payload["verified"]) == (0, None), done.err
    assert (tmp_path / "a.html").read_text().startswith("<!doctype html>")
    bill = trained.run("audit", "assistant", "--format", "cyclonedx", "--no-rehash")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(bill.out) is None
    sent = tmp_path / "events.jsonl"
    lineage = trained.run("audit", "assistant", "--format", "json", "--no-rehash", "--openlineage", sent)
    assert orjson.loads(lineage.out)["schema"] == "plumbline.lineage"
    jobs = {orjson.loads(line)["job"]["name"] for line in sent.read_bytes().splitlines()}
    assert {"assistant.finetune", "assistant.register"} <= jobs


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("assistant", "--format", "pdf"), "'pdf' is not one of 'tree', 'json', 'html'"),
        (("assistant", "--format", "html", "--out", "/no/such/folder/a.html"), "expected its folder to exist"),
        (("--annotator", "a", "--batch", "b"), "one of them alone"),
        (("--commit", "not a hash"), "expected a hash"),
    ],
)
def test_what_cannot_be_asked_is_refused(trained: Workspace, arguments: tuple[str, ...], message: str) -> None:
    done = trained.run("audit", *arguments)
    assert done.code in (2, 3)
    assert message in done.err
