"""Sets of pairs for measuring curation: sound pairs whose prompts are near one another, and copies with an edit.

A sound set varies one thing that matters over passages of any length (`SOUND`); none of its pairs may go. `plant` adds
copies to any pairs, which should all be merged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from plumbline.data_contracts.records import Message, Origin, PreferencePair

NOUNS = tuple(
    [
        "gate",
        "ferry",
        "garden",
        "orchard",
        "bridge",
        "lantern",
        "kettle",
        "meadow",
        "harbor",
        "tower",
        "market",
        "river",
        "stable",
        "chapel",
        "mill",
        "cottage",
        "railway",
        "museum",
        "bakery",
        "library",
        "fountain",
        "quarry",
        "lighthouse",
        "vineyard",
        "workshop",
        "theatre",
        "tunnel",
        "canal",
        "windmill",
        "barn",
        "council",
        "teacher",
        "farmer",
        "captain",
        "painter",
        "neighbour",
        "doctor",
        "pilot",
        "gardener",
        "miller",
        "singer",
        "mayor",
        "widow",
        "student",
    ]
)
VERBS = tuple(
    [
        "repaired",
        "painted",
        "closed",
        "opened",
        "visited",
        "measured",
        "sold",
        "borrowed",
        "cleaned",
        "guarded",
        "described",
        "photographed",
        "inherited",
        "flooded",
        "restored",
        "defended",
        "rented",
        "surveyed",
        "lit",
        "crossed",
        "planned",
        "praised",
        "emptied",
        "moved",
        "rebuilt",
    ]
)
PLACES = tuple(
    """beside the church|near the station|under the old wall|behind the school|along the coast|in the upper valley|
    across the square|above the lake|before the storm|after the harvest|during the festival|until the evening|
    without any help|with great care|for the visitors|against all advice""".replace("\n", "").split("|")
)
COUNTRIES = tuple(
    ["Norway", "Sweden", "Peru", "Chile", "Kenya", "Ghana", "Nepal", "Laos", "Iceland", "Cuba", "Malta", "Japan"]
)
AUDIENCES = tuple(["child", "lawyer", "nurse", "sailor", "pilot", "baker", "teacher", "farmer", "judge", "student"])
TONES = tuple(["formal", "friendly", "angry", "cheerful", "dry", "poetic", "stern", "humble", "playful", "solemn"])
LANGUAGES = tuple(["French", "German", "Spanish", "Dutch", "Polish", "Turkish", "Finnish", "Greek", "Danish", "Czech"])
TOPICS = tuple(["bird", "boat", "fire", "road", "tree", "wall", "horse", "letter", "bell", "storm", "coin", "map"])


def sentence(rng: Random) -> str:
    """A sentence of nine to fifteen words."""
    words = f"the {rng.choice(NOUNS)} {rng.choice(VERBS)} the {rng.choice(NOUNS)} {rng.choice(PLACES).strip()}"
    more = f" and the {rng.choice(NOUNS)} {rng.choice(VERBS)} it" if rng.random() < 0.6 else ""
    return f"{words[0].upper()}{words[1:]}{more}."


def passage(rng: Random, words: int) -> str:
    """Sentences until there are that many words."""
    found: list[str] = []
    while sum(len(each.split()) for each in found) < words:
        found.append(sentence(rng))
    return " ".join(found)


def pair(name: str, prompt: str | Sequence[tuple[str, str]], chosen: str, rejected: str) -> PreferencePair:
    """A pair; the prompt is one turn, or turns of role and text."""
    turns = [("user", prompt)] if isinstance(prompt, str) else prompt
    messages = tuple(Message.model_validate({"role": role, "content": text}) for role, text in turns)
    origin = Origin(file="made", line=1)
    return PreferencePair(id=name, prompt=messages, chosen=chosen, rejected=rejected, source="made", origin=origin)


def _styles(rng: Random, text: str) -> tuple[str, str]:
    first = text.split(". ")[0].rstrip(".")
    plain = f"In short words: {first[0].lower()}{first[1:]}. {sentence(rng)}"
    return plain, f"In summary, pursuant to the foregoing, it is to be noted that {text[0].lower()}{text[1:]}"


def _either(rng: Random, sides: tuple[str, str]) -> tuple[str, str]:
    return sides if rng.random() < 0.5 else sides[::-1]


Maker = Callable[[Random, str, str, int], list[PreferencePair]]
"""A generator, the name and the passage, and how many variants: the pairs of one passage."""


def _last_words(template: str, values: Sequence[str]) -> Maker:
    """One instruction after the passage with a word that varies; two long responses that all variants share."""

    def make(rng: Random, name: str, text: str, variants: int) -> list[PreferencePair]:
        sides = _styles(rng, text)
        asked = [template.format(value) for value in rng.sample(values, min(variants, len(values)))]
        return [pair(f"{name}-{n}", f"{text}\n\n{one}", *_either(rng, sides)) for n, one in enumerate(asked)]

    return make


def _first_words(template: str, values: Sequence[str]) -> Maker:
    def make(rng: Random, name: str, text: str, variants: int) -> list[PreferencePair]:
        sides = _styles(rng, text)
        asked = [template.format(value) for value in rng.sample(values, min(variants, len(values)))]
        return [pair(f"{name}-{n}", f"{one} {text}", *_either(rng, sides)) for n, one in enumerate(asked)]

    return make


def _questions(answers: tuple[str, str]) -> Maker:
    """Questions on one passage whose answers are short."""

    def make(rng: Random, name: str, text: str, variants: int) -> list[PreferencePair]:
        kinds = ("Is this about a {}?", "Does the text mention any {}?", "Did somebody see the {}?", "Who sold the {}?")
        asked = sorted({rng.choice(kinds).format(rng.choice((*TOPICS, *NOUNS))) for _ in range(variants)})
        return [pair(f"{name}-{n}", f"{text} {one}", *_either(rng, answers)) for n, one in enumerate(asked)]

    return make


def _open_questions(rng: Random, name: str, text: str, variants: int) -> list[PreferencePair]:
    """Questions on one passage, answered with a sentence of it or by a stock answer."""
    told = text.split(". ")
    rows = []
    for n in range(variants):
        asked = f"{rng.choice(('Who', 'Why was it that someone'))} {rng.choice(VERBS)} the {rng.choice(NOUNS)}?"
        sides = (f"{rng.choice(told).rstrip('.')}.", "The text does not say anything about that.")
        rows.append(pair(f"{name}-{n}", f"{text}\n{asked}", *_either(rng, sides)))
    return rows


def _entities(rng: Random, name: str, text: str, variants: int) -> list[PreferencePair]:
    """A question about a country; the response names it, among words that are the same for all."""
    rows = []
    for n, where in enumerate(rng.sample(COUNTRIES, min(variants, len(COUNTRIES)))):
        good = f"To settle in {where} you first apply for a permit, then register with the town hall and find a doctor."
        bad = f"Why would anybody want to settle in {where}, stay where you are and do not ask me such things again."
        asked = f"{text} How do I prepare my papers if I want to move with my family and a dog to {where} next year?"
        rows.append(pair(f"{name}-{n}", asked, *_either(rng, (good, bad))))
    return rows


def _system(rng: Random, name: str, text: str, variants: int) -> list[PreferencePair]:
    sides = _styles(rng, text)
    roles = rng.sample(sorted({*AUDIENCES, *NOUNS[-10:]}), min(variants, 14))
    return [
        pair(
            f"{name}-{n}",
            [
                ("system", f"You answer the questions of a {role} in a small town, politely and briefly."),
                ("user", text),
            ],
            *_either(rng, sides),
        )
        for n, role in enumerate(roles)
    ]


def _numbers(rng: Random, name: str, text: str, variants: int) -> list[PreferencePair]:
    """A number, a unit or a day of the week varies."""
    sides = _styles(rng, text)
    values = [f"{rng.randint(2, 999)} {rng.choice(('km', 'miles', 'hours', 'kg'))}" for _ in range(variants)]
    values += ["5 km", "5 miles", "Monday", "Tuesday", "March", "April"][: max(variants - 2, 2)]
    asked = sorted(
        {f"Suppose the limit were {value}. What follows from that for the people in this text?" for value in values}
    )
    return [pair(f"{name}-{n}", f"{text} {one}", *_either(rng, sides)) for n, one in enumerate(asked)]


def _code(rng: Random, name: str, text: str, variants: int) -> list[PreferencePair]:
    """A function in which one line varies, and what it returns."""
    steps = (
        "total += item", "total -= item", "total = item", "total *= item", "seen.append(item)", "seen.extend(item)",
        "seen.insert(0, item)", "if not item: break", "if item: break", "return total", "return seen",
        "total = max(total, item)", "total = min(total, item)", "seen.remove(item)",
    )  # fmt: skip
    sides = (
        "It runs through the items once and returns what it gathered.",
        "It never ends, since nothing stops the loop.",
    )
    rows = []
    for n, step in enumerate(rng.sample(steps, min(variants, len(steps)))):
        start = "def gather(items):\n    total = 0\n    seen = []\n    for item in items:"
        body = f"{start}\n        {step}\n    return total, seen"
        rows.append(pair(f"{name}-{n}", f"{text}\n\n{body}\n\nWhat does this do?", *_either(rng, sides)))
    return rows


def _turns(rng: Random, name: str, text: str, variants: int) -> list[PreferencePair]:
    """A conversation whose last turn varies."""
    start = [("user", text), ("assistant", sentence(rng))]
    asked = sorted({f"And what about the {rng.choice((*NOUNS, *TOPICS))}?" for _ in range(variants)})
    sides = (f"{sentence(rng)} {sentence(rng)}", f"I would rather not talk about it, since {sentence(rng)}")
    return [pair(f"{name}-{n}", [*start, ("user", one)], *_either(rng, sides)) for n, one in enumerate(asked)]


def _annotators(rng: Random, name: str, text: str, variants: int) -> list[PreferencePair]:
    """One prompt, judged on other responses each time."""
    asked = f"{text}\n\nTell me more."
    return [pair(f"{name}-{n}", asked, passage(rng, 20), passage(rng, 20)) for n in range(variants)]


def _opposite(rng: Random, name: str, text: str, variants: int) -> list[PreferencePair]:
    """Instructions in pairs that want the opposite."""
    short, long = _styles(rng, text)
    asked = ("Summarise this text.", "Expand this text.", "Make it shorter.", "Make it longer.", "Say it briefly.")
    rows = [(one, (short, long) if n % 2 == 0 else (long, short)) for n, one in enumerate(asked[:variants])]
    rows[4:] = [("Say it briefly.", (short, long))] if variants > 4 else []
    return [pair(f"{name}-{n}", f"{text}\n\n{one}", *sides) for n, (one, sides) in enumerate(rows)]


SOUND: dict[str, Maker] = {
    "audience": _last_words("Sum this up for a {}.", AUDIENCES),
    "audience, long instruction": _last_words(
        "Please rewrite the passage above so that it is easy and pleasant to read for a {} who has little time.",
        AUDIENCES,
    ),
    "tone": _last_words("Rewrite this in a {} tone.", TONES),
    "tone first": _first_words("Rewrite the following in a {} tone:", TONES),
    "language": _first_words("Translate into {}:", LANGUAGES),
    "language last": _last_words("Answer in {}.", LANGUAGES),
    "yes or no": _questions(("Yes.", "No.")),
    "short answers": _questions(("The farmer did.", "Nobody knows.")),
    "open questions": _open_questions,
    "entities": _entities,
    "system prompt": _system,
    "numbers": _numbers,
    "code": _code,
    "last turn": _turns,
    "annotators": _annotators,
    "opposite instructions": _opposite,
}
"""What varies, and the pairs of one passage."""


def sound(kind: str, seed: int, passages: int = 12) -> list[PreferencePair]:
    """A sound set: passages of one sentence to 500 words, 2 to 50 variants of each where the kind has as many."""
    rng = Random(f"{kind} {seed}")
    rows = []
    for number in range(passages):
        text = passage(rng, rng.choice((8, 20, 60, 150, 500)))
        rows += SOUND[kind](rng, f"{kind}-{number}", text, rng.choice((2, 2, 3, 5, 8, 20, 50)))
    return rows


EDITS: dict[str, Callable[[Random, list[str]], list[str]]] = {
    "please": lambda rng, words: [*words, "Please!"],
    "thanks": lambda rng, words: [*words, "Thanks."],
    "greeting": lambda rng, words: ["Hello,", *words],
    "mark": lambda rng, words: [*words[:-1], words[-1].rstrip(".?!") + " !"],
    "case": lambda rng, words: [word.upper() for word in words],
    "slip": lambda rng, words: _at(words, _longest(rng, words), _slip),
    "doubled": lambda rng, words: _at(words, rng.randrange(len(words)), lambda word: f"{word} {word}"),
    "word": lambda rng, words: _at(words, _longest(rng, words), lambda word: rng.choice(NOUNS)),
    "article": lambda rng, words: _at(words, rng.randrange(len(words)), lambda word: f"just {word}"),
}
"""Edits of a prompt that a copy has."""


def plant(
    pairs: Sequence[PreferencePair], seed: int, share: float = 0.05, fewest_words: int = 12
) -> list[tuple[str, PreferencePair]]:
    """Copies of a share of the pairs, each with an edit of its last turn, and the kind of edit.

    Prompts and responses of fewer words are left alone: an edit of them makes another text.
    """
    rng = Random(f"plant {seed}")
    fit = [
        each
        for each in pairs
        if min(len(text.split()) for text in (each.prompt[-1].content, each.chosen, each.rejected)) >= fewest_words
    ]
    copies = []
    for number, each in enumerate(rng.sample(fit, min(len(fit), max(1, int(share * len(pairs)))))):
        kind = rng.choice(sorted(EDITS))
        last = each.prompt[-1]
        text = " ".join(EDITS[kind](rng, last.content.split()))
        turns = (*each.prompt[:-1], last.model_copy(update={"content": text}))
        said = f"{each.rejected} " if rng.random() < 0.5 else each.rejected
        copies.append(
            (kind, each.model_copy(update={"id": f"{each.id} copy {number}", "prompt": turns, "rejected": said}))
        )
    return copies


def _at(words: list[str], place: int, edit: Callable[[str], str]) -> list[str]:
    return [*words[:place], edit(words[place]), *words[place + 1 :]]


def _longest(rng: Random, words: list[str]) -> int:
    plain = [place for place, word in enumerate(words) if word.isalpha() and len(word) > 4]
    return rng.choice(plain) if plain else 0


def _slip(word: str) -> str:
    middle = len(word) // 2
    return word[:middle] + word[middle + 1 :] if len(word) > 4 else word
