from random import Random
from statistics import mean

import pytest

from plumbline.tasks.data.sample_world.completions import HABITS, Habits, pick_writer, write
from plumbline.tasks.data.sample_world.gold import gold_reward, is_refusal
from plumbline.tasks.data.sample_world.requests import FAMILY_SHARES, TEMPLATES, draw
from plumbline.tasks.params.sample_world import SampleWorldParams

FLAWLESS = Habits(
    right=1, courteous=1, sentence=1, hedging=0, padded=0, right_refusal=1, over_refusal=0
)  # fmt: skip


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.name)
def test_a_flawless_writer_reaches_the_best_gold(template, monkeypatch):
    """Right and courteous is 1.3; a tool call knows no courtesy: 1.0. So every template's own answer is right."""
    monkeypatch.setitem(HABITS, "careful", FLAWLESS)
    rng = Random(template.name)
    for _ in range(60):
        request = draw(template.family, rng)
        response = write(request, "careful", rng)
        assert gold_reward(request.prompt(), response) == pytest.approx(1.0 if template.family == "tool" else 1.3)
        assert is_refusal(response) == (template.family == "harmful")


@pytest.mark.parametrize("family", sorted(FAMILY_SHARES))
def test_writers_differ_in_quality(family):
    """400 responses a writer: each step from careless to careful is worth at least 0.1 gold on average."""
    golds = {}
    for writer in HABITS:
        rng = Random(f"{family}/{writer}")
        requests = [draw(family, rng) for _ in range(400)]
        golds[writer] = mean(gold_reward(request.prompt(), write(request, writer, rng)) for request in requests)
    assert golds["careful"] - 0.1 > golds["average"] > golds["careless"] + 0.1


def test_writers_come_by_their_shares():
    params = SampleWorldParams(careful_share=1.0, careless_share=0.0)
    assert {pick_writer(Random(n), params) for n in range(50)} == {"careful"}
    params = SampleWorldParams(careful_share=0.0, careless_share=1.0)
    assert {pick_writer(Random(n), params) for n in range(50)} == {"careless"}
    rng, params = Random(1), SampleWorldParams(careful_share=0.2, careless_share=0.5)
    drawn = [pick_writer(rng, params) for _ in range(2000)]
    assert abs(drawn.count("careful") / 2000 - 0.2) < 4 * (0.2 * 0.8 / 2000) ** 0.5
    assert abs(drawn.count("average") / 2000 - 0.3) < 4 * (0.3 * 0.7 / 2000) ** 0.5
