import math
import os
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from plumbline.data_contracts.errors import ParamsError
from plumbline.data_contracts.records import Message, load_conversations
from plumbline.tasks.data.sample_world.annotators import TEMPERATURES, prefers_first
from plumbline.tasks.data.sample_world.defects import LEAKS
from plumbline.tasks.data.sample_world.generate import generate
from plumbline.tasks.data.sample_world.gold import gold_reward
from plumbline.tasks.data.sample_world.requests import parse
from plumbline.tasks.params.sample_world import DefectRates, SampleWorldParams

FILES = ("feedback/human_pairs.jsonl", "demonstrations.jsonl", "planted.json")
TINY = SampleWorldParams(pairs=60, demonstrations=40)
ROOT = Path(__file__).parents[4]


def _bytes(folder):
    return [(folder / name).read_bytes() for name in FILES]


def _turns(row):
    return [Message(**turn) for turn in row["prompt"]]


def test_same_seed_same_bytes_in_another_process(tmp_path):
    """Another process with another hash seed, so that no order of a set or dict of strings leaks in."""
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    generate(TINY, 3, tmp_path / "here")
    code = (
        "import sys; from pathlib import Path\n"
        "from plumbline.tasks.data.sample_world.generate import generate\n"
        "from plumbline.tasks.params.sample_world import SampleWorldParams\n"
        "generate(SampleWorldParams(pairs=60, demonstrations=40), 3, Path(sys.argv[1]))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "there")], check=True, env=environment, cwd=tmp_path)
    assert _bytes(tmp_path / "here") == _bytes(tmp_path / "there")


def test_another_seed_gives_another_world(tmp_path):
    for seed in (1, 2):
        (tmp_path / str(seed)).mkdir()
        generate(TINY, seed, tmp_path / str(seed))
    assert all(a != b for a, b in zip(_bytes(tmp_path / "1"), _bytes(tmp_path / "2"), strict=True))


def test_counts(world):
    """600 pairs; repeats 12 + 24 + 12 add lines, the spoilt 18 + 6 + 6 + 6 + 12 + 6 = 54 replace clean ones."""
    assert len(world.lines) == world.facts["lines"] == world.record["lines"] == 648
    assert world.facts["planted"] == {
        "exact_duplicate": 12,
        "near_duplicate": 24,
        "contradiction": 12,
        "leaked_label": 18,
        "empty_response": 6,
        "overlong_response": 6,
        "broken_json": 6,
        "wrong_type": 12,
        "unknown_field": 6,
    }
    assert len(world.clean_rows()) == 648 - 48 - 54


def test_a_line_has_at_most_one_defect_and_repeats_point_to_clean_lines(world):
    planted = [one for kind in world.planted.values() for one in kind]
    assert len(world.defective) == len(planted)
    origins = [one["of_line"] for one in planted if "of_line" in one]
    assert len(origins) == len(set(origins)) == 48
    assert not world.defective & set(origins)


def test_ids_resolve_to_lines(world):
    for line in range(1, len(world.lines) + 1):
        if line not in {one["line"] for one in world.planted["broken_json"]}:
            assert world.row(line)["id"] == f"hp-{line:06d}"
    for kind in world.planted.values():
        for one in kind:
            assert one["id"] == f"hp-{one['line']:06d}"
            assert one.get("of") == (f"hp-{one['of_line']:06d}" if "of_line" in one else None)


def test_clean_rows_are_well_formed(world):
    for row in world.clean_rows():
        assert list(row) == ["id", "prompt", "chosen", "rejected", "annotator", "source", "timestamp"]
        chosen, rejected = row["chosen"][0]["content"], row["rejected"][0]["content"]
        assert chosen.strip() and rejected.strip() and len(chosen) < 300 and len(rejected) < 300
        assert chosen != rejected
        assert row["annotator"] in TEMPERATURES
        assert not any(leak in text for leak in LEAKS for text in (chosen, rejected, *(t.content for t in _turns(row))))
    stamps = [row["timestamp"] for row in world.clean_rows()]
    assert stamps == sorted(stamps)


def test_repeats(world):
    for one in world.planted["exact_duplicate"]:
        assert _without(world.row(one["line"])) == _without(world.row(one["of_line"]))
    for one in world.planted["contradiction"]:
        row, origin = world.row(one["line"]), world.row(one["of_line"])
        assert (row["prompt"], row["chosen"], row["rejected"]) == (
            origin["prompt"],
            origin["rejected"],
            origin["chosen"],
        )
        assert row["annotator"] != origin["annotator"]
    for one in world.planted["near_duplicate"]:
        row, origin = world.row(one["line"]), world.row(one["of_line"])
        assert row["prompt"] != origin["prompt"]
        assert parse(_turns(row)) == parse(_turns(origin))
        assert (row["rejected"] != origin["rejected"]) == ("response_spacing" in one["edits"])


def _without(row):
    return {key: value for key, value in row.items() if key not in ("id", "timestamp")}


def test_leaks(world):
    for one in world.planted["leaked_label"]:
        content = world.row(one["line"])[one["field"]][-1]["content"]
        assert content in (f"{one['leak']} {one['clean']}", f"{one['clean']} {one['leak']}")
    assert {one["field"] for one in world.planted["leaked_label"]} == {"chosen", "prompt"}


def test_rows_out_of_bounds_or_of_another_shape(world):
    for one in world.planted["empty_response"]:
        assert not world.row(one["line"])[one["field"]][0]["content"].strip()
    for one in world.planted["overlong_response"]:
        assert len(world.row(one["line"])[one["field"]][0]["content"]) > 4000
    for one in world.planted["broken_json"]:
        with pytest.raises(orjson.JSONDecodeError):
            world.row(one["line"])
    for one in world.planted["wrong_type"]:
        value = world.row(one["line"])[one["field"]]
        assert not isinstance(value, str) and not (isinstance(value, list) and isinstance(value[0], dict))
    for one in world.planted["unknown_field"]:
        assert one["field"] in world.row(one["line"])


def test_prompts_differ_in_two_slots_also_from_demonstrations(world):
    """Naive form of the rule: compare every two requests of one template slot by slot."""
    feedback = [parse(_turns(row)) for row in world.clean_rows()]
    shown = [parse(turns[:-1]) for turns in load_conversations(world.folder / "demonstrations.jsonl")]
    assert len(shown) == 300
    for n, one in enumerate(feedback):
        for other in (*feedback[:n], *shown):
            if one.template is other.template:
                assert sum(one.slots[name] != other.slots[name] for name in one.template.slots) >= 2


def test_labels_follow_the_annotators(world):
    """Share of clean rows whose label agrees with gold: within 4 standard deviations of the Bradley-Terry sum."""
    chances, agreed = [], 0
    for row in world.clean_rows():
        chosen, rejected = (gold_reward(_turns(row), row[key][0]["content"]) for key in ("chosen", "rejected"))
        if chosen != rejected:
            chances.append(prefers_first(max(chosen, rejected), min(chosen, rejected), TEMPERATURES[row["annotator"]]))
            agreed += chosen > rejected
    deviation = math.sqrt(sum(chance * (1 - chance) for chance in chances))
    assert abs(agreed - sum(chances)) < 4 * deviation
    assert 0.7 < agreed / len(chances) < 0.95


def test_length_is_a_poor_proxy(world):
    """The longer response wins in 35 to 65 % of the clean pairs."""
    pairs = [(len(r["chosen"][0]["content"]), len(r["rejected"][0]["content"])) for r in world.clean_rows()]
    unequal = [a > b for a, b in pairs if a != b]
    assert 0.35 < sum(unequal) / len(unequal) < 0.65


def test_too_many_pairs_are_refused(tmp_path, monkeypatch):
    """With two draws a pair the templates are soon too full; nothing is written."""
    monkeypatch.setattr("plumbline.tasks.data.sample_world.generate._MOST_DRAWS", 2)
    with pytest.raises(ParamsError, match=r"sample_world\.pairs.*smaller"):
        generate(SampleWorldParams(pairs=5000, demonstrations=20), 0, tmp_path)
    assert not list(tmp_path.iterdir())


def test_too_many_defects_are_refused(tmp_path):
    rates = DefectRates(**dict.fromkeys(DefectRates.model_fields, 0.2))
    with pytest.raises(ParamsError, match="rates add up"):
        generate(SampleWorldParams(pairs=60, demonstrations=20, defects=rates), 0, tmp_path)


def test_writer_shares_above_one_are_refused():
    with pytest.raises(ValueError, match="expected at most 1"):
        SampleWorldParams(careful_share=0.7, careless_share=0.6)
