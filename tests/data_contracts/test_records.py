"""Records are immutable, closed, and survive a round trip byte for byte."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from plumbline.data_contracts.records import (
    Message,
    Origin,
    PreferencePair,
    content_id,
    dump_jsonl,
    load_conversations,
    load_jsonl,
)

PROMPT = (Message(role="system", content="Be brief."), Message(role="user", content="Hé?"))


def pair(**changes: object) -> PreferencePair:
    fields = {
        "id": "1",
        "prompt": PROMPT,
        "chosen": "yes",
        "rejected": "no",
        "source": "s",
        "origin": Origin(file="f", line=1),
    }
    return PreferencePair(**{**fields, **changes})


def test_content_id_is_the_sha256_of_the_canonical_json() -> None:
    """The canonical JSON is written here by hand: no spaces, non-ASCII characters as UTF-8."""
    canonical = '[[["system","Be brief."],["user","Hé?"]],"yes","no"]'
    assert content_id(PROMPT, "yes", "no") == hashlib.sha256(canonical.encode()).hexdigest()


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected"),
    [
        (PROMPT, "no", "yes"),
        (PROMPT[1:], "yes", "no"),
        ((Message(role="user", content="Be brief."), PROMPT[1]), "yes", "no"),
        (PROMPT, "yes no", ""),
    ],
)
def test_content_id_tells_other_content_apart(prompt: tuple[Message, ...], chosen: str, rejected: str) -> None:
    assert content_id(prompt, chosen, rejected) != content_id(PROMPT, "yes", "no")


def test_prompt_text_has_a_line_a_turn() -> None:
    assert pair().prompt_text() == "system: Be brief.\nuser: Hé?"


def test_records_are_immutable_and_closed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        pair().chosen = "other"  # type: ignore[misc]
    with pytest.raises(ValidationError, match="extra_forbidden"):
        pair(surprise=1)
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        Origin(file="f", line=0)


text = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.lists(st.tuples(text, text, text, st.dictionaries(text, st.integers(-5, 5) | text))))
def test_jsonl_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, str, dict]]) -> None:
    path = tmp_path_factory.mktemp("records") / "pairs.jsonl"
    pairs = [pair(id=i, chosen=c, rejected=r, metadata=m) for i, c, r, m in rows]
    assert dump_jsonl(path, pairs) == len(pairs)
    assert list(load_jsonl(path, PreferencePair)) == pairs


def test_dump_is_canonical(tmp_path: Path) -> None:
    dump_jsonl(tmp_path / "a", [pair(metadata={"b": 1, "a": 2})])
    dump_jsonl(tmp_path / "b", [pair(metadata={"a": 2, "b": 1})])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_load_conversations(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"messages": [{"role": "user", "content": "x"}]}\n')
    assert load_conversations(tmp_path / "d.jsonl") == [[Message(role="user", content="x")]]
