from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import fields
from typing import Any

import pytest

from plumbline.tasks.params.config_arguments import arguments_of, misfit


@pytest.mark.filterwarnings("ignore:You are importing from 'trl.experimental'")
@pytest.mark.parametrize(
    "name", ["TrainingArguments", "SFTConfig", "DPOConfig", "KTOConfig", "GRPOConfig", "RewardConfig", "ORPOConfig"]
)
def test_names_are_those_of_the_class_itself(name: str) -> None:
    import transformers
    import trl
    from trl.experimental.orpo import ORPOConfig

    config = {"TrainingArguments": transformers.TrainingArguments, "ORPOConfig": ORPOConfig}.get(name)
    config = config or getattr(trl, name)
    assert set(arguments_of(name)) == {field.name for field in fields(config) if not field.name.startswith("_")}


@pytest.mark.parametrize(
    ("annotation", "fitting", "wrong"),
    [
        ("bool", [True], [1, "true", None]),
        ("int", [1], [True, 1.5, "1", None]),
        ("float", [1, 0.5], [True, "0.5", None]),
        ("float | None", [1.0, None], ["x", True]),
        ("Optional[str]", ["x", None], [1]),
        ("'int | None'", [1, None], ["x"]),
        ("dict[str, Any] | str | None", [{}, "x", None], [1, []]),
        ("list[str]", [["x"]], ["x", 1]),
        ("OptimizerNames | str", ["adamw_torch", 1, None], []),
    ],
)
def test_values_are_checked_where_the_annotation_is_simple(
    annotation: str, fitting: list[Any], wrong: list[Any]
) -> None:
    """A name that is no plain type lets everything pass: the config class judges it."""
    expression = ast.parse(annotation, mode="eval").body
    assert [misfit(expression, value) for value in fitting] == [None] * len(fitting)
    for value in wrong:
        assert "expected" in (misfit(expression, value) or ""), value


def test_reading_them_imports_neither_library() -> None:
    code = (
        "import sys; from plumbline.tasks.params.finetuning import DpoParams; DpoParams(max_grad_norm=1.0);"
        "sys.exit(any(name in sys.modules for name in ('torch', 'trl', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
