"""The three scripts run as a person runs them, and what they print rises by more than chance explains."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SCRIPTS = [EXAMPLES / f"{method}_from_scratch.py" for method in ("dpo", "grpo", "ppo")]
ERRORS = 4
"""Standard errors that a figure has to rise by: one chance in 30,000."""


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """π_ref stays in it, so that the second and third script need not train it again."""
    return tmp_path_factory.mktemp("from-scratch")


@pytest.mark.training
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_the_policy_comes_to_win_against_pi_ref(
    script: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A policy that learned nothing wins half of n prompts, with a standard error of at most ½ / √n."""
    monkeypatch.setattr("sys.argv", [str(script), str(folder)])
    runpy.run_path(str(script), run_name="__main__")
    printed = capsys.readouterr().out
    (*_, (won, prompts)) = re.findall(r"win rate against π_ref (\S+) \(n (\d+)\)", printed)
    assert float(won) > 0.5 + ERRORS * 0.5 / int(prompts) ** 0.5
    if "accuracy" in printed:
        (*_, accuracy) = re.findall(r"preference accuracy (\S+)", printed)
        assert float(accuracy) > 0.5 + ERRORS * 0.5 / int(prompts) ** 0.5
    if "   reward " in printed:
        # in standard deviations of π_ref's completions; the means of two rollouts of 64 differ by √(2 / 64) of them
        first, *_, last = re.findall(r"   reward (\S+)", printed)
        assert float(last) - float(first) > ERRORS * (2 / 64) ** 0.5


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_is_read_in_one_sitting(script: Path) -> None:
    assert len(script.read_text(encoding="utf-8").splitlines()) <= 300
