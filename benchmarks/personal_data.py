"""Recognisers of personal data on a seeded set of texts: precision, recall and characters per second.

`python -m benchmarks.personal_data --rows 4000 --json`. Candidates that are not installed are left out. Half of the
texts hold one value of a kind, the other half what looks like one: results, versions, dates, ISBNs, digests.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from plumbline.tasks.data.feedback.personal_values import Recogniser
from plumbline.tasks.params.personal_data import KINDS

Span = tuple[str, int, int]
Find = Callable[[str], list[Span]]

_FILLER = (
    "Thanks for the quick answer. I tried both ways and the second one works better on my machine. "
    "Could you explain why the first one fails, and keep the explanation short? "
)
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_ALPHANUMERIC = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


@dataclass(frozen=True, slots=True)
class Sample:
    """A text, and the kind and place of the value in it, if it holds one."""

    text: str
    value: Span | None


def samples(rows: int, seed: int) -> Iterator[Sample]:
    """Texts of 200 to 900 characters: with a value and without one in turn."""
    rng = Random(seed)
    kinds = list(_VALUES)
    for row in range(rows):
        head, tail = _FILLER * rng.randint(0, 2), _FILLER * rng.randint(1, 3)
        if row % 2:
            yield Sample(f"{head}{rng.choice(_LOOKALIKES)(rng)} {tail}", None)
            continue
        kind = kinds[row // 2 % len(kinds)]
        before, value, after = (
            rng.choice(_FRAMES),
            _VALUES[kind](rng),
            rng.choice([". ", ", thanks. ", "\n", " (new) "]),
        )
        start = len(head) + len(before)
        yield Sample(f"{head}{before}{value}{after}{tail}", (kind, start, start + len(value)))


_FRAMES = ("You can reach me at ", "Please use ", "It was ", "My data: ", "contact:", "(", "Here it is again:\n")


_ENDS = (". ", ", thanks. ", "\n", " (new) ")


def _email(rng: Random) -> str:
    name = "".join(rng.choices(_LETTERS, k=rng.randint(3, 9)))
    last = "".join(rng.choices(_LETTERS, k=rng.randint(3, 9)))
    host = "".join(rng.choices(_LETTERS, k=rng.randint(4, 10)))
    short = f"{name[0].upper()}{last}"
    local = rng.choice([name, f"{name}.{last}", f"{name}_{last}{rng.randint(1, 99)}", f"{name}+list", short])
    return f"{local}@{host}.{rng.choice(['com', 'org', 'de', 'co.uk', 'io', 'edu'])}"


def _phone(rng: Random) -> str:
    """A number of a plan that needs no library: digits by the published ranges."""

    def d(length: int) -> str:
        return "".join(rng.choices("0123456789", k=length))

    area = rng.choice(["212", "415", "312", "206", "617", "303"])
    us = f"{rng.randint(2, 9)}{rng.choice('02346789')}{d(1)}", d(4)
    return rng.choice(
        [
            f"+1 {area} {us[0]} {us[1]}",
            f"+1-{area}-{us[0]}-{us[1]}",
            f"({area}) {us[0]}-{us[1]}",
            f"{area}-{us[0]}-{us[1]}",
            f"+49 171 {rng.randint(2, 9)}{d(6)}",
            f"+44 7{rng.choice('45789')}{d(2)} {d(6)}",
            f"+33 6 {d(2)} {d(2)} {d(2)} {d(2)}",
            f"0049 30 {rng.randint(2, 9)}{d(7)}",
        ]
    )


def _luhn(body: str) -> str:
    total = sum(sum(divmod(int(c) * (2 if i % 2 == 0 else 1), 10)) for i, c in enumerate(reversed(body)))
    return body + str(-total % 10)


def _card(rng: Random) -> str:
    prefix, length = rng.choice([("4", 16), ("5" + str(rng.randint(1, 5)), 16), ("37", 15), ("6011", 16)])
    digits = _luhn(prefix + "".join(rng.choices("0123456789", k=length - len(prefix) - 1)))
    cut = [4, 10, 15] if length == 15 else [4, 8, 12, 16]
    groups = [digits[a:b] for a, b in zip([0, *cut[:-1]], cut, strict=True)]
    return rng.choice(["", " ", "-"]).join(groups)


def _iban(rng: Random) -> str:
    digits = "".join(rng.choices("0123456789", k=18))
    check = 98 - int(f"{digits}131400") % 97  # DE
    written = f"DE{check:02d}{digits}"
    return written if rng.random() < 0.5 else " ".join(written[i : i + 4] for i in range(0, 22, 4))


def _ip(rng: Random) -> str:
    if rng.random() < 0.2:
        return "2a02:" + ":".join(f"{rng.randint(1, 65535):x}" for _ in range(7))
    first = rng.choice([23, 31, 45, 62, 77, 81, 93, 109, 134, 151, 178, 185, 203, 212])
    return f"{first}." + ".".join(str(rng.randint(1, 254)) for _ in range(3))


def _secret(rng: Random) -> str:
    def a(length: int) -> str:
        return "".join(rng.choices(_ALPHANUMERIC, k=length))

    return rng.choice(
        [
            "AKIA" + "".join(rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", k=16)),
            f"ghp_{a(36)}",
            f"sk-proj-{a(48)}",
            f"hf_{a(34)}",
            f"xoxb-{rng.randint(10**11, 10**12 - 1)}-{rng.randint(10**11, 10**12 - 1)}-{a(24)}",
            f"sk_live_{a(24)}",
            f"AIza{a(35)}",
            f"eyJ{a(33)}.eyJ{a(60)}.{a(43)}",
        ]
    )


_VALUES: dict[str, Callable[[Random], str]] = {
    "email": _email,
    "phone": _phone,
    "card": _card,
    "iban": _iban,
    "ip": _ip,
    "secret": _secret,
}


def _isbn(rng: Random) -> str:
    body = "9783" + "".join(rng.choices("0123456789", k=8))
    check = -sum(int(c) * (3 if i % 2 else 1) for i, c in enumerate(body)) % 10
    whole = f"{body}{check}"
    return rng.choice([f"ISBN {whole}", f"ISBN {whole[:3]}-{whole[3]}-{whole[4:6]}-{whole[6:12]}-{whole[12]}"])


def _number(rng: Random, digits: int) -> int:
    return rng.randint(10 ** (digits - 1), 10**digits - 1)


def _day(rng: Random) -> tuple[int, int, int]:
    return rng.randint(2010, 2026), rng.randint(1, 12), rng.randint(1, 28)


def _clock(rng: Random) -> str:
    year, month, day = _day(rng)
    return f"on {year}-{month:02d}-{day:02d} {rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}:07"


def _dates(rng: Random) -> str:
    year, month, day = _day(rng)
    return f"from {day:02d}/{month:02d}/{year} to {day}.{month:02d}.{year} {rng.randint(0, 23)}"


def _uuid(rng: Random) -> str:
    digits = f"{rng.getrandbits(128):032x}"
    return f"id {digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def _version(rng: Random) -> str:
    return ".".join(str(rng.randint(0, 40)) for _ in range(3)) + f".{rng.randint(0, 255)}"


_LOOKALIKES: tuple[Callable[[Random], str], ...] = (
    lambda r: f"{_number(r, 8)} * {_number(r, 8)} = {_number(r, 16)}",
    lambda r: f"The sum is {_number(r, 10):,} and the mean {r.random() * 10**6:.10f}.",
    lambda r: f"pi = 3.14159265358979 and x = {_number(r, 16)}",
    lambda r: f"Take {_number(r, 3)} - {_number(r, 3)} - {_number(r, 4)} and simplify.",
    lambda r: f"1 2 3 5 8 13 21 34 55 89 144 233, then {_number(r, 3)} {_number(r, 3)}",
    lambda r: f"pip install numpy=={r.randint(1, 3)}.{r.randint(0, 30)}.{r.randint(0, 9)}.{r.randint(0, 9)}",
    lambda r: f"version {_version(r)} fixes it",
    lambda r: f"Chrome/{_number(r, 2)}.0.{_number(r, 4)}.{_number(r, 2)} and lodash@4.17.{_number(r, 2)}",
    lambda r: f"Release v1.2.3.{r.randint(4, 255)} and section 4.{r.randint(1, 9)}.2.1",
    _clock,
    _dates,
    lambda r: f"epoch {r.randint(15 * 10**8, 18 * 10**8)} or {r.randint(15 * 10**11, 18 * 10**11)}",
    _isbn,
    lambda r: f"sha256 {r.getrandbits(256):064x}",
    _uuid,
    lambda r: f"doi:10.{_number(r, 4)}/{_number(r, 7)}.{_number(r, 7)}",
    lambda r: f"order number {_number(r, 10)} of {_number(r, 6)} pieces, ${_number(r, 4):,}.00",
    lambda r: f"at {r.uniform(-90, 90):.6f}, {r.uniform(-180, 180):.6f} degrees",
    lambda r: "@app.route('/users/<int:id>') and @property, mention @anna or user@localhost",
    lambda r: "write to john.doe@example.com or curl http://127.0.0.1:8080 and 192.168.1.20, 10.0.0.1",
    lambda r: "git clone git@github.com:org/repo.git and scp data host:/tmp",
    lambda r: f"std::vector<int> v{{{', '.join(str(r.randint(0, 999)) for _ in range(12))}}}; a::b::c",
    lambda r: f"matrix [[{_number(r, 3)} {_number(r, 3)} {_number(r, 4)}] [1 0 0]]",
    lambda r: "sk-learn and hf_hub_download, the task-based skeleton, AKIA is a prefix",
)


def ours(regions: Sequence[str]) -> Find:
    """The recogniser of validation, with phone numbers of these regions."""
    recogniser = Recogniser(KINDS, tuple(regions))
    return lambda text: [(each.kind, each.start, each.end) for each in recogniser.find(text)]


def presidio() -> Find:
    """Pattern recognisers of presidio-analyzer, without a language model."""
    from presidio_analyzer import predefined_recognizers as known

    made = {
        "email": known.EmailRecognizer(),
        "phone": known.PhoneRecognizer(),
        "card": known.CreditCardRecognizer(),
        "iban": known.IbanRecognizer(),
        "ip": known.IpRecognizer(),
    }

    def find(text: str) -> list[Span]:
        spans = []
        for kind, each in made.items():
            results = each.analyze(text=text, entities=each.supported_entities, nlp_artifacts=None)
            spans += [(kind, result.start, result.end) for result in results or () if result.score >= 0.4]
        return spans

    return find


def scrub() -> Find:
    """Detectors of scrubadub, of the same kinds."""
    import scrubadub

    kinds = {"email": "email", "phone": "phone", "credit_card": "card", "credential": "secret"}
    scrubber = scrubadub.Scrubber(detector_list=[])
    for name in kinds:
        scrubber.add_detector(name)
    return lambda text: [(str(each.type), each.beg, each.end) for each in scrubber.iter_filth(text)]


def secrets() -> Find:
    """detect-secrets' plugins with a fixed form, and its addresses."""
    from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class

    left = {"HexHighEntropyString", "Base64HighEntropyString", "KeywordDetector"}
    plugins: list[Any] = [
        each() for each in get_mapping_from_secret_type_to_class().values() if each.__name__ not in left
    ]

    def find(text: str) -> list[Span]:
        spans = []
        for plugin in plugins:
            kind = "ip" if type(plugin).__name__ == "IPPublicDetector" else "secret"
            for value in plugin.analyze_string(text):
                start = text.find(value)
                spans.append((kind, start, start + len(value)))
        return spans

    return find


def measure(find: Find, made: Sequence[Sample]) -> dict[str, Any]:
    """Recall by kind (the whole value is covered), precision (finds that touch a value), and speed."""
    begin = time.process_time()
    found = [find(sample.text) for sample in made]
    seconds = time.process_time() - begin
    there, covered, touching, finds = Counter[str](), Counter[str](), 0, 0
    wrong: list[str] = []
    for sample, spans in zip(made, found, strict=True):
        value = sample.value
        if value is not None:
            there[value[0]] += 1
            covered[value[0]] += any(start <= value[1] and value[2] <= end for _, start, end in spans)
        for _, start, end in spans:
            finds += 1
            right = value is not None and start < value[2] and value[1] < end
            touching += right
            if not right:
                wrong.append(sample.text[start:end])
    characters = sum(len(sample.text) for sample in made)
    return {
        "recall": {kind: round(covered[kind] / count, 3) for kind, count in there.items()},
        "precision": round(touching / finds, 3) if finds else None,
        "finds": finds,
        "wrong": wrong[:12],
        "mega_characters_per_second": round(characters / seconds / 1e6, 2),
    }


CANDIDATES: dict[str, Callable[[], Find]] = {
    "ours, country codes alone": lambda: ours(()),
    "ours, US": lambda: ours(("US",)),
    "ours, US GB DE": lambda: ours(("US", "GB", "DE")),
    "presidio-analyzer": presidio,
    "scrubadub": scrub,
    "detect-secrets": secrets,
}


def main() -> None:
    """Measure every candidate and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    made = list(samples(arguments.rows, arguments.seed))
    results: dict[str, Any] = {}
    for name, make in CANDIDATES.items():
        try:
            results[name] = measure(make(), made)
        except ImportError as error:
            results[name] = {"not installed": str(error)}
        if not arguments.json:
            print(name, results[name])
    plain = [Sample(_FILLER * 4, None)] * arguments.rows
    results["texts without a digit, ours"] = measure(ours(("US",)), plain)["mega_characters_per_second"]
    if arguments.json:
        json.dump(results, sys.stdout, indent=2)
    else:
        print(results["texts without a digit, ours"])


if __name__ == "__main__":
    main()
