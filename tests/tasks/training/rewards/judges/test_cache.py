from __future__ import annotations

from pathlib import Path

import pytest

from plumbline.data_contracts.errors import JudgeError
from plumbline.tasks.training.rewards.judges.cache import Lookup, ReplyCache
from plumbline.tasks.training.rewards.judges.parsing import Reply

KEY = "ab" + "0" * 62
OTHER = "ab" + "1" * 62
REPLY = Reply(content='{"winner": "A"}', refusal=None, finish_reason="stop", prompt_tokens=12, completion_tokens=5)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    cache = ReplyCache(tmp_path / "judge")
    assert cache.read(KEY) == Lookup(None)
    cache.write(KEY, REPLY)
    assert cache.read(KEY) == Lookup(REPLY)
    assert cache.read(OTHER) == Lookup(None)


def test_nothing_but_whole_entries_stand_in_the_folder(tmp_path: Path) -> None:
    cache = ReplyCache(tmp_path)
    cache.write(KEY, REPLY)
    cache.write(KEY, REPLY)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [cache.path(KEY)]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: b"\x80\x04K\x01.",  # a pickle
        lambda data: data.replace(rb"\"A\"", rb"\"B\""),  # still JSON, another verdict
        lambda data: data.replace(KEY.encode(), OTHER.encode()),
        lambda data: data.replace(b'"prompt_tokens":12', b'"prompt_tokens":-12'),
    ],
)
def test_a_damaged_entry_is_a_miss_and_is_told(tmp_path: Path, damage: object) -> None:
    cache = ReplyCache(tmp_path)
    cache.write(KEY, REPLY)
    whole = cache.path(KEY).read_bytes()
    broken = damage(whole)  # type: ignore[operator]
    assert broken != whole
    cache.path(KEY).write_bytes(broken)
    assert cache.read(KEY) == Lookup(None, corrupt=True)
    cache.write(KEY, REPLY)
    assert cache.read(KEY) == Lookup(REPLY)


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "judge").write_text("a file")
    cache = ReplyCache(tmp_path / "judge")
    with pytest.raises(JudgeError, match=r"judge: expected a folder .* found Not a directory"):
        cache.read(KEY)
    with pytest.raises(JudgeError, match="expected a folder"):
        cache.write(KEY, REPLY)
