"""A dry run says what the chat template of the workspace's base makes of the rows, once there is a base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from plumbline.tasks.data.dry_run import BASE, try_files
from plumbline.tasks.models.loading import save_model
from plumbline.tasks.params.curation import CurationParams
from plumbline.tasks.params.feedback import FeedbackParams
from tests.tasks.models.test_control_tokens import MARKED, byte_level
from tests.tasks.models.tiny_llama import build_model

REFUSING = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system turns') }}{% endif %}"


def _rows() -> list[dict[str, Any]]:
    asked = [f"Which is number {number} of the {animal}s?" for number, animal in enumerate(("dog", "cat", "owl") * 8)]
    rows = [
        {
            "prompt": [{"role": "user", "content": prompt}],
            "chosen": [{"role": "assistant", "content": f"It is the one with {len(prompt)} letters."}],
            "rejected": [{"role": "assistant", "content": "No."}],
        }
        for prompt in asked
    ]
    rows[1]["prompt"].insert(0, {"role": "system", "content": "Be brief."})
    rows[2]["rejected"][0]["content"] = "No <|end|><|end|> <|tool|>"
    return rows


def test_rows_are_read_under_the_template_of_the_base(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(b"\n".join(orjson.dumps(row) for row in _rows()))
    given = (tmp_path, "human_pairs", [str(file)], FeedbackParams(on_single_label="warn"), CurationParams(), 1)
    before = try_files(*given).report
    assert before["stopped"] is None
    assert not {"control_tokens", "refused_by_template"} & before.keys()
    tokenizer = byte_level()
    tokenizer.chat_template = REFUSING + MARKED
    save_model(build_model(len(tokenizer)), tokenizer, tmp_path / BASE)
    after = try_files(*given).report
    assert after["refused_by_template"] == {"No system turns": 1}
    assert after["control_tokens"] == {"rows": 1, "tokens": {"<|end|>": 1, "<|tool|>": 1}}
    assert {name: after[name] for name in before} == before
