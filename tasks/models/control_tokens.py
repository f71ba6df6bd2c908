"""Text stays text: control tokens come from the chat template alone, however a message or a completion is spelled.

A tokenizer reads `</s>`, `<|system|>` or `<|im_end|>` as control tokens wherever they stand. Control tokens here are
the special tokens, and those added to the vocabulary that look like marks (`<|…|>`, `[…]`) or that the template
writes. Added words and runs of white space are vocabulary.

Conversations that spell none, which is nearly all, are encoded as ever (`chat`). The others take the careful way:

1. A mark, a private character that occurs in no content, goes into each control token that a content spells. The
   template then renders it like any other text, trimmed or quoted or in capitals.
2. The marks are taken out again. Each control token that the tokenizer finds around the place of a mark is content;
   the others are the template's, and are put down under secret names.
3. A twin of the tokenizer, which knows control tokens under those names only, encodes the whole in one call. What is
   content are ordinary pieces, and all the rest is as the tokenizer itself would have it: same merges, same spaces.

Tokenizers without a Rust backend have no twin: each text is cut at its marks, and the parts are encoded apart.

A template may read marks of its own out of an assistant's content, as those for reasoning models read `</think>`. Such
tokens, if they are not special ones, are left to it in assistant turns: they are where the template writes them.

Not covered: templates that write roles as plain text. Nothing tells a "User:" of theirs from one in a content.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any

from plumbline.data_contracts.errors import ModelError
from plumbline.data_contracts.records import Message

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

Render = Callable[[Sequence[Message]], str]
_PRIVATE = range(0xE000, 0xF900)


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> ControlTokens:
    """The control tokens of a tokenizer and its chat template, as both are now."""
    added = tuple(
        sorted((token.content, number, token.special) for number, token in tokenizer.added_tokens_decoder.items())
    )
    return _control_tokens(tokenizer, added, str(tokenizer.chat_template))


@lru_cache(maxsize=16)
def _control_tokens(
    tokenizer: PreTrainedTokenizerBase, added: tuple[tuple[str, int, bool], ...], template: str
) -> ControlTokens:
    special_ids = set(tokenizer.all_special_ids)
    found = {
        text: number
        for text, number, special in added
        if text and (special or number in special_ids or _is_mark(text, template))
    }
    plain = frozenset(text for text, number, special in added if not special and number not in special_ids)
    return ControlTokens(tokenizer, found, plain & found.keys())


def _is_mark(text: str, template: str) -> bool:
    """True if an added token that is not special serves as a mark: by its form, or because the template writes it."""
    if not any(character.isalnum() for character in text) or text.isalnum():
        return False
    return (_is_sign(text[0]) and _is_sign(text[-1])) or text in template


def _is_sign(character: str) -> bool:
    return not (character.isalnum() or character.isspace() or character == "▁")


@dataclass(frozen=True, eq=False)
class ControlTokens:
    """`ids` by spelling; `plain` are those that the tokenizer does not call special."""

    tokenizer: PreTrainedTokenizerBase
    ids: dict[str, int]
    plain: frozenset[str]
    _kept: dict[str, frozenset[str]] = field(default_factory=dict, repr=False)

    def spelled(self, content: str) -> bool:
        """True if a content spells a control token, or its beginning or end at its border; what is near is spelled."""
        if self._search.search(content) or self._opening.match(content):
            return True
        if self._normalised is None:
            return False
        normalise, search = self._normalised
        return bool(search.search(normalise(content)))

    def named(self, contents: Iterable[str]) -> set[str]:
        """The control tokens that contents spell in full."""
        found: set[str] = set()
        for content in contents:
            if self.spelled(content):
                found.update(self._at(content, start) for start in self._starts(content))
                found.update(text for _, _, text in self._normalised_spans(content))
        return found

    def encode(self, messages: Sequence[Message], render: Render) -> list[int]:
        """Token ids of a conversation that spells control tokens, as `render` writes it."""
        mark = _unused_character(message.content for message in messages)
        text, places = _without(mark, self._render(messages, render, mark))
        if self._twins is None:
            return self._in_parts(text, places)
        reader, twin, aliases = self._twins
        pieces: list[str] = []
        done = 0
        for start, stop, number in self._found(reader, text):
            if not _holds_mark(start, stop, text, places):
                pieces += [text[done:start], aliases[number]]
                done = stop
        ids: list[int] = twin.encode("".join([*pieces, text[done:]]), add_special_tokens=False).ids
        return ids

    # the marks

    def _render(self, messages: Sequence[Message], render: Render, mark: str) -> str:
        """The conversation as text, a mark in each control token that is content."""
        spoken = any(token in each.content for each in messages if each.role == "assistant" for token in self.plain)
        left = self._read_by_template(render) if spoken else frozenset()
        return _unescaped(render(self._marked(messages, mark, left)), mark)

    def _marked(self, messages: Sequence[Message], mark: str, left: frozenset[str]) -> list[Message]:
        """Messages with marks; tokens in `left` get none in assistant turns."""
        marked = []
        for message in messages:
            places = self._places(message.content, left if message.role == "assistant" else frozenset())
            marked.append(Message(role=message.role, content=_with(mark, message.content, places)))
        return marked

    def _read_by_template(self, render: Render) -> frozenset[str]:
        """Tokens, not special ones, that the template reads out of an assistant's content, found by probes.

        A token is read if the template writes another text where it sees it than where a mark hides it. One of a pair
        (`<think>`) may be read only where the other is.
        """
        if "read" not in self._kept:
            quoted = sorted(token for token in self.plain if token in str(self.tokenizer.chat_template))
            found: frozenset[str] = frozenset()
            for first, second in product(quoted, repeat=2):
                found |= self._read_of_probe(f" {first} alpha {second} omega", {first, second}, render)
            self._kept["read"] = found
        return self._kept["read"]

    def _read_of_probe(self, content: str, tokens: set[str], render: Render) -> frozenset[str]:
        mark, read = chr(_PRIVATE[0]), frozenset[str]()
        hello, probe = Message(role="user", content="Hello"), Message(role="assistant", content=content)

        def written(left: frozenset[str]) -> list[str]:
            talks = (hello, probe), (hello, probe, hello)
            return [render(self._marked(talk, mark, left)).replace(mark, "") for talk in talks]

        try:
            while True:
                now = written(read)
                token = next((each for each in sorted(tokens - read) if written(read | {each}) != now), None)
                if token is None:
                    return read
                read |= {token}
        except ModelError:  # the template takes no such conversation, so nothing is known to be read
            return frozenset()

    def _places(self, content: str, left: frozenset[str]) -> list[int]:
        """Places of marks: behind the first character of each spelling, before it if it has but one; at borders."""
        places = {
            start + (len(text) > 1) for start in self._starts(content) if (text := self._at(content, start)) not in left
        }
        places.update(
            start + (stop - start > 1) for start, stop, text in self._normalised_spans(content) if text not in left
        )
        for edge in (self._opening.match(content), self._closing.search(content)):
            if edge is not None:
                start, stop = edge.span(1)
                places.add(start + 1 if edge.re is self._closing else stop - 1)
        return sorted(places)

    def _starts(self, content: str) -> Iterator[int]:
        return (found.start() for found in self._everywhere.finditer(content))

    def _at(self, content: str, start: int) -> str:
        return next(text for text in self._longest_first if content.startswith(text, start))

    def _normalised_spans(self, content: str) -> list[tuple[int, int, str]]:
        """Spellings that only the tokenizer's normaliser makes control tokens, without their outer white space."""
        if self._normalised is None or self._twins is None:
            return []
        spans = []
        for start, stop, number in self._found(self._twins[0], content):
            inner = content[start:stop]
            first = start + len(inner) - len(inner.lstrip())
            last = max(first + 1, start + len(inner.rstrip()))
            spans.append((first, last, self._texts[number]))
        return spans

    # what is looked for

    @cached_property
    def _texts(self) -> dict[int, str]:
        return {number: text for text, number in self.ids.items()}

    @cached_property
    def _longest_first(self) -> list[str]:
        return sorted(self.ids, key=lambda text: (-len(text), text))

    @cached_property
    def _everywhere(self) -> re.Pattern[str]:
        """Every place where a control token begins, those inside of others included."""
        return re.compile(f"(?={_any_of(self._longest_first)})")

    @cached_property
    def _search(self) -> re.Pattern[str]:
        return re.compile(f"{_any_of(self._longest_first)}|{self._closing.pattern}")

    @cached_property
    def _opening(self) -> re.Pattern[str]:
        """The end of a control token with which a content begins: a template might write the rest before it."""
        ends = {text[cut:] for text in self._bracketed for cut in range(1, len(text))}
        return re.compile(rf"\s*({_any_of(ends)})")

    @cached_property
    def _closing(self) -> re.Pattern[str]:
        begins = {text[:cut] for text in self._bracketed for cut in range(1, len(text))}
        return re.compile(rf"({_any_of(begins)})\s*\Z")

    @cached_property
    def _bracketed(self) -> list[str]:
        """Those between signs: of a token that begins with a letter, every other content would hold a part."""
        return [text for text in self.ids if _is_sign(text[0]) and _is_sign(text[-1])]

    @cached_property
    def _normalised(self) -> tuple[Callable[[str], str], re.Pattern[str]] | None:
        """The tokenizer's normaliser and what to look for behind it, where control tokens are looked for there."""
        normaliser = getattr(getattr(self.tokenizer, "backend_tokenizer", None), "normalizer", None)
        added = self.tokenizer.added_tokens_decoder
        behind = [text for text, number in self.ids.items() if added[number].normalized]
        if normaliser is None or not behind:
            return None
        return normaliser.normalize_str, re.compile(_any_of({normaliser.normalize_str(text) for text in behind}))

    # encoding

    def _found(self, reader: Tokenizer, text: str) -> Iterator[tuple[int, int, int]]:
        """Start, stop and id of each control token that the tokenizer reads in a text; an unknown text is none."""
        read = reader.encode(text, add_special_tokens=False)
        unknown = self.tokenizer.unk_token_id
        for number, (start, stop) in zip(read.ids, read.offsets, strict=True):
            if number in self._texts and (number != unknown or text[start:stop].strip() == self._texts[number]):
                yield start, stop, number

    @cached_property
    def _twins(self) -> tuple[Tokenizer, Tokenizer, dict[int, str]] | None:
        """The backend without padding and cutting, its twin, and the secret name of each id; None without a backend."""
        from tokenizers import Tokenizer

        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            return None
        described = json.loads(backend.to_str()) | dict.fromkeys(("truncation", "padding", "post_processor"))
        reader = Tokenizer.from_str(json.dumps(described))
        names = {text: secrets.token_hex(16) for text in self.ids}
        for token in described["added_tokens"]:
            token["single_word"] = token["single_word"] and token["content"] not in names
            token["content"] = names.get(token["content"], token["content"])
        _rename(described["model"], names)
        twin = Tokenizer.from_str(json.dumps(described))
        wrong = [text for text, name in names.items() if twin.token_to_id(name) != self.ids[text]]
        if wrong:
            raise ModelError(
                f"Expected a tokenizer whose tokens keep their ids under other names, found {len(wrong)} that do not "
                f"({wrong[:3]}), so text that spells them could not be distinguished from the template's own. Save the "
                "tokenizer anew with a present version of transformers."
            )
        return reader, twin, {self.ids[text]: name for text, name in names.items()}

    def _in_parts(self, text: str, places: Sequence[int]) -> list[int]:
        cuts = [0, *places, len(text)]
        parts = [text[start:stop] for start, stop in pairwise(cuts) if stop > start]
        ids: list[list[int]] = self.tokenizer(parts, add_special_tokens=False)["input_ids"] if parts else []
        return [number for part in ids for number in part]


def _rename(model: dict[str, Any], names: dict[str, str]) -> None:
    """Give pieces of a tokenizer's model other names; merges that make them are left out."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(piece, piece): number for piece, number in vocabulary.items()}
    else:
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocabulary]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        model["merges"] = [merge for merge in model["merges"] if not _touches(merge, names)]


def _touches(merge: str | list[str], names: dict[str, str]) -> bool:
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left in names or right in names or left + right in names


def _any_of(texts: Iterable[str]) -> str:
    ordered = sorted(texts, key=lambda text: (-len(text), text))
    return "(?:" + "|".join(map(re.escape, ordered)) + ")" if ordered else "(?!)"


def _unused_character(contents: Iterable[str]) -> str:
    used = set("".join(contents))
    return next(chr(number) for number in _PRIVATE if chr(number) not in used)


def _with(mark: str, content: str, places: Sequence[int]) -> str:
    cuts = [0, *places, len(content)]
    return mark.join(content[start:stop] for start, stop in pairwise(cuts))


def _without(mark: str, text: str) -> tuple[str, list[int]]:
    """The text without marks, and where they were in it."""
    parts = text.split(mark)
    places, at = [], 0
    for part in parts[:-1]:
        at += len(part)
        places.append(at)
    return "".join(parts), places


def _unescaped(text: str, mark: str) -> str:
    """Marks that a template wrote as JSON escapes, as themselves."""
    return re.sub(rf"\\u{ord(mark):04x}", mark, text, flags=re.IGNORECASE)


def _holds_mark(start: int, stop: int, text: str, places: Sequence[int]) -> bool:
    if len(text[start:stop].strip()) <= 1:
        return any(start <= place < stop for place in places)
    return any(start < place < stop for place in places)
