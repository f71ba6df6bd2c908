"""Differences of two texts in words: the edits that change a request, and their weight against a copy.

The unit is the bit: texts that differ by an edit of c bits are about 2^c times as likely to be two texts as one text
that was copied with an edit. The figures were set on planted duplicates and on sound sets
(`benchmarks/curation_precision.py`).

| edit of                                                    | bits     |
|------------------------------------------------------------|----------|
| punctuation after a word, case, spacing, courtesy          | 0        |
| an article, a filler, a hyphen, a word written twice       | 4        |
| a letter in a long word (a slip of the keyboard)           | 6        |
| a word                                                     | 16       |
| a number, operator, negation or date; code, paths, systems | infinite |

An instruction is the opening or closing sentence of the last turn of the user, beside more text. A change of a share
s of its words costs 1 + 48 s times as much, a slip in it and a change of a response 1 + 16 s times.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import lru_cache
from math import inf

from plumbline.data_contracts.records import Message

Words = tuple[str, ...]

LIGHT, SLIP, WORD = 4.0, 6.0, 16.0
INSTRUCTION_FACTOR, SLIP_FACTOR, RESPONSE_FACTOR = 48.0, 16.0, 16.0

_CHUNK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\s\u3040-\u30ff\u3400-\u9fff]+")
_QUOTES = "\"'\u2018\u2019\u201c\u201d\u201e\u00ab\u00bb"
_OPENING = _QUOTES + "\u00bf\u00a1"
_CLOSING = _QUOTES + ".,;:!?\u3001\u3002"
_EMPHASIS = re.compile(r"^\*+(?=\w)|(?<=\w)\*+$")
_DASHES = frozenset(("\u2013", "\u2014"))
_SENTENCE_ENDS = re.compile(r"(?<=[.!?:;\u3002])\s+|(?<=\u3002)|\n+")
_CODE = re.compile(r"\w\(|\w{2}[./:@]\w{2}|[_=\[\]{}<>\\|`@#]|;$|^[-/]\w")
_CODE_CLOSE, _CODE_REACH, _CODE_WORDS = 2, 12, 2  # words before and after an edit, and how many in the reach
_SIGN = re.compile(r"\d|[^\w'\u2019.,:;!?()\-\u2013\u2014/&\"*]|^-$|^!|-=|^-\d")
_HYPHENS = re.compile(r"['\u2019\u2013-]")
_SHORTEST_SLIP = 5  # letters; in shorter words one letter makes another word (boat, coat)


def _listed(words: str) -> frozenset[str]:
    return frozenset(words.split())


_ASKING = _listed("please pls plz kindly bitte")  # courtesy that may stand inside a sentence
_GREETINGS = "hi|hello|hey|greetings|good (?:morning|day|evening)|hallo|bonjour|hola|ciao"
_THANKS = (
    "(?:many )?thanks|thank you|thx|cheers|danke|merci|gracias|grazie|obrigado|regards|please|pls|plz|kindly|bitte"
)
_MORE = "(?: (?:so much|very much|a lot|in advance|there|all|everyone|again))*"
_GREETING = re.compile(rf"^(?i:(?:{_GREETINGS}|{_THANKS}){_MORE}(?:\s*[,.!]+\s*|$))+")
_THANKS_AFTER = re.compile(rf"(?:\s*[,\u2013\u2014-]\s*|\s(?=[A-Z]))(?i:(?:{_THANKS}){_MORE})[\s.!,]*$")
_PLAIN = re.compile(rf"\b(?:{_GREETINGS}|{_THANKS})\b|[.,;:!?]+(?=\s|$)")
_LIGHT = _listed("a an the of just so well then that oh um uh ok okay")
_DECISIVE = _listed(
    """no not never none nor without cannot neither nobody nothing nowhere
    zero one two three four five six seven eight nine ten eleven twelve fifteen twenty thirty forty fifty sixty seventy
    eighty ninety hundred thousand million billion half double twice once first second third fourth fifth last
    monday tuesday wednesday thursday friday saturday sunday
    january february march april may june july august september october november december"""
)


@dataclass(frozen=True, slots=True)
class Edit:
    """A run of words that stands in place of another, what it costs in bits, and whether it could change a meaning."""

    removed: Words
    added: Words
    cost: float
    telling: bool

    def __str__(self) -> str:
        return f"“{' '.join(self.removed) or '∅'}” → “{' '.join(self.added) or '∅'}”"


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a prompt as sentences of words, without courtesy; sentences of courtesy alone are left out."""

    role: str
    sentences: tuple[Words, ...]

    @property
    def words(self) -> Words:
        """All words of the turn."""
        return tuple(word for sentence in self.sentences for word in sentence)


Request = tuple[Turn, ...]


def asked(request: Request) -> tuple[tuple[str, Words], ...]:
    """Roles and words: equal for prompts that differ in case, spacing, punctuation or courtesy alone."""
    return tuple((turn.role, turn.words) for turn in request)


def request_of(prompt: Sequence[Message]) -> Request:
    """The request of a prompt, the system prompt and earlier turns included."""
    return tuple(
        Turn(message.role, tuple(filter(None, map(_without_courtesy, _SENTENCE_ENDS.split(text)))))
        for message in prompt
        for text in (unicodedata.normalize("NFKC", message.content),)
    )


def plain_request(prompt: str) -> str:
    """The canonical text of a prompt without courtesy and without punctuation after words: quick, and for clusters."""
    return " ".join(_PLAIN.sub(" ", prompt.casefold()).split())


def instructions(request: Request) -> dict[str, Words]:
    """Opening and closing sentence of the last turn of the user, where the prompt holds more than that sentence."""
    asking = _asking_turn(request)
    if asking is None or (len(request) == 1 and len(request[asking].sentences) < 2):
        return {}
    sentences = request[asking].sentences
    return {"opening": sentences[0], "closing": sentences[-1]} if sentences else {}


def request_edits(left: Request, right: Request) -> list[Edit] | None:
    """The edits between two requests; None if their turns differ in number or role."""
    if [turn.role for turn in left] != [turn.role for turn in right]:
        return None
    edits = []
    for place, (one, other) in enumerate(zip(left, right, strict=True)):
        if one.words == other.words:
            continue
        system = one.role == "system"
        spans = (_instruction_spans(left, place), _instruction_spans(right, place))
        edits += [
            _edit(one.words[a:b], other.words[c:d], inf if system else cost, _weight(cost, spans, (a, b), (c, d)))
            for (a, b), (c, d), cost in _changes(one.words, other.words)
        ]
    return edits


def response_edits(left: str, right: str) -> list[Edit]:
    """The edits between two responses."""
    one, other = spoken(left.casefold()), spoken(right.casefold())
    return [
        _edit(one[a:b], other[c:d], cost, 1.0 + RESPONSE_FACTOR * share)
        for (a, b), (c, d), cost in _changes(one, other)
        for share in (max((b - a) / max(len(one), 1), (d - c) / max(len(other), 1)),)
    ]


def spoken(text: str) -> Words:
    """The words of a text without the punctuation around them; signs inside a word or standing alone are kept."""
    return tuple(word for chunk in _CHUNK.findall(text) if (word := _bare(chunk)) and word not in _DASHES)


def common_ends(left: Sequence[str], right: Sequence[str]) -> tuple[int, int]:
    """The number of words that two texts share at their beginnings, and of the rest at their ends."""
    shorter = min(len(left), len(right))
    head = next((place for place in range(shorter) if left[place] != right[place]), shorter)
    rest = shorter - head
    return head, next((place for place in range(rest) if left[-1 - place] != right[-1 - place]), rest)


def _bare(chunk: str) -> str:
    chunk = _EMPHASIS.sub("", chunk.lstrip(_OPENING).rstrip(_CLOSING))
    if "(" in chunk[:1] and chunk.count("(") > chunk.count(")"):
        chunk = chunk[1:].lstrip(_OPENING)
    if ")" in chunk[-1:] and chunk.count(")") > chunk.count("("):
        chunk = chunk[:-1].rstrip(_CLOSING)
    return chunk[1:-1] if len(chunk) > 2 and chunk[0] == "(" and chunk[-1] == ")" else chunk


def _without_courtesy(sentence: str) -> Words:
    """The words of a sentence without courtesy: what a comma parts from it, thanks at its end, and "please" anywhere.

    "Say thanks." and "What is hello in French?" ask about the words, and keep them.
    """
    sentence = _THANKS_AFTER.sub("", _GREETING.sub("", sentence.strip()))
    return tuple(word for word in spoken(sentence.casefold()) if word not in _ASKING)


def _in_code(words: Words, start: int, end: int) -> bool:
    """True if a word close by looks like code, or several in a wider reach do."""

    def found(reach: int) -> int:
        return sum(_CODE.search(word) is not None for word in words[max(start - reach, 0) : end + reach])

    return found(_CODE_CLOSE) >= 1 or found(_CODE_REACH) >= _CODE_WORDS


def _asking_turn(request: Request) -> int | None:
    return next((place for place in reversed(range(len(request))) if request[place].role == "user"), None)


def _instruction_spans(request: Request, place: int) -> list[tuple[int, int]]:
    """Word ranges of the instructions within one turn."""
    if place != _asking_turn(request) or not instructions(request):
        return []
    sentences = request[place].sentences
    total = sum(map(len, sentences))
    return [(0, len(sentences[0])), (total - len(sentences[-1]), total)]


def _edit(removed: Words, added: Words, bits: float, factor: float) -> Edit:
    return Edit(removed, added, bits * factor, bits > LIGHT)


def _weight(
    bits: float,
    spans: tuple[list[tuple[int, int]], list[tuple[int, int]]],
    left: tuple[int, int],
    right: tuple[int, int],
) -> float:
    """1 outside the instructions; within one, more with the share of its words that the edit takes or brings."""
    shares = [0.0]
    for ranges, (start, end) in zip(spans, (left, right), strict=True):
        for low, high in ranges:
            held = min(end, high) - max(start, low)
            if held > 0:
                shares.append(held / (high - low))
    factor = INSTRUCTION_FACTOR if bits >= WORD else SLIP_FACTOR if bits > LIGHT else 0.0
    return 1.0 + factor * max(shares)


def _changes(left: Words, right: Words) -> list[tuple[tuple[int, int], tuple[int, int], float]]:
    """Word ranges that differ, with the bits of each before weights. Equal ends go first: edits are few."""
    head, tail = common_ends(left, right)
    middle = left[head : len(left) - tail], right[head : len(right) - tail]
    codes = SequenceMatcher(None, *middle, autojunk=False).get_opcodes()
    found = []
    for kind, a, b, c, d in codes:
        if kind != "equal":
            one, other = (a + head, b + head), (c + head, d + head)
            doubled = _doubles(left, *one) if c == d else a == b and _doubles(right, *other)
            code = not doubled and (_in_code(left, *one) or _in_code(right, *other))
            bits = inf if code else LIGHT if doubled else _cost(middle[0][a:b], middle[1][c:d])
            found.append((one, other, bits))
    return found


def _doubles(words: Words, start: int, end: int) -> bool:
    """True if the words repeat those before or after them."""
    size = end - start
    again = words[start:end] in (words[max(start - size, 0) : start], words[end : end + size])
    return again and not any(map(_is_decisive, words[start:end]))


def _cost(removed: Words, added: Words) -> float:
    if _joined(removed) == _joined(added):
        return LIGHT
    if any(map(_is_decisive, (*removed, *added))):
        return inf
    if len(removed) == len(added) == 1 and _is_slip(removed[0], added[0]):
        return SLIP
    return max(sum(LIGHT if word in _LIGHT else WORD for word in side) for side in (removed, added))


def _joined(words: Words) -> str:
    return _HYPHENS.sub("", "".join(words))


@lru_cache(maxsize=1 << 14)
def _is_decisive(word: str) -> bool:
    return word in _DECISIVE or word.endswith(("n't", "n\u2019t")) or bool(_SIGN.search(word) or _CODE.search(word))


def _is_slip(left: str, right: str) -> bool:
    """One letter more, fewer or other, or two neighbours exchanged, in a word of five letters or more."""
    if min(len(left), len(right)) < _SHORTEST_SLIP - 1 or max(len(left), len(right)) < _SHORTEST_SLIP:
        return False
    if abs(len(left) - len(right)) > 1:
        return False
    head, _ = common_ends(left, right)
    one, other = left[head:], right[head:]
    swapped = one[:2] == other[:2][::-1] and one[2:] == other[2:]
    return swapped or one[1:] == other[1:] or one[1:] == other or one == other[1:]
