import itertools
import math
import re
from collections import Counter, defaultdict
from random import Random

import pytest

from plumbline.data_contracts.records import Message
from plumbline.tasks.data.sample_world.requests import FAMILY_SHARES, TEMPLATES, Request, draw, draw_family, parse


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.name)
def test_parsing_recovers_template_and_slots(template):
    rng = Random(template.name)
    for _ in range(20):
        request = draw(template.family, rng)
        found = parse(request.prompt())
        assert (found.template, dict(found.slots)) == (request.template, dict(request.slots))


def test_template_names_and_texts_are_distinct():
    assert len({template.name for template in TEMPLATES}) == len(TEMPLATES)
    assert len({(template.system, template.user) for template in TEMPLATES}) == len(TEMPLATES)


def test_families_come_by_their_shares():
    """4,000 draws: within 4 standard deviations of each share."""
    rng = Random(3)
    counts = Counter(draw_family(rng) for _ in range(4000))
    for family, share in FAMILY_SHARES.items():
        assert abs(counts[family] / 4000 - share) < 4 * math.sqrt(share * (1 - share) / 4000)


def test_neighbours_meet_exactly_when_at_most_one_slot_differs():
    request = draw("facts", Random(1))
    slots = dict(request.slots)
    one, two = dict(slots), dict(slots)
    first, second = list(slots)[:2]
    one[first] = two[first] = "other"
    two[second] = "another"
    keys = set(request.neighbours())
    assert keys & set(Request(request.template, one).neighbours())
    assert not keys & set(Request(request.template, two).neighbours())


def _weighted_jaccard(one, other, idf):
    return sum(idf[s] for s in one & other) / sum(idf[s] for s in one | other)


def _shingles(text, size):
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + size]) for i in range(len(words) - size + 1)}


def _prompt(row):
    return " ".join(Message(**turn).content for turn in row["prompt"])


@pytest.mark.parametrize("size", [2, 3])
def test_template_trap(world, size):
    """Prompts of one template stay below the threshold of near duplicates; planted near duplicates above it.

    Naive exact measure: Jaccard of word shingles weighted by log(N / document frequency), all pairs of a template.
    """
    rows = world.clean_rows()
    repeats = world.planted["near_duplicate"]
    planted = [(_prompt(world.row(one["line"])), _prompt(world.row(one["of_line"]))) for one in repeats]
    texts = [_prompt(row) for row in rows]
    frequency = Counter(shingle for text in texts for shingle in _shingles(text, size))
    idf = defaultdict(lambda: math.log(len(texts)))  # of a shingle that no clean row has
    idf.update({shingle: math.log((len(texts) + 1) / count) for shingle, count in frequency.items()})
    by_template = defaultdict(list)
    for row, text in zip(rows, texts, strict=True):
        by_template[parse([Message(**turn) for turn in row["prompt"]]).template.name].append(_shingles(text, size))
    assert sum(len(group) > 5 for group in by_template.values()) > 20
    worst = max(
        _weighted_jaccard(a, b, idf) for group in by_template.values() for a, b in itertools.combinations(group, 2)
    )
    assert worst < 0.8
    assert min(_weighted_jaccard(_shingles(a, size), _shingles(b, size), idf) for a, b in planted) >= 0.8
