"""Step 1: labels that leaked into the texts ("Response A is better because …", "[chosen]").

A leak that stands apart (a tag, a prefix, a whole sentence) is cut and the pair keeps its id; a leak
inside a sentence that says something else, or one that leaves nothing behind, sets the pair aside.

The patterns are conservative: a word like "preferred" or "chosen" alone is never a leak. What a
prompt itself talks about (options A and B, two answers to compare) is no leak in the response.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

from plumbline.data_contracts.records import Feedback, Message, PreferencePair, Quarantined, UnpairedResponse
from plumbline.tasks.data.curation.leak_words import could_leak, plain_words
from plumbline.tasks.data.curation.verdicts import CurationOutcome, Item, quarantine, shorten

REASON = "leaked_label"

_NOUN = r"(?:response|answer|completion|output|reply|assistant)"
_SLOT = r"(?-i:[AB12]|[Oo]ne|[Tt]wo)\b"
_ADVERB = r"(?:(?:clearly|strongly|slightly|much|far|significantly|definitely|obviously|generally|overall)\s+)*"
_BE = r"(?:is|was|wins|seems|should\s+be|has\s+been|got|gets)"
_RATED = r"(?:(?:rated|ranked|labell?ed|marked|judged|considered)\s+)?(?:as\s+)?(?:the\s+)?"
_VERDICT = r"(?:preferred|better|best|worse|worst|chosen|rejected|dispreferred|superior|inferior|winner|loser)\b"
_STATE = r"(?:chosen|rejected|preferred|dispreferred|non-?preferred)"
_TAG = rf"(?:label\s*[:=]\s*)?{_STATE}(?:\s+{_NOUN})?"
_LETTERS_IN_PROMPT = r"\b\w+\s+(?-i:[AB])\b|\b(?-i:[AB])\s*[).:]|\b(?-i:[AB])\s+(?:or|and|vs)\b"
_COMPARES = rf"\b{_NOUN}s?\s+(?-i:[AB12])\b|\b(?:which|first|second|both|two)\b[^.?!\n]{{0,40}}\b{_NOUN}s?\b"
_NOUNS = ("response", "answer", "completion", "output", "reply", "assistant")
_STATES = ("chosen", "rejected", "preferred")
_THE_STATES = tuple(f"the {state}" for state in (*_STATES, "dispreferred", "non", "winning", "losing"))
_ASKS_LABEL = r"\b(?:label|preference|preferred|winner|verdict|judge?ment)\b"


@dataclass(frozen=True, slots=True)
class Pattern:
    """One way in which a label leaks.

    `cut`: `match` cuts what the expression matches; `sentence` cuts the sentence that holds it, and
    cannot where the sentence says something else first; `opening` is as `sentence`, and no leak elsewhere.
    `unless_prompt`: no leak in a response when the prompt matches this. `needs`: what a match holds, one text of each
    group, in lower case with single spaces: what lacks it is passed without a search.
    """

    name: str
    regex: re.Pattern[str]
    cut: Literal["match", "sentence", "opening"]
    needs: tuple[tuple[str, ...], ...]
    unless_prompt: re.Pattern[str] | None = None


def _pattern(
    name: str,
    regex: str,
    cut: Literal["match", "sentence", "opening"],
    needs: tuple[tuple[str, ...], ...],
    unless_prompt: str | None = None,
) -> Pattern:
    guard = re.compile(unless_prompt, re.IGNORECASE) if unless_prompt else None
    return Pattern(name, re.compile(regex, re.IGNORECASE), cut, needs, guard)


PATTERNS: tuple[Pattern, ...] = (
    _pattern("bracket_tag", rf"\s*(?:\[\s*/?{_TAG}\s*\]|<\s*/?{_TAG}\s*>)[ \t]*:?", "match", (("[", "<"), _STATES)),
    _pattern(
        "annotator_note",
        r"\s*[\[(]\s*(?:annotator|labell?er|rater|label)\s*[:=]"
        r"[^\])\n]*\b(?:better|worse|preferred|chosen|rejected)\b[^\])\n]*[\])]",
        "match",
        (("[", "("), ("annotator", "label", "rater"), (":", "=")),
    ),
    _pattern(
        "parenthesis_tag",
        rf"\A\s*\(\s*{_TAG}\s*\)\s*:?|\s*\(\s*{_TAG}\s*\)[\s.]*\Z",
        "match",
        (("(",), _STATES),
    ),
    _pattern("label_prefix", rf"\A\s*\**{_STATE}(?:\s+{_NOUN})?\**\s*:\**(?=\s|\Z)", "match", ((":",), _STATES)),
    _pattern(
        "preferred_prefix",
        rf"\A\s*(?:(?:here|this)\s+is\s+)?the\s+(?:{_STATE}|winning|losing)\s+{_NOUN}(?:\s+is)?\s*:",
        "match",
        ((":",), _THE_STATES),
    ),
    _pattern(
        "label_suffix",
        rf"(?:\A|\s+)[\[(]?\b(?:human\s+)?(?:label|preference|verdict|winner)\s*[:=]\s*"
        rf"(?:{_STATE}|(?:{_NOUN}\s+)?(?-i:[AB]))[\])]?[.\s]*\Z",
        "match",
        (("label", "preference", "verdict", "winner"), (":", "=")),
        _ASKS_LABEL,
    ),
    _pattern(
        "order_mark",
        r"(?:\A|(?<=\n))\s*(?-i:A\s*(?:>+|≻)\s*B|B\s*(?:>+|≻)\s*A)[ \t]*(?:\Z|(?=\n))",
        "match",
        (("a>", "a >", "a≻", "a ≻", "b>", "b >", "b≻", "b ≻"),),
    ),
    _pattern(
        "letter_verdict",
        rf"\b(?-i:[AB])\s+(?:is|was)\s+{_ADVERB}(?:(?:the\s+)?(?:preferred|chosen|rejected|dispreferred)\b"
        r"|(?:better|worse)\s+(?:than\s+(?-i:[AB])\b|because\b))",
        "opening",
        (("a is", "a was", "b is", "b was"), ("better", "worse", *_STATES)),
        _LETTERS_IN_PROMPT,
    ),
    _pattern(
        "response_verdict",
        rf"\b{_NOUN}\s+{_SLOT}\s+{_BE}\s+{_ADVERB}{_RATED}{_VERDICT}",
        "sentence",
        (_NOUNS, ("better", "best", "wors", "superior", "inferior", "winner", "loser", *_STATES)),
        _COMPARES,
    ),
    _pattern(
        "ordinal_verdict",
        rf"\bthe\s+(?:first|second|former|latter)\s+{_NOUN}\s+{_BE}\s+{_ADVERB}{_RATED}"
        r"(?:preferred|better|worse|chosen|rejected)\b",
        "sentence",
        (("the first ", "the second ", "the former ", "the latter "), _NOUNS),
        _COMPARES,
    ),
    _pattern(
        "preferred_is",
        rf"\bthe\s+(?:{_STATE}|winning|losing)\s+{_NOUN}\s+(?:is|was)\b",
        "sentence",
        (_THE_STATES, _NOUNS),
        _COMPARES,
    ),
    _pattern(
        "this_verdict",
        rf"\bthis\s+{_NOUN}\s+(?:is|was|has\s+been|should\s+be)\s+{_ADVERB}"
        rf"(?:(?:the\s+)?(?:preferred|dispreferred|rejected|chosen)\b(?!\s+(?:to|name|pronoun))"
        r"|(?:rated|ranked|labell?ed|marked)\s+(?:higher|lower|better|worse|as\s+(?:chosen|rejected|preferred)))",
        "sentence",
        (tuple(f"this {noun}" for noun in _NOUNS), ("rated", "ranked", "label", "marked", *_STATES)),
    ),
    _pattern(
        "comparison",
        rf"\b(?:(?:it|this(?:\s+one)?|that)\s+(?:is|was)\s+{_ADVERB})?(?:better|worse)\s+than\s+(?:the\s+other\s+{_NOUN}\b|{_NOUN}\s+{_SLOT})",
        "sentence",
        (("better than", "worse than"), _NOUNS),
        _COMPARES,
    ),
    _pattern(
        "annotator_choice",
        r"\b(?:annotators?|labell?ers?|raters?|crowd\s?workers?)\s+(?:\w+ly\s+)?"
        r"(?:preferred|chose|rejected|favou?red|picked|selected|rated)\s+"
        rf"(?:this|it\b|the\s+(?:first|second|other)|{_NOUN}\b|(?-i:[AB])\b)",
        "sentence",
        (("annotator", "labeler", "labeller", "rater", "crowd"),),
    ),
    _pattern(
        "stated_choice",
        rf"\bI\s+(?:would\s+)?(?:prefer|preferred|chose|choose|pick|picked)\s+{_NOUN}\s+{_SLOT}",
        "sentence",
        (("i prefer", "i chose", "i choose", "i pick", "i would "), _NOUNS),
        _COMPARES,
    ),
)

_SENTENCE_START = re.compile(r"[.!?][\"'”\u2019)\]]*\s+|[}\])\"”]\s+(?=[A-Z])|\n")
_SENTENCE_END = re.compile(r"[.!?]+[\"'”\u2019)\]*]*(?=\s|\Z)|(?=\n)|\Z")
_LEAD = re.compile(
    r"\W*(?:(?:note(?:\s+that)?|overall|therefore|thus|hence|so|clearly|also|and|but|the|human|most|all"
    r"|i\s+(?:think|believe|feel)(?:\s+that)?|in\s+my\s+opinion|in\s+conclusion|this\s+is|it\s+is|because)\b\W*)*",
    re.IGNORECASE,
)
_WORD = re.compile(r"\w")


class _Inseparable(Exception):
    def __init__(self, name: str, field: str, text: str) -> None:
        super().__init__(name)
        self.name, self.field, self.text = name, field, text


def clean_leaks(items: Sequence[Item]) -> CurationOutcome:
    """Cut the leaks of each item, or set it aside as `leaked_label`. A second call changes nothing."""
    outcome = CurationOutcome([])
    for item in items:
        cleaned = clean_pair(item.pair)
        if isinstance(cleaned, Quarantined):
            outcome.quarantined.append(cleaned)
            continue
        item.pair, cuts = cleaned
        item.cleaned += cuts
        outcome.kept.append(item)
    return outcome


def clean_response(record: UnpairedResponse) -> UnpairedResponse | Quarantined:
    """A single response with its leaks cut (metadata `cleaned` names them), or set aside as `leaked_label`."""
    cuts: list[str] = []
    try:
        prompt, (response,) = _clean_texts(record.prompt, {"response": record.response}, cuts)
    except _Inseparable as leak:
        return _inseparable(record, leak)
    if not cuts:
        return record
    told = record.metadata | {"cleaned": [*record.metadata.get("cleaned", []), *cuts]}
    return record.model_copy(update={"prompt": prompt, "response": response, "metadata": told})


def find_leak(text: str, prompt: str = "") -> tuple[str, int, int] | None:
    """The first leak in a text: pattern name and the span to cut; a span of (-1, -1) cannot be cut alone."""
    if not could_leak(text):
        return None
    plain = plain_words(text)
    for pattern in PATTERNS:
        if not all(any(part in plain for part in group) for group in pattern.needs):
            continue
        if pattern.unless_prompt is not None and pattern.unless_prompt.search(prompt):
            continue
        for match in pattern.regex.finditer(text):
            if pattern.cut == "match":
                return pattern.name, *match.span()
            start, end = _sentence(text, match.start(), match.end())
            if _LEAD.fullmatch(text, start, match.start()):
                return pattern.name, start, end
            if pattern.cut == "sentence":
                return pattern.name, -1, -1
    return None


def _sentence(text: str, start: int, end: int) -> tuple[int, int]:
    """The span of the sentence around [start, end)."""
    ends = (match.end() for match in _SENTENCE_START.finditer(text))
    first = max(takewhile(lambda place: place <= start, ends), default=0)
    close = _SENTENCE_END.search(text, end)
    return first, close.end() if close else len(text)


def clean_pair(pair: PreferencePair) -> tuple[PreferencePair, tuple[str, ...]] | Quarantined:
    """A pair with its leaks cut, and the cuts; or set aside as `leaked_label`."""
    if not could_leak("\n".join((pair.chosen, pair.rejected, *(m.content for m in pair.prompt)))):
        return pair, ()
    cuts: list[str] = []
    try:
        prompt, (chosen, rejected) = _clean_texts(pair.prompt, {"chosen": pair.chosen, "rejected": pair.rejected}, cuts)
    except _Inseparable as leak:
        return _inseparable(pair, leak)
    if not cuts:
        return pair, ()
    if chosen == rejected:
        return quarantine(
            pair, REASON, field="chosen", expected="responses that differ once the leaked label is cut", found=chosen
        )
    return pair.model_copy(update={"prompt": prompt, "chosen": chosen, "rejected": rejected}), tuple(cuts)


def _clean_texts(
    turns: Sequence[Message], responses: Mapping[str, str], cuts: list[str]
) -> tuple[tuple[Message, ...], list[str]]:
    """A prompt and the responses to it without leaks; each cut is added to `cuts`."""
    prompt = tuple(
        message.model_copy(update={"content": _clean_text(message.content, "", f"prompt[{turn}]", cuts)})
        for turn, message in enumerate(turns)
    )
    context = "\n".join(message.content for message in prompt)
    return prompt, [_clean_text(text, context, name, cuts) for name, text in responses.items()]


def _inseparable(record: Feedback, leak: _Inseparable) -> Quarantined:
    return quarantine(
        record,
        REASON,
        field=leak.field,
        expected="text that does not tell which response was preferred",
        found=f"{leak.name}, which cannot be cut alone: {leak.text}",
    )


def _clean_text(text: str, prompt: str, field: str, cuts: list[str]) -> str:
    while (leak := find_leak(text, prompt)) is not None:
        name, start, end = leak
        if start < 0:
            raise _Inseparable(name, field, text)
        cuts.append(f"{field}: {name}: {shorten(text[start:end].strip())}")
        left, right = text[:start].rstrip(" \t"), text[end:].lstrip(" \t")
        joint = " " if left and right and not left.endswith("\n") and not right.startswith("\n") else ""
        text = (left + joint + right).strip()
        if not _WORD.search(text):
            raise _Inseparable(name, field, cuts[-1])
    return text
