"""Personal data in texts: cases by hand, what only looks like it, and properties."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("phonenumbers", reason="the extra personal-data is not installed")

from plumbline.tasks.data.feedback.personal_values import Recogniser
from plumbline.tasks.params.personal_data import KINDS

LOOK = Recogniser(KINDS, ("US",))


def found(text: str, look: Recogniser = LOOK) -> list[tuple[str, str]]:
    return [(value.kind, text[value.start : value.end]) for value in look.find(text)]


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("write to anna.smith@web.de, please", "email", "anna.smith@web.de"),
        ("Anna <o'brien+tag@mail.uni-köln.de>", "email", "o'brien+tag@mail.uni-köln.de"),
        ("mailto:a_b-c@x1.co.uk.", "email", "a_b-c@x1.co.uk"),
        ("call +49 171 2345678 now", "phone", "+49 171 2345678"),
        ("call 0044 7911 123456 now", "phone", "0044 7911 123456"),
        ("call (212) 736-5000 now", "phone", "(212) 736-5000"),
        ("room 12 (212) 736-5000 12 times", "phone", "(212) 736-5000"),
        ("+49 171 2345678 12 and 12", "phone", "+49 171 2345678"),
        ("12 4111-1111-1111-1111 12", "card", "4111-1111-1111-1111"),
        ("(call +1-212-736-5000)", "phone", "+1-212-736-5000"),
        # 4111111111111111 from the right, every second digit doubled: 8 + 2*7 + 8 = 30, divisible by 10
        ("card 4111 1111 1111 1111 exp 12/27", "card", "4111 1111 1111 1111"),
        ("card 378282246310005.", "card", "378282246310005"),
        # DE89 3704 0044 0532 0130 00 is the example of the ECBS: 370400440532013000131489 mod 97 = 1
        ("to DE89 3704 0044 0532 0130 00 thanks", "iban", "DE89 3704 0044 0532 0130 00"),
        ("to gb82west12345698765432", "iban", "gb82west12345698765432"),
        ("logged from 84.17.200.13", "ip", "84.17.200.13"),
        ("host 93.55.67.93:8080", "ip", "93.55.67.93"),
        ("ping 2a02:26f7:c9c8:4000:0:1ba1:9:2 twice", "ip", "2a02:26f7:c9c8:4000:0:1ba1:9:2"),
        ("key AKIAIOSFODNN7EXAMPLE", "secret", "AKIAIOSFODNN7EXAMPLE"),
        ("token=ghp_" + "a1B2" * 9 + ";", "secret", "ghp_" + "a1B2" * 9),
        ("use sk-proj-" + "abcd_EF-12" * 4, "secret", "sk-proj-" + "abcd_EF-12" * 4),
    ],
)
def test_values_are_found_whole_and_by_their_kind(text: str, kind: str, value: str) -> None:
    assert found(text) == [(kind, value)]


@pytest.mark.parametrize(
    "text",
    [
        "12345678 * 87654321 = 1082152022374638",
        "x = 4111111111111111 and 4111111111111111 + 1",
        "3.1415926535897932, 0.4111111111111111 and 1,082,152,022",
        "Take 212 - 736 - 5000, or [[212 736 5000]]",
        "upgrade to v1.2.3.4, version 84.17.200.13, lodash@4.17.21, Chrome/120.0.6099.109, numpy 1.2.3.4",
        "127.0.0.1, 192.168.1.20, 10.0.0.1, 0.0.0.0 and ::1 are nobody's; 999.1.1.1 is none",
        "2024-01-15 12:30:45, 2025-12-04 15, 15/01/2024 10:30, 27.11.2019 17, 20240115123045",
        "ISBN 978-3-16-148410-0, ISBN 9780306406157 and 0-306-40615-2",
        "1700000000 and 1700000000000 are seconds and milliseconds",
        "4111 1111 1111 1112 has a wrong checksum, DE88 3704 0044 0532 0130 00 too",
        "john.doe@example.com, a@b.test and user@localhost are nobody's",
        "git@github.com:org/repo.git, @app.route('/x1'), @anna, a @ b.c",
        "550e8400-e29b-41d4-a716-446655440000, doi:10.1000/1234567.1234567, std::vector<int> v1",
        "sk-learn, hf_hub_download, AKIA, ghp_short1",
        "2024-01-15T12:30:45.123456Z, 2024-01-15T12:30:45+02:00, 20240115T123045Z",
        "1 1 2 3 5 8 13 21 34 55 89 144 233 377 610 987 1597 2584 4181 6765",
        "order 5551234567 and 0001112223",
    ],
)
def test_what_only_looks_like_personal_data_is_left(text: str) -> None:
    assert found(text) == []


def test_numbers_without_a_country_code_count_in_the_regions_of_params_alone() -> None:
    text = "030 / 901820 or (212) 736-5000"
    assert found(text, Recogniser(KINDS, ("US",))) == [("phone", "(212) 736-5000")]
    assert found(text, Recogniser(KINDS, ())) == []


def test_kinds_that_nobody_named_are_not_looked_for() -> None:
    text = "anna@web.de, +49 171 2345678"
    assert found(text, Recogniser(("phone",))) == [("phone", "+49 171 2345678")]


def test_one_value_in_two_ways_of_writing_has_one_key() -> None:
    """Cards and telephone numbers by their digits, addresses in any case."""
    for one, other in [
        ("4111 1111 1111 1111", "4111-1111-1111-1111"),
        ("+1 212 736 5000", "(212) 736-5000"),
        ("Anna@Web.de", "anna@web.de"),
        ("DE89 3704 0044 0532 0130 00", "DE89370400440532013000"),
    ]:
        first, second = LOOK.find(f"{one} and {other}")
        assert first.key == second.key


@given(st.text(st.characters(exclude_characters="@_-", exclude_categories=("Nd", "Cs"))))
def test_a_text_without_a_digit_and_a_sign_is_skipped(text: str) -> None:
    assert LOOK.find(text) == []


@given(st.text(alphabet="0123456789 .-+/()@abz:AKIE_\n", max_size=60))
def test_values_lie_in_the_text_in_order_and_do_not_overlap(text: str) -> None:
    values = LOOK.find(text)
    assert all(0 <= value.start < value.end <= len(text) for value in values)
    assert all(one.end <= other.start for one, other in pairwise(values))


@given(
    st.from_regex(r"[a-z]{1,8}(\.[a-z]{1,8})?@[a-z]{2,9}\.(org|net|de)", fullmatch=True).filter(
        lambda address: not re.search(r"@(example|[a-z]*\.test)", address)
    ),
    st.sampled_from(["", "Hi ", "(", "<", '"', "mail: ", "\n"]),
    st.sampled_from(["", ".", ", bye", ")", ">", '"', "\n", "!"]),
)
def test_an_address_is_found_whatever_stands_around_it(address: str, before: str, after: str) -> None:
    assert found(f"{before}{address}{after}", Recogniser(("email",))) == [("email", address)]
