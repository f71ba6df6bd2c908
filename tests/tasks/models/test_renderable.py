"""Records that a template refuses are set aside, for whatever it refuses them; the counts balance."""

from __future__ import annotations

import pytest

from plumbline.data_contracts.errors import ModelError
from plumbline.data_contracts.records import CuratedPair, Message, Origin, UnpairedResponse
from plumbline.tasks.models.renderable import Conversation, sift, sift_splits, spelled
from tests.tasks.models.test_control_tokens import MARKED, byte_level

STRICT = (
    "{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('System role not supported.') }}{% endif %}"
    "{% if 'odd' in m['content'] %}{{ 1 + m['content'] }}{% endif %}"
    "{% if 'late' in m['content'] %}{{ nowhere.at_all }}{% endif %}{% endfor %}" + MARKED
)
ORIGIN = Origin(file="made", line=1)


def pair(
    number: str, prompt: str = "the dog", *, system: bool = False, chosen: str = "ran", rejected: str = "no"
) -> CuratedPair:
    messages = (Message(role="user", content=prompt),)
    if system:
        messages = (Message(role="system", content="Be brief."), *messages)
    return CuratedPair(
        id=number, prompt=messages, chosen=chosen, rejected=rejected, source="test", origin=ORIGIN, cluster=number
    )


def test_each_reason_is_named() -> None:
    """By `raise_exception`, by an operation on a content, in a response alone, by an undefined name."""
    tokenizer = byte_level()
    tokenizer.chat_template = STRICT
    pairs = [pair("a"), pair("b", system=True), pair("c", "odd"), pair("d", rejected="odd"), pair("e", chosen="late")]
    kept, refused = sift(tokenizer, pairs)
    assert [each.id for each in kept] == ["a"]
    assert refused["b"] == "System role not supported"
    assert "unsupported operand" in refused["c"] == refused["d"]
    assert "nowhere" in refused["e"]


def test_all_kinds_of_records_are_sifted() -> None:
    tokenizer = byte_level()
    tokenizer.chat_template = STRICT
    single = UnpairedResponse(
        id="s", prompt=pair("x", system=True).prompt, response="ran", desirable=True, source="test", origin=ORIGIN
    )
    talk = Conversation("line 3", (*pair("x").prompt, Message(role="assistant", content="odd")))
    kept, facts = sift_splits(
        tokenizer,
        {"train": [pair("a"), pair("b", "<|end|> <|pad|><|end|>")], "unpaired": [single], "talks": [talk]},
        0.5,
    )
    assert {name: len(rows) for name, rows in kept.items()} == {"train": 2, "unpaired": 0, "talks": 0}
    refused = facts["refused_by_template"]
    assert [refused[name] for name in ("train", "unpaired", "talks")] == [0, 1, 1]
    assert [row["id"] for row in refused["rows"]] == ["s", "line 3"]
    assert sum(refused["reasons"].values()) == 2
    assert facts["control_tokens"] == {"rows": 1, "tokens": {"<|end|>": 1, "<|pad|>": 1}}


def test_beyond_the_threshold_the_run_stops_with_examples() -> None:
    tokenizer = byte_level()
    tokenizer.chat_template = STRICT
    splits = {"train": [pair(str(number), system=number < 2) for number in range(10)]}
    assert len(sift_splits(tokenizer, splits, 0.2)[0]["train"]) == 8
    with pytest.raises(ModelError, match=r"refuses 2 of 10 records \(20.0%\).*train 0: System role not supported"):
        sift_splits(tokenizer, splits, 0.1)
    with pytest.raises(ModelError, match="refuses 1 of 1"):
        sift_splits(tokenizer, {"train": [pair("a", system=True)]}, 1.0)
    assert sift_splits(tokenizer, {"train": []}, 0.0)[0] == {"train": []}


def test_rows_count_once_for_each_token_that_they_spell() -> None:
    """In prompt, chosen and rejected alike; a template's own tokens are none of a record's."""
    pairs = [pair("a", "<|end|><|end|>", rejected="<|end|>"), pair("b"), pair("c", chosen="a <|tool|> <|end|>")]
    assert spelled(byte_level(), pairs) == {"rows": 2, "tokens": {"<|end|>": 2, "<|tool|>": 1}}
