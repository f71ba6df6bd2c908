"""`import plumbline`: a dozen documented names, and nothing that costs time before one is used."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import plumbline

PAGE = (Path(__file__).resolve().parents[1] / "docs/python.md").read_text(encoding="utf-8")
_IMPORT = (
    "import sys, time; before = set(sys.modules); start = time.perf_counter(); import plumbline;"
    "print(time.perf_counter() - start, *sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
)


def test_the_import_takes_no_time_and_loads_nothing_but_the_standard_library() -> None:
    runs = [
        subprocess.run([sys.executable, "-c", _IMPORT], capture_output=True, text=True, check=True).stdout.split()
        for _ in range(5)
    ]
    assert min(float(seconds) for seconds, *_ in runs) < 0.05
    assert {name for _, *names in runs for name in names} <= {"plumbline", *sys.stdlib_module_names}


def test_at_most_a_dozen_names_each_documented() -> None:
    assert len(plumbline.__all__) <= 12
    assert sorted(plumbline.__all__) == plumbline.__all__
    for name in plumbline.__all__:
        assert inspect.getdoc(getattr(plumbline, name)), name
        assert f"`{name}" in PAGE, name
    assert set(plumbline.__all__) <= set(dir(plumbline))


def test_every_method_is_documented_and_on_the_page() -> None:
    for shown, owner in (("workspace", plumbline.Workspace), ("champion", plumbline.ChatModel)):
        for name, method in vars(owner).items():
            if inspect.isfunction(method) and not name.startswith("_"):
                assert inspect.getdoc(method), name
                assert f"{shown}.{name}(" in PAGE, name


def test_a_wrong_name_is_an_attribute_error() -> None:
    assert not hasattr(plumbline, "open")
