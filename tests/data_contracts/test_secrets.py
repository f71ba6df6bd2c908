from __future__ import annotations

import pytest

from plumbline.data_contracts.secrets import has_password, mask


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:pw@host/db", "postgresql://me:***@host/db"),
        ("https://:token@host", "https://:***@host"),
        ("at s3://a:b@c and mysql+pymysql://d:e@f:3306", "at s3://a:***@c and mysql+pymysql://d:***@f:3306"),
        ("postgresql://me:p@ss:w@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me@host/db?password=pw&sslmode=require", "postgresql://me@host/db?password=***&sslmode=require"),
    ],
)
def test_a_password_is_found_and_masked(text: str, shown: str) -> None:
    assert has_password(text)
    assert mask(text) == shown


@pytest.mark.parametrize(
    "text", ["sqlite:////tmp/a@b.db", "http://host:5000/x", "s3://me@bucket/x", "models:/a@champion"]
)
def test_what_has_no_password_stays(text: str) -> None:
    assert not has_password(text)
    assert mask(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://host/v1?key=abc&page=2", "http://host/v1?key=***&page=2"),
        ("http://host/v1?page=2&access_token=s3'", "http://host/v1?page=2&access_token=***'"),
        ("http://host/?X-Amz-Signature=12ab rest", "http://host/?X-Amz-Signature=*** rest"),
    ],
)
def test_a_key_in_a_query_is_masked(text: str, shown: str) -> None:
    assert mask(text) == shown
