"""Personal data in a text: where it is, of which kind. Checksums and numbering plans are those of libraries.

| kind     | found by                                                                                           |
|----------|----------------------------------------------------------------------------------------------------|
| `email`  | its form; addresses of domains that belong to nobody (RFC 2606: example.com) are left                |
| `phone`  | `phonenumbers`: valid numbers with a country code, or of a region that params name, with separators |
| `card`   | a known issuer's digits and length, groups as on cards, and the Luhn checksum of `stdnum`           |
| `iban`   | `stdnum`: length, structure and checksum of the country                                            |
| `ip`     | a public address; four numbers as in a version count only with three digits, a port or a word for it |
| `secret` | the published forms of API keys and tokens, keys in PEM                                            |

Results, formulas, decimals, dates, versions and ISBNs hold digits as well: what stands beside an operator or inside a
longer number is none of these kinds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Any

from plumbline.data_contracts.extras import needs_extra
from plumbline.tasks.params.personal_data import KINDS, Kind

_HINT = re.compile(r"[@\d_]")
"""A character without which a text holds no personal data: most prose is skipped by it."""

_EMAIL = re.compile(
    r"(?<![\w.+%-])[\w+%][\w.+%'-]{0,63}@(?:[\w](?:[\w-]{0,61}[\w])?\.)+[^\W\d_]{2,24}(?!\w|:[\w~/])", re.UNICODE
)
_RESERVED = re.compile(r"(?:^|\.)(?:example\.(?:com|org|net)|test|invalid|example|localhost|local)$", re.IGNORECASE)
# Patterns begin with a digit where they can: sre then skips to the next digit five times as fast as with a look behind.
# A run of digits in groups: at least seven digits, one separator or two between groups.
_DIGITS = re.compile(r"\d(?:[ \u00a0./()-]{0,2}\d){6,18}(?!\w|[.,]\d)")
_SIGN_BEFORE = re.compile(r"(?<![\w.,+/=*^-])\+?\(?$")
_DATE = re.compile(r"(?:19|20)\d\d[-./ ](?:0?[1-9]|1[0-2])[-./ ]\d|\d\d?[-./]\d\d?[-./](?:19|20)\d\d(?!\d)")
_SHORTEST = 7  # characters of a number that may be one
_OPERATOR_BEFORE = re.compile(r"[=*^\u00d7\u00f7±<>√≈%]\s?$|\d\s?[-+/]\s?$")
_OPERATOR_AFTER = re.compile(r"\s?[=*^\u00d7\u00f7±<>≈%]|\s[-+/]\s\d")
_GROUPED = re.compile(r"^\(|\d-\d|\d/\d|\d\.\d+\.\d|^0\d+ \d")  # (212) 555-0123, 212.555.0123, 020 7946 0958
_CARD = re.compile(r"\d{4}([ -]?)\d{4}\1\d{4}\1\d{4}(?:\1?\d{3})?|\d{4}([ -]?)\d{6}\2\d{4,5}|\d{13,19}")
_ISSUERS = (  # first digits -> lengths: Visa, Mastercard, American Express, Discover, JCB, Diners (ISO/IEC 7812)
    (re.compile(r"4"), (13, 16, 19)),
    (re.compile(r"5[1-5]|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720"), (16,)),
    (re.compile(r"3[47]"), (15,)),
    (re.compile(r"6011|65|64[4-9]"), (16, 19)),
    (re.compile(r"35(?:2[89]|[3-8]\d)"), (16, 19)),
    (re.compile(r"3(?:0[0-5]|[68])"), (14,)),
)
_IBAN = re.compile(r"\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)", re.IGNORECASE)  # behind its country
_COUNTRY_BEFORE = re.compile(r"(?<!\w)[A-Z]{2}$", re.IGNORECASE)
_PART_BEFORE = re.compile(r"[\w.]$")
_IPV4 = re.compile(r"\d{1,3}(?:\.\d{1,3}){3}(?!\w|\.\d)")
_IPV6 = re.compile(
    r"(?<![0-9A-Fa-f]:)(?<![\w.])(?:[0-9A-Fa-f]{1,4}:){2,7}(?::?[0-9A-Fa-f]{1,4}(?::[0-9A-Fa-f]{1,4}){0,5})?(?![\w:])"
)
_VERSION_BEFORE = re.compile(r"(?:\bv|version|release|build|section|chapter|§)\W{0,3}$", re.IGNORECASE)
_ADDRESS_BEFORE = re.compile(
    r"\b(?:ip|ipv4|address|addr|host|server|client|from|ping|ssh)\b\W{1,4}(?:is |was |=\s?)?$", re.IGNORECASE
)
_ADDRESS_AFTER = re.compile(r":\d{2,5}\b|/\d{1,2}\b")
_SECRET_STARTS = (
    *(
        "AKIA",
        "ASIA",
        "ghp_",
        "gho_",
        "ghu_",
        "ghs_",
        "ghr_",
        "github_pat_",
        "glpat-",
        "sk-",
        "sk_",
        "rk_",
        "hf_",
        "xox",
    ),
    *("AIza", "ya29.", "npm_", "pypi-", "SG.", "eyJ", "-----BEGIN"),
)
_SECRETS = re.compile(
    r"(?<![\w-])(?:"
    r"(?:AKIA|ASIA)[0-9A-Z]{16}"  # AWS access key ids
    r"|gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_\w{22,255}|glpat-[\w-]{20,}"  # GitHub, GitLab
    r"|sk-(?:ant-|proj-|svcacct-)?[\w-]{20,}|hf_[A-Za-z0-9]{30,}"  # OpenAI, Anthropic, Hugging Face
    r"|xox[abeoprs]-[\w-]{10,}|(?:sk|rk)_(?:live|test)_[A-Za-z0-9]{16,}"  # Slack, Stripe
    r"|AIza[\w-]{35}|ya29\.[\w-]{20,}|npm_[A-Za-z0-9]{36}|pypi-[\w-]{50,}|SG\.[\w-]{22}\.[\w-]{43}"
    r"|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"  # JSON web tokens
    r")(?![\w-])"
    r"|-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----(?:[\s\S]*?-----END (?:[A-Z0-9]+ )*PRIVATE KEY-----|[\s\S]*)"
)


@dataclass(frozen=True, slots=True)
class PersonalValue:
    """A value in a text, from `start` to before `end`. `key`: equal for two ways of writing one value."""

    kind: Kind
    start: int
    end: int
    key: str


@dataclass(frozen=True, slots=True)
class Recogniser:
    """The kinds to look for, and the regions whose phone numbers count without a country code."""

    kinds: Sequence[Kind] = KINDS
    regions: Sequence[str] = ()

    def find(self, text: str) -> list[PersonalValue]:
        """The values in a text, in order; none overlaps another. The kinds come in the order of their certainty."""
        if not _HINT.search(text):
            return []
        found: list[PersonalValue] = []
        for kind in _CERTAIN_FIRST:
            if kind in self.kinds:
                found += [each for each in _FINDERS[kind](text, self) if not _overlaps(each, found)]
        return sorted(found, key=lambda each: each.start)


def require_libraries() -> None:
    """Raise `UsageError` if the libraries of numbers are not installed."""
    _libraries()


@cache
def _libraries() -> tuple[Any, Any, Any, Any]:
    with needs_extra("personal-data", "feedback.personal_data"):
        import phonenumbers
        from stdnum import iban, isbn, luhn
    return phonenumbers, luhn, iban, isbn


def _overlaps(value: PersonalValue, others: Sequence[PersonalValue]) -> bool:
    return any(value.start < other.end and other.start < value.end for other in others)


def _secrets(text: str, _: Recogniser) -> Iterator[PersonalValue]:
    if not any(start in text for start in _SECRET_STARTS):
        return
    for match in _SECRETS.finditer(text):
        yield PersonalValue("secret", match.start(), match.end(), match[0])


def _emails(text: str, _: Recogniser) -> Iterator[PersonalValue]:
    if "@" not in text:
        return
    for match in _EMAIL.finditer(text):
        if not _RESERVED.search(match[0].partition("@")[2]):
            yield PersonalValue("email", match.start(), match.end(), match[0].casefold())


def _ibans(text: str, _: Recogniser) -> Iterator[PersonalValue]:
    for match in _IBAN.finditer(text):
        start = match.start() - 2
        if not _COUNTRY_BEFORE.search(text, max(start - 1, 0), match.start()):
            continue
        for end in range(match.end(), start + 14, -1):  # words may follow that look like a group of it
            value = text[start:end]
            if not text[end : end + 1].isalnum() and _libraries()[2].is_valid(value):
                yield PersonalValue("iban", start, end, "".join(value.split()).upper())
                break


def _cards(text: str, _: Recogniser) -> Iterator[PersonalValue]:
    for number in _numbers(text):
        for start, end in _parts(text, *number):
            written = text[start:end]
            digits = _digits_of(written)
            if _CARD.fullmatch(written) and _issued(digits) and _libraries()[1].is_valid(digits):
                yield PersonalValue("card", start, end, digits)
                break


def _issued(digits: str) -> bool:
    return any(prefix.match(digits) and len(digits) in lengths for prefix, lengths in _ISSUERS)


def _phones(text: str, recogniser: Recogniser) -> Iterator[PersonalValue]:
    for run in _numbers(text):
        for start, end in _parts(text, *run):
            written = text[start:end]
            if _DATE.match(written) or _IPV4.fullmatch(written) or _libraries()[3].is_valid(written):
                break
            if (number := _phone(written, recogniser.regions)) is not None:
                yield PersonalValue("phone", start, end, number)
                break


def _phone(written: str, regions: Sequence[str]) -> str | None:
    """A valid number as E.164, else None. Without a country code its groups must be those of a phone number."""
    phonenumbers = _libraries()[0]
    if written.startswith("00"):
        written = f"+{written[2:]}"
    if not written.startswith("+") and not _GROUPED.search(written):
        return None
    for region in [None] if written.startswith("+") else regions:
        try:
            number = phonenumbers.parse(written, region)
        except phonenumbers.NumberParseException:
            continue
        if phonenumbers.is_valid_number(number):
            return str(phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164))
    return None


@lru_cache(maxsize=1)  # for cards, then for phone numbers
def _numbers(text: str) -> Sequence[tuple[int, int]]:
    """Runs of seven digits and more that stand by themselves: beside no operator. With their sign or parenthesis."""
    runs = []
    for match in _DIGITS.finditer(text):
        first = max(match.start() - 6, 0)
        sign = _SIGN_BEFORE.search(text, first, match.start())
        if sign is None:
            continue
        start, end = sign.start(), match.end()
        if _OPERATOR_BEFORE.search(text, first, start) or _OPERATOR_AFTER.match(text, end):
            continue
        alone = text[start] == "(" and ")" not in match[0]  # a parenthesis around more than the number
        runs.append((start + alone, end))
    return runs


def _parts(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The run, then what is left of it without groups at its ends, longest first: other numbers may stand beside."""
    gaps = [start + match.start() for match in re.finditer(r"[ \u00a0]", text[start:end])]
    spans = [(a, b) for a in (start, *(gap + 1 for gap in gaps)) for b in (*gaps, end) if b - a >= _SHORTEST]
    return iter(sorted(spans, key=lambda span: (span[0] - span[1], span)))


def _digits_of(written: str) -> str:
    return "".join(filter(str.isdigit, written))


def _addresses(text: str, _: Recogniser) -> Iterator[PersonalValue]:
    for match in _IPV4.finditer(text):
        if not _PART_BEFORE.search(text, max(match.start() - 1, 0), match.start()) and _is_address(text, match):
            yield PersonalValue("ip", match.start(), match.end(), match[0])
    if "::" in text or text.count(":") > 6:
        for match in _IPV6.finditer(text):
            if (address := _public(IPv6Address, match[0])) is not None:
                yield PersonalValue("ip", match.start(), match.end(), address)


def _is_address(text: str, match: re.Match[str]) -> bool:
    """True for a public address. 2.3 % of those have no number of three digits, and read like a version."""
    before = text[max(match.start() - 24, 0) : match.start()]
    if _public(IPv4Address, match[0]) is None or _VERSION_BEFORE.search(before):
        return False
    long = any(len(part) == 3 for part in match[0].split("."))
    return long or bool(_ADDRESS_BEFORE.search(before) or _ADDRESS_AFTER.match(text, match.end()))


def _public(kind: type[IPv4Address] | type[IPv6Address], written: str) -> str | None:
    try:
        address = kind(written)
    except AddressValueError:
        return None
    return str(address) if address.is_global else None


_FINDERS: Mapping[Kind, Callable[[str, Recogniser], Iterator[PersonalValue]]] = {
    "secret": _secrets,
    "email": _emails,
    "iban": _ibans,
    "card": _cards,
    "ip": _addresses,
    "phone": _phones,
}
_CERTAIN_FIRST = tuple(_FINDERS)
