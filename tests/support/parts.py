"""Parts of the suite, and how a run draws from the long one.

A test marked `long` is a kill campaign, a whole retraining, a statistical simulation or alike. `--long slice` draws a
sixth of their files by `--long-seed`, and one test of each (or as many as a mark's `keep` says). `--minutes` runs them
in an order drawn by the seed until the time is spent. Plain pytest runs them all.
"""

from __future__ import annotations

import gc
import math
import random
import time
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import pytest

MARKS = {
    "server": "starts a real server of Prefect, or works on a workspace whose run needed one",
    "training": "trains a model for more than a second",
    "slow": "takes more than a second for another reason: processes, databases, statistics",
    "long(keep=1)": "runs whole in `make test-long`; where `make test` draws its file, it runs `keep` of these",
}
# A test that asks for one of these fixtures needs as much.
NEEDS = {
    "server": frozenset(
        {"prefect_server", "server", "restartable", "trained", "fresh", "copy", "services", "worker", "up"}
    ),
    "training": frozenset({"built"}),
    "slow": frozenset({"world", "registered_world", "chain", "logged"}),
}
SECONDS = {"long": 40.0, "server": 8.0, "training": 5.0, "slow": 2.0}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("long part")
    group.addoption("--long", choices=("all", "slice"), default="all", help="run the tests marked long, or a slice")
    group.addoption("--long-seed", type=int, default=None, help="seed of the slice, of the order and of campaigns")
    group.addoption("--minutes", type=float, default=None, help="run long tests alone, until this time is spent")


def pytest_configure(config: pytest.Config) -> None:
    for name, text in MARKS.items():
        config.addinivalue_line("markers", f"{name}: {text}")
    option = config.option
    if option.long_seed is None:
        option.long_seed = random.SystemRandom().randrange(10_000)
    option.long_until = None if option.minutes is None else time.monotonic() + 60 * option.minutes
    for name, value in getattr(config, "workerinput", {}).get("long", {}).items():
        setattr(option, name, value)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Send a worker of xdist what was drawn here."""
    option = node.config.option
    node.workerinput["long"] = {"long_seed": option.long_seed, "long_until": option.long_until}


def pytest_report_header(config: pytest.Config) -> str | None:
    option = config.option
    if option.minutes is not None:
        return f"long part: {option.minutes:g} minutes; again with make test-long SEED={option.long_seed}"
    if option.long == "slice":
        return f"long part: a slice; again with make test SEED={option.long_seed}"
    return None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if line := pytest_report_header(config):
        terminalreporter.write_line(line)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        asked = set(getattr(item, "fixturenames", ()))
        for mark, fixtures in NEEDS.items():
            if asked & fixtures:
                item.add_marker(mark)
    option = config.option
    if option.minutes is not None:
        chosen = _shuffled([item for item in items if item.get_closest_marker("long")], option.long_seed)
    elif option.long == "slice":
        left = _drawn(items, option.long_seed)
        chosen = _heavy_first([item for item in items if item.get_closest_marker("long") is None or item in left])
    else:
        return
    kept = set(chosen)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = chosen


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Take all that the imports made out of the garbage collector's sight: trainers call it, 0.3 s a time.

    It is off until then (`tests/conftest.py`): it took 12 of the 39 seconds of a collection.
    """
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_runtest_setup(item: pytest.Item) -> None:
    until = item.config.option.long_until
    if until is not None and time.monotonic() > until:
        pytest.skip("the time given is spent")


@pytest.fixture(scope="session")
def long_seed(pytestconfig: pytest.Config) -> int:
    """The seed of this run, for tests that draw what they try."""
    return int(pytestconfig.option.long_seed)


@pytest.fixture(scope="session")
def at_full_size(pytestconfig: pytest.Config) -> bool:
    """True if campaigns run whole; a slice tries a few points of theirs."""
    return bool(pytestconfig.option.long == "all" or pytestconfig.option.minutes is not None)


def _by_file(items: Iterable[pytest.Item]) -> dict[str, list[pytest.Item]]:
    files: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        files[str(item.path)].append(item)
    return files


def _drawn(items: list[pytest.Item], seed: int) -> set[pytest.Item]:
    """The long tests of a slice: of a sixth of the files with any, `keep` of each by its largest mark."""
    draw = random.Random(seed)
    files = sorted(_by_file(item for item in items if item.get_closest_marker("long")).items())
    drawn: set[pytest.Item] = set()
    for _, tests in draw.sample(files, math.ceil(len(files) / 6)):
        drawn |= set(draw.sample(tests, min(max(map(_keep, tests)), len(tests))))
    return drawn


def _keep(item: pytest.Item) -> int:
    mark = item.get_closest_marker("long")
    return int(mark.kwargs.get("keep", 1)) if mark else 0


def _shuffled(items: list[pytest.Item], seed: int) -> list[pytest.Item]:
    """Files in an order of the seed, each in one piece: its tests share what they build."""
    files = list(_by_file(items).values())
    random.Random(seed).shuffle(files)
    return [item for tests in files for item in tests]


def _heavy_first(items: list[pytest.Item]) -> list[pytest.Item]:
    """Files by their expected seconds, the longest first, so that no worker is left with one at the end."""
    files = sorted(_by_file(items).values(), key=lambda tests: -sum(_seconds(test) for test in tests))
    return [item for tests in files for item in tests]


def _seconds(item: pytest.Item) -> float:
    return next((cost for name, cost in SECONDS.items() if item.get_closest_marker(name)), 0.1)
