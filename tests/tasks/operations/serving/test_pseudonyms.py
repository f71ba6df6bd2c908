from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

import pytest

from plumbline.data_contracts.errors import ParamsError
from plumbline.tasks.operations.serving.pseudonyms import KEY_FILE, pseudonyms


def test_a_user_has_one_pseudonym_a_key_which_is_made_once_and_private(tmp_path: Path) -> None:
    first = pseudonyms(tmp_path, None)("ann@example.org")
    assert first == pseudonyms(tmp_path, None)("ann@example.org")
    assert first != pseudonyms(tmp_path, None)("bea@example.org")
    key = tmp_path / KEY_FILE
    assert key.stat().st_mode & 0o777 == 0o600
    assert first == hmac.new(key.read_bytes(), b"ann@example.org", hashlib.sha256).hexdigest()[:32]
    key.unlink()
    assert first != pseudonyms(tmp_path, None)("ann@example.org")


def test_a_key_comes_from_the_environment_or_a_file_and_is_long_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").write_text("k" * 32 + "\n")
    monkeypatch.setenv("USERS_KEY", "k" * 32)
    assert pseudonyms(tmp_path, "key")("ann") == pseudonyms(tmp_path, "$USERS_KEY")("ann")
    (tmp_path / "key").write_text("short")
    monkeypatch.delenv("USERS_KEY")
    for place in ("key", "$USERS_KEY", "missing"):
        with pytest.raises(ParamsError, match="user_key"):
            pseudonyms(tmp_path, place)
    assert not (tmp_path / KEY_FILE).exists()
