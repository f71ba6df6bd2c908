"""Rubrics, and how a question to a language model is laid out.

Candidates come from the policy under training, which is rewarded for whatever makes the judge prefer it, also for
talking to the judge. The layout therefore keeps them strictly inside data:

- Each text is one JSON string on one line. A text can neither begin a line nor close its block.
- `<`, `[` and every character that is not printable (line and paragraph separators, control and invisible format
  characters) are written as JSON escapes. No text can spell a special token of a chat template (`<|im_end|>`,
  `</s>`, `[INST]`), which most servers would read as one even inside a message.
- The lines around a block carry a mark (the fence) that no text of the question contains. It is derived from the
  content, so that the same question is the same bytes.

That makes the boundary certain, not the obedience: how far a model heeds the rubric's rule about data is measured by
calibration, not proved here.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from string import Template
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from plumbline.data_contracts.errors import JudgeError
from plumbline.tasks.models.judging import Prompt

Mode = Literal["pairwise", "listwise"]

RUBRICS = Path(__file__).with_name("rubrics")
LAYOUT = 1
"""Version of the layout below; part of a rubric's digest, because it is part of what the judge reads."""

LABELS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_PLACEHOLDERS = {"fence", "count", "labels"}
_FENCE_DIGITS = 16  # 64 bits: a text that holds its own fence cannot be searched for, and is passed over if found
_OPENERS = re.compile(r"[<\[]")
_PATH = re.compile(r"[/\\]|\.toml$")


class Rubric(BaseModel):
    """The instructions of a judge: `system` before the data, `pairwise` or `listwise` after it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    version: int = Field(ge=1)
    system: str
    pairwise: str
    listwise: str
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")

    @model_validator(mode="after")
    def _placeholders(self) -> Self:
        for key in ("system", "pairwise", "listwise"):
            template = Template(getattr(self, key))
            if not template.is_valid() or not set(template.get_identifiers()) <= _PLACEHOLDERS:
                raise ValueError(f"{key}: expected no placeholder but $fence, $count and $labels ($$ is a dollar sign)")
        if "fence" not in Template(self.system).get_identifiers():
            raise ValueError("system: expected $fence, so that the judge knows where data begins and ends")
        return self


def load_rubric(name: str) -> Rubric:
    """Read a rubric of `rubrics/` by name, or any .toml file by path; `digest` is the SHA-256 of file and layout.

    Raises `JudgeError` when there is none, or it is not a rubric.
    """
    path = Path(name) if _PATH.search(name) else RUBRICS / f"{name}.toml"
    try:
        content = path.read_bytes()
    except OSError as error:
        known = ", ".join(sorted(file.stem for file in RUBRICS.glob("*.toml")))
        raise JudgeError(
            f"Rubric {name!r}: expected a readable file, found {error.strerror}: {path}. Name one of {known}, or the "
            "path of a .toml file."
        ) from error
    digest = hashlib.sha256(f"layout {LAYOUT}\n".encode() + content).hexdigest()
    try:
        return Rubric.model_validate({**tomllib.loads(content.decode()), "digest": digest})
    except (ValidationError, ValueError) as error:
        raise JudgeError(
            f"{path}: expected a rubric (name, version, system, pairwise, listwise), found: {error}. "
            f"Copy {RUBRICS / 'helpfulness-1.toml'} and change it."
        ) from error


@dataclass(frozen=True, slots=True)
class Question:
    """One question: the chat messages to send, and which text stands at each position (label A is position 0)."""

    messages: tuple[Mapping[str, str], ...]
    shown: tuple[int, ...]

    @property
    def labels(self) -> str:
        """The labels of the positions, in order."""
        return LABELS[: len(self.shown)]


def ask(rubric: Rubric, mode: Mode, prompt: Prompt, texts: Sequence[str], shown: Sequence[int]) -> Question:
    """Lay out a question about `texts[i] for i in shown`, in that order, at most 26 of them."""
    candidates = [as_data(texts[index]) for index in shown]
    turns = [f"{turn.role}: {as_data(turn.content)}" for turn in prompt]
    fence = choose_fence([rubric.digest, mode, *turns, *candidates])
    blocks = [_block("conversation", fence, turns)]
    for label, candidate in zip(LABELS, candidates, strict=False):
        blocks.append(_block(f"candidate {label}", fence, [candidate]))
    labels = LABELS[: len(shown)]
    values = {"fence": fence, "count": str(len(labels)), "labels": ", ".join(f'"{label}"' for label in labels)}
    question = rubric.pairwise if mode == "pairwise" else rubric.listwise
    user = "\n".join([*blocks, Template(question).substitute(values).strip()])
    system = Template(rubric.system).substitute(values).strip()
    return Question(({"role": "system", "content": system}, {"role": "user", "content": user}), tuple(shown))


def as_data(text: str) -> str:
    """A text as a JSON string on one line that no tokenizer reads as a special token; `json.loads` gives it back."""
    quoted = json.dumps(text, ensure_ascii=False)
    inert = _OPENERS.sub(lambda found: _escape(found[0]), quoted)
    return inert if inert.isprintable() else "".join(c if c.isprintable() else _escape(c) for c in inert)


def choose_fence(parts: Sequence[str]) -> str:
    """A mark derived from the parts that none of them contains."""
    content = json.dumps(parts).encode()
    fences = (hashlib.sha256(b"%d:" % attempt + content).hexdigest()[:_FENCE_DIGITS] for attempt in count())
    return next(fence for fence in fences if not any(fence in part for part in parts))


def _escape(character: str) -> str:
    """JSON's escape, a pair of surrogates beyond the basic plane."""
    return json.dumps(character)[1:-1] if ord(character) > 0x7E else f"\\u{ord(character):04x}"


def _block(title: str, fence: str, lines: Sequence[str]) -> str:
    return "\n".join([f"=== {fence} begin {title} ===", *lines, f"=== {fence} end {title} ==="])
