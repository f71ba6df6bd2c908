"""Personal data is masked, or its row set aside, and no file that validation writes holds it."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("phonenumbers", reason="the extra personal-data is not installed")

from plumbline.data_contracts.errors import UsageError
from plumbline.data_contracts.records import PreferencePair, Quarantined, UnpairedResponse, load_jsonl
from plumbline.tasks.data.feedback import personal_values as module
from plumbline.tasks.data.feedback.personal_data import keep, protection
from plumbline.tasks.data.feedback.validate import check_rows, validate
from plumbline.tasks.params.feedback import FeedbackParams

MASK = FeedbackParams(personal_data="mask", quarantine_threshold=1.0)
ASIDE = FeedbackParams(personal_data="quarantine", quarantine_threshold=1.0)
ANNA, BEN, PHONE = "anna.smith@web.de", "ben@uni.edu", "+49 171 2345678"
FINE = {"prompt": "how are you?", "chosen": "fine, thanks", "rejected": "no"}


def run(tmp_path: Path, lines: list[Any], params: FeedbackParams, source: str = "human_pairs") -> dict[str, Any]:
    """Validate one file of rows (objects or raw lines) into `tmp_path`/out; returns the report."""
    path, folder = tmp_path / "rows.jsonl", tmp_path / "out"
    folder.mkdir(exist_ok=True)
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else orjson.dumps(line) for line in lines))
    validate([(source, "raw/rows.jsonl", path)], params, folder, needs_pairs=False)
    report: dict[str, Any] = orjson.loads((folder / "report.json").read_bytes())
    return report


def written(tmp_path: Path) -> str:
    return "".join(path.read_text() for path in sorted((tmp_path / "out").iterdir()))


def accepted(tmp_path: Path) -> list[PreferencePair]:
    return list(load_jsonl(tmp_path / "out/accepted.jsonl", PreferencePair))


def set_aside(tmp_path: Path) -> list[Quarantined]:
    return list(load_jsonl(tmp_path / "out/quarantine.jsonl", Quarantined))


def test_values_become_placeholders_numbered_within_a_record(tmp_path: Path) -> None:
    row = {
        "prompt": f"mail {ANNA} or {BEN}",
        "chosen": f"I wrote to {BEN.upper()}",
        "rejected": f"I call {PHONE}",
        "metadata": {"contact": [ANNA, 3], BEN: 1},
    }
    report = run(tmp_path, [row, FINE | {"prompt": f"who is {BEN}?"}], MASK)
    first, second = accepted(tmp_path)
    assert first.prompt[0].content == "mail <EMAIL_1> or <EMAIL_2>"
    assert (first.chosen, first.rejected) == ("I wrote to <EMAIL_2>", "I call <PHONE_1>")
    assert first.metadata == {"contact": ["<EMAIL_1>", 3], "<EMAIL_2>": 1}
    assert second.prompt[0].content == "who is <EMAIL_1>?", "each record counts from 1"
    # first record: 2 addresses and 1 number; second: 1 address
    assert report["personal_data"] == {"handling": "mask", "rows": 2, "values": {"email": 3, "phone": 1}}


def test_an_id_of_the_content_is_that_of_the_masked_content(tmp_path: Path) -> None:
    """A digest of the original would give a number away to whoever tries all numbers."""
    run(tmp_path, [FINE | {"chosen": f"call {PHONE}"}, FINE], MASK)
    masked, fine = accepted(tmp_path)
    expected = orjson.dumps([[["user", "how are you?"]], "call <PHONE_1>", "no"])
    assert masked.id == hashlib.sha256(expected).hexdigest() == masked.content_id()
    assert fine.id == fine.content_id()
    assert (masked.origin.file, masked.origin.line) == ("raw/rows.jsonl", 1), "lineage ends at the raw line"


def test_a_given_id_stays_unless_it_is_personal(tmp_path: Path) -> None:
    run(tmp_path, [FINE | {"id": "7", "chosen": f"ask {ANNA}"}, FINE | {"id": f"{ANNA}-8"}], MASK)
    seventh, eighth = accepted(tmp_path)
    assert seventh.id == "7"
    assert eighth.id == eighth.content_id()
    assert ANNA not in written(tmp_path)


def test_names_of_annotators_stay_for_votes_and_withdrawals(tmp_path: Path) -> None:
    votes = [{"annotator": BEN, "choice": "a"}]
    run(tmp_path, [FINE | {"annotator": ANNA, "chosen": f"ask {ANNA}", "metadata": {"votes": votes}}], MASK)
    (record,) = accepted(tmp_path)
    assert (record.annotator, record.chosen) == (ANNA, "ask <EMAIL_1>")
    assert record.metadata["votes"] == votes


def test_rows_without_personal_data_are_written_as_with_keep(tmp_path: Path) -> None:
    rows = [FINE, FINE | {"prompt": "2 + 2 = 4?", "metadata": {"n": 10**16, "v": "1.2.3.4"}}, {"prompt": "x"}, b"{no"]
    names = ("accepted.jsonl", "quarantine.jsonl")
    run(tmp_path, rows, MASK)
    masked = [(tmp_path / "out" / name).read_bytes() for name in names]
    report = run(tmp_path, rows, FeedbackParams(quarantine_threshold=1.0))
    assert masked == [(tmp_path / "out" / name).read_bytes() for name in names]
    assert report["personal_data"] == {"handling": "keep", "rows": 0, "values": {}}


DEFECTIVE: list[Any] = [
    FINE | {"chosen": f"mail {ANNA}", "rejected": f"mail {ANNA}"},  # the contract refuses it
    FINE | {"chosen": [f"mail {ANNA}"]},  # a reader refuses it, and shows the value
    FINE | {"timestamp": f"by {ANNA}"},
    FINE | {"label": ANNA},
    FINE | {ANNA: 1},
    {"prompt": "x", "response_a": "a", "response_b": "b", "label": f"a says {ANNA}"},
    b'{"prompt": "' + ANNA.encode() + b'", "chosen": "cut',
    b'{"prompt": "anna.smith\\u0040web.de", "chosen": "cut',
    b'{"prompt": "\xff ' + ANNA.encode() + b'"}',
    {"prompt": "x", "id": f"{ANNA}"},
    FINE | {"chosen": {"role": ANNA, "content": "x"}},
    ANNA,
    [f"\n{ANNA}"],
]


@pytest.mark.parametrize("params", [MASK, ASIDE], ids=["mask", "quarantine"])
def test_no_file_of_rows_set_aside_holds_the_value(tmp_path: Path, params: FeedbackParams) -> None:
    report = run(tmp_path, [*DEFECTIVE, FINE], params)
    assert report["quarantined"] == len(DEFECTIVE)
    assert "anna" not in written(tmp_path).lower()
    assert all("<EMAIL_1>" in verdict.raw for verdict in set_aside(tmp_path))


def test_a_value_that_an_excerpt_cuts_is_not_shown_in_part(tmp_path: Path) -> None:
    """Of a row that is too long 500 bytes are kept, of a value 80 characters: half of a value may be there."""
    limits = FeedbackParams(personal_data="mask", quarantine_threshold=1.0, max_row_bytes=1_000)
    rows: list[Any] = [FINE]
    for value in (ANNA, PHONE, "4111 1111 1111 1111"):
        rows += [{"prompt": "x " * (cut // 2) + value + " y" * 600} for cut in range(440, 500)]
        rows += [FINE | {"chosen": ["x" * cut + " " + value]} for cut in range(45, 80)]
    report = run(tmp_path, rows, limits)
    assert report["quarantined"] == len(rows) - 1
    held = written(tmp_path)
    assert [part for part in ("smith", "+49", "171 2", "4111") if part in held] == []


def test_quarantine_sets_the_record_aside_and_says_what_it_held(tmp_path: Path) -> None:
    row = FINE | {"id": "9", "prompt": f"{ANNA}, {BEN}", "chosen": f"call {PHONE}"}
    report = run(tmp_path, [row, FINE], ASIDE)
    (verdict,) = set_aside(tmp_path)
    assert (verdict.reason, verdict.record_id, verdict.line) == ("personal_data", "9", 1)
    assert verdict.found == "email 2, phone 1"
    assert orjson.loads(verdict.raw)["prompt"] == "<EMAIL_1>, <EMAIL_2>"
    assert report["reasons"] == {"personal_data": 1}
    assert report["read"] == report["accepted"] + report["quarantined"] == 2


def test_single_responses_are_masked_as_well(tmp_path: Path) -> None:
    run(tmp_path, [{"prompt": "p", "completion": f"to {ANNA}", "label": True}], MASK, "unpaired_responses")
    (record,) = load_jsonl(tmp_path / "out/unpaired.jsonl", UnpairedResponse)
    assert record.response == "to <EMAIL_1>"
    assert record.id == record.content_id()


def test_the_endpoint_names_the_id_that_the_record_will_have(tmp_path: Path) -> None:
    line = orjson.dumps(FINE | {"chosen": f"call {PHONE}"})
    (verdict,) = check_rows("human_pairs", [line], "request", protect=protection(MASK))
    run(tmp_path, [line], MASK)
    assert not isinstance(verdict, Quarantined)
    assert [verdict.id] == [record.id for record in accepted(tmp_path)]


def test_without_the_libraries_only_keep_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "phonenumbers", None)
    module._libraries.cache_clear()
    assert protection(FeedbackParams()) is keep
    with pytest.raises(UsageError, match=r"pip install 'plumbline\[personal-data\]'"):
        protection(MASK)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.sampled_from([ANNA, BEN, PHONE, "word", "12", "\n", '"', "\\", "é", "…"]), min_size=1, max_size=12),
    st.sampled_from(["prompt", "chosen", "rejected"]),
)
def test_masking_hides_every_value_and_is_idempotent(tmp_path: Path, parts: list[str], place: str) -> None:
    """Naive equivalent: values in the order of appearance, each replaced by its number."""
    text = " ".join(parts)
    line = orjson.dumps(FINE | {place: text})
    (once,) = check_rows("human_pairs", [line], "f", protect=protection(MASK))
    expected = text
    for kind, values in (("EMAIL", (ANNA, BEN)), ("PHONE", (PHONE,))):
        there = sorted((value for value in values if value in parts), key=parts.index)
        for number, value in enumerate(there, 1):
            expected = expected.replace(value, f"<{kind}_{number}>")
    if isinstance(once, Quarantined):
        assert all(value not in once.model_dump_json() for value in (ANNA, BEN, PHONE))
        return
    held = once.prompt[0].content if place == "prompt" else getattr(once, place)
    assert held == expected
    (twice,) = check_rows("human_pairs", [orjson.dumps(FINE | {place: held})], "f", protect=protection(MASK))
    assert not isinstance(twice, Quarantined)
    assert twice.id == once.id
