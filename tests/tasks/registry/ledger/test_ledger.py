from __future__ import annotations

import multiprocessing
import sqlite3
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, text

from plumbline.data_contracts.errors import OperationsError, RegistryError, SignatureError
from plumbline.tasks.params.operations import OperationsParams
from plumbline.tasks.params.registry import RegistryParams
from plumbline.tasks.registry.ledger import ledger
from plumbline.tasks.registry.ledger.chain import LINES, METADATA, Line, append, chain_problems
from plumbline.tasks.registry.ledger.ledger import (
    HEAD_TAG,
    Move,
    alias_state,
    anchor_head,
    delete_version,
    history,
    move_alias,
    move_aliases,
    moved_outside,
    open_ledger,
    settle,
    verify_chain,
)
from plumbline.tasks.registry.signing.keys import signing_key
from plumbline.tasks.registry.store.client import Store
from plumbline.tasks.registry.versions.registered import all_versions, resolve
from plumbline.tasks.storage.database import reading, writing


def move(registry: Any, alias: str, version: str | None, expected: str | None, **named: Any) -> Any:
    said = {"action": "promote", "actor": "ada", "reason": "because", "evidence": {}, **named}
    return move_alias(registry.ledger, registry.store, alias=alias, version=version, expected=expected, **said)


def held(registry: Any) -> dict[str, str]:
    """Aliases as MLflow has them."""
    return {alias: item.number for item in all_versions(registry.store, registry.name) for alias in item.aliases}


def problems(registry: Any) -> list[str]:
    return verify_chain(registry.ledger, registry.store)


def database(registry: Any) -> sqlite3.Connection:
    """The file behind the ledger, with its triggers gone: what someone with write access to it can do."""
    connection = sqlite3.connect(registry.root / ".plumbline/operations.db")
    connection.execute("DROP TRIGGER IF EXISTS promotion_ledger_no_update")
    connection.execute("DROP TRIGGER IF EXISTS promotion_ledger_no_delete")
    return connection


@pytest.fixture
def three(registry: Any) -> Any:
    """Versions 1 to 3; champion 1 and candidate 3 by registration."""
    for key in "abc":
        registry.register(key)
    return registry


@pytest.mark.slow
def test_registration_writes_who_when_why_on_what_evidence(registry: Any) -> None:
    version = registry.register("a")
    registry.register("a")
    lines = history(registry.ledger, registry.name)
    assert [(line.seq, line.alias, line.previous, line.version, line.action) for line in lines] == [
        (1, "candidate", None, "1", "assign"),
        (2, "champion", None, "1", "assign"),
    ]
    assert lines[0].actor == "registration"
    assert lines[0].evidence["manifest_sha256"] == version.tags["plumbline.manifest_sha256"]
    assert lines[0].at.tzinfo is not None
    assert lines[1].prev_hash == lines[0].hash
    assert problems(registry) == []


def test_a_move_is_on_record_and_in_mlflow(three: Any) -> None:
    line = move(three, "champion", "3", "1", evidence={"win_rate": 0.61})
    assert (line.previous, line.version, line.actor, line.evidence) == ("1", "3", "ada", {"win_rate": 0.61})
    assert held(three) == {"champion": "3", "candidate": "3"}
    move(three, "champion", None, "3")
    assert held(three) == {"candidate": "3"}
    assert problems(three) == []


def test_several_aliases_move_together_or_not_at_all(three: Any) -> None:
    before = history(three.ledger, three.name)
    moves = [Move("previous", "1", None), Move("champion", "3", "2")]  # the second expectation is wrong
    said = {"action": "promote", "actor": "ada", "reason": "r", "evidence": {}}
    with pytest.raises(RegistryError, match="expected version 2, found 1"):
        move_aliases(three.ledger, three.store, moves, **said)
    assert history(three.ledger, three.name) == before
    assert held(three) == {"champion": "1", "candidate": "3"}


def test_the_loser_is_told_who_won(three: Any) -> None:
    move(three, "champion", "2", "1", actor="grace", reason="she was first")
    with pytest.raises(RegistryError, match=r"by grace at .* won, because: she was first"):
        move(three, "champion", "3", "1")
    assert held(three)["champion"] == "2"


def test_an_alias_moved_outside_is_named_and_left_alone(three: Any) -> None:
    three.store.client.set_registered_model_alias(three.name, "champion", "2")
    assert moved_outside(three.ledger, three.store) == {"champion": {"ledger": "1", "mlflow": "2"}}
    with pytest.raises(RegistryError, match="moved outside the ledger: the ledger says version 1, MLflow says 2"):
        move(three, "champion", "3", "1")
    assert settle(three.ledger, three.store) == []
    assert held(three)["champion"] == "2"
    line = move(three, "champion", "3", "1", outside="record")
    assert line.evidence["moved_outside"] == {"ledger": "1", "mlflow": "2"}
    assert held(three)["champion"] == "3"
    assert moved_outside(three.ledger, three.store) == {}


def test_an_alias_put_back_in_mlflow_to_the_holder_before_the_last_line_is_noticed(three: Any) -> None:
    """Only a line that is not carried out yet explains the holder before it; the last one is."""
    move(three, "champion", "2", "1")
    three.store.client.set_registered_model_alias(three.name, "champion", "1")
    assert moved_outside(three.ledger, three.store) == {"champion": {"ledger": "2", "mlflow": "1"}}


@pytest.mark.parametrize("alias", ["shadow", "champion"])
def test_an_alias_given_or_taken_in_mlflow_is_noticed(three: Any, alias: str) -> None:
    if alias == "shadow":
        three.store.client.set_registered_model_alias(three.name, alias, "2")
    else:
        three.store.client.delete_registered_model_alias(three.name, alias)
    assert list(moved_outside(three.ledger, three.store)) == [alias]


@pytest.mark.parametrize("step", ["_carry_out", "_write_head"])
@pytest.mark.parametrize("outside", [False, True])
def test_a_crash_between_ledger_and_alias_is_repaired(
    three: Any, step: str, outside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger's line is the commit point: the next command carries it out, and says so."""
    if outside:
        three.store.client.set_registered_model_alias(three.name, "champion", "3")

    def crash(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ledger, step, crash)
        with pytest.raises(KeyboardInterrupt):
            move(three, "champion", "2", "1", outside="record")
    assert problems(three) == []
    assert moved_outside(three.ledger, three.store) == {}
    line = move(three, "shadow", "1", None)
    assert held(three) == {"champion": "2", "candidate": "3", "shadow": "1"}
    if step == "_carry_out":
        assert "carried out line" in line.evidence["repaired"][0]
    assert settle(three.ledger, three.store) == []


def test_a_version_that_an_alias_holds_is_not_deleted(three: Any) -> None:
    said = {"actor": "ada", "reason": "old"}
    with pytest.raises(RegistryError, match="found champion"):
        delete_version(three.ledger, three.store, "1", **said)
    three.store.client.set_registered_model_alias(three.name, "mine", "2")  # an alias that is none of ours
    with pytest.raises(RegistryError, match="found mine"):
        delete_version(three.ledger, three.store, "2", **said)
    three.store.client.delete_registered_model_alias(three.name, "mine")
    line = delete_version(three.ledger, three.store, "2", **said)
    assert (line.action, line.alias, line.version) == ("delete", "", "2")
    assert [version.number for version in all_versions(three.store, three.name)] == ["1", "3"]
    assert problems(three) == []


@pytest.mark.parametrize("reason", ["", "  ", "x" * 5000, "bell \a"], ids=["none", "blank", "long", "bell"])
def test_a_line_needs_words(three: Any, reason: str) -> None:
    with pytest.raises(SignatureError, match="the ledger needs a reason"):
        move(three, "champion", "2", "1", reason=reason)
    assert len(history(three.ledger, three.name)) == 4


def test_an_unknown_alias_is_refused(three: Any) -> None:
    with pytest.raises(RegistryError, match="unknown alias"):
        move(three, "../champion", "2", None)


# Tampering


@pytest.mark.parametrize("statement", ["UPDATE promotion_ledger SET actor = 'eve'", "DELETE FROM promotion_ledger"])
def test_the_database_refuses_to_change_a_line(three: Any, statement: str) -> None:
    with pytest.raises(OperationsError, match="append-only"), writing(three.ledger) as connection:
        connection.execute(text(statement))


def test_lines_cut_from_the_end_are_missed_by_the_signed_head(three: Any) -> None:
    with database(three) as connection:
        connection.execute("DELETE FROM promotion_ledger WHERE model = ? AND seq = 4", (three.name,))
    assert problems(three) == ["ledger line 4: missing: the signed head says 4 lines, found 3."]
    with pytest.raises(SignatureError, match="ledger line 4: missing"):
        move(three, "champion", "2", "1")


def test_a_ledger_that_was_emptied_is_missed(three: Any) -> None:
    with database(three) as connection:
        connection.execute("DELETE FROM promotion_ledger WHERE model = ?", (three.name,))
    assert problems(three) == ["ledger line 1: missing: the signed head says 4 lines, found 0."]


@pytest.mark.parametrize("how", ["forged", "removed", "put back", "nonsense"])
def test_a_head_that_was_touched_is_found(three: Any, how: str) -> None:
    client = three.store.client
    tags = client.get_registered_model(three.name).tags
    head = orjson.loads(tags[HEAD_TAG])
    if how == "removed":
        client.delete_registered_model_tag(three.name, HEAD_TAG)
    else:
        move(three, "champion", "2", "1")
        move(three, "champion", "3", "2")
        changed = {"forged": {**head, "seq": 5}, "put back": head, "nonsense": {"seq": "x"}}[how]
        client.set_registered_model_tag(three.name, HEAD_TAG, orjson.dumps(changed).decode())
    (problem,) = problems(three)
    assert "signed head" in problem


@pytest.mark.parametrize("how", ["in MLflow", "by the ledger"])
def test_no_line_is_written_that_cannot_be_carried_out(three: Any, how: str) -> None:
    if how == "in MLflow":
        three.store.client.delete_model_version(three.name, "2")
    else:
        delete_version(three.ledger, three.store, "2", actor="ada", reason="old")
    before = history(three.ledger, three.name)
    with pytest.raises(RegistryError, match="expected a version that exists, found 2"):
        move(three, "shadow", "2", None)
    assert history(three.ledger, three.name) == before
    assert move(three, "shadow", "3", None).version == "3"


def test_a_line_whose_version_went_meanwhile_is_stated_and_blocks_nothing(
    three: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ledger, "_carry_out", crash)
        with pytest.raises(KeyboardInterrupt):
            move(three, "shadow", "2", None)
    three.store.client.delete_model_version(three.name, "2")
    line = move(three, "champion", "3", "1")
    assert "MLflow has no version 2; somebody deleted it" in line.evidence["repaired"][0]
    assert moved_outside(three.ledger, three.store) == {"shadow": {"ledger": "2", "mlflow": None}}
    move(three, "shadow", "1", "2")  # an alias that went with its version may be given anew
    assert held(three) == {"champion": "3", "candidate": "3", "shadow": "1"}


def test_a_lost_head_is_anchored_anew_on_record(three: Any) -> None:
    with pytest.raises(RegistryError, match="nothing to anchor"):
        anchor_head(three.ledger, three.store, actor="ada", reason="restored")
    three.store.client.delete_registered_model_tag(three.name, HEAD_TAG)
    with pytest.raises(SignatureError, match="history --anchor"):
        move(three, "champion", "3", "1")
    line = anchor_head(three.ledger, three.store, actor="ada", reason="restored from a backup")
    assert (line.action, line.alias, line.version, line.evidence["head"]) == ("anchor", "", None, None)
    assert "signed head" in line.evidence["problems"][0]
    assert problems(three) == []
    move(three, "champion", "3", "1")
    assert held(three)["champion"] == "3"


def test_no_head_is_anchored_on_a_bad_line(three: Any) -> None:
    with database(three) as connection:
        connection.execute("UPDATE promotion_ledger SET actor = 'eve' WHERE model = ? AND seq = 2", (three.name,))
    with pytest.raises(SignatureError, match="ledger line 2"):
        anchor_head(three.ledger, three.store, actor="ada", reason="r")


def write_lines(key: Any, count: int) -> list[dict[str, Any]]:
    """A ledger of its own, in memory, signed with `key`."""
    engine = create_engine("sqlite://")
    METADATA.create_all(engine)
    with writing(engine) as connection:
        for number in range(count):
            line = Line("champion", str(number + 1), str(number) if number else None, {"gates": [number], "x": 0.5})
            append(connection, "m", [line], action="promote", actor="ada", reason=f"r{number}", key=key)
    with reading(engine) as connection:
        return [dict(row) for row in connection.execute(LINES.select().order_by(LINES.c.seq)).mappings()]


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Six lines of a ledger alone, the key that signed them, and another key."""
    root = tmp_path_factory.mktemp("chain")
    keys = [signing_key(root / name, RegistryParams(signing_key=str(root / f"{name}.key"))) for name in "ab"]
    return write_lines(keys[0], 6), keys[0].public, keys[1]


def test_a_genuine_line_of_another_ledger_does_not_fit(tmp_path: Path) -> None:
    """Right number, right hash, right signature, of another history (a database put back and written on)."""
    key = signing_key(tmp_path / "w", RegistryParams(signing_key=str(tmp_path / "key")))
    rows, fork = write_lines(key, 3), write_lines(key, 3)
    assert chain_problems(rows, key.public) == chain_problems(fork, key.public) == []
    (problem,) = chain_problems([rows[0], fork[1], rows[2]], key.public)
    assert problem.startswith("ledger line 2 ")
    assert "does not follow the line before" in problem


@pytest.mark.slow
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_single_changed_field_is_found_at_its_line(chain: Any, data: st.DataObject) -> None:
    rows, key, _ = chain
    assert chain_problems(rows, key) == []
    place = data.draw(st.integers(0, len(rows) - 1))
    name = data.draw(st.sampled_from(sorted(rows[0])))
    before = rows[place][name]
    other = st.integers(0, 99) if name == "seq" else st.text(max_size=8) | st.none()
    after = data.draw(other.filter(lambda value: value != before))
    (problem,) = chain_problems([*rows[:place], {**rows[place], name: after}, *rows[place + 1 :]], key)
    named = after if name == "seq" else place + 1
    assert problem.startswith(f"ledger line {named} ")


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_bit_of_a_text_is_found(chain: Any, data: st.DataObject) -> None:
    rows, key, _ = chain
    place = data.draw(st.integers(0, len(rows) - 1))
    name = data.draw(st.sampled_from([name for name in sorted(rows[0]) if isinstance(rows[place][name], str)]))
    value = rows[place][name]
    at = data.draw(st.integers(0, len(value) - 1))
    after = value[:at] + chr(ord(value[at]) ^ 1) + value[at + 1 :]
    assert chain_problems([*rows[:place], {**rows[place], name: after}, *rows[place + 1 :]], key)


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_lines_removed_or_reordered_are_found(chain: Any, data: st.DataObject) -> None:
    """Any sequence of the lines but a beginning of the chain; a beginning is what the signed head is for."""
    rows, key, _ = chain
    order = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=len(rows)))
    found = chain_problems([rows[place] for place in order], key)
    assert bool(found) == (order != list(range(len(order))))
    renumbered = [{**rows[place], "seq": seq} for seq, place in enumerate(order, start=1)]
    assert bool(chain_problems(renumbered, key)) == (order != list(range(len(order))))


def test_a_line_forged_with_another_key_is_found(chain: Any) -> None:
    rows, key, other = chain
    forged = {**rows[-1], "signature": other.sign(rows[-1]["hash"].encode())}
    (problem,) = chain_problems([*rows[:-1], forged], key)
    assert "its signature is not by key" in problem


# Two at once


def _race(root: Path, name: str, number: str, start: Any, answers: Any) -> None:
    store = Store(root, RegistryParams(model_name=name))
    engine = open_ledger(root, OperationsParams())
    start.wait()
    said: dict[str, Any] = {"action": "promote", "actor": f"actor {number}", "reason": "race", "evidence": {}}
    try:
        move_alias(engine, store, alias="champion", version=number, expected="1", **said)
        answers.put((number, "won"))
    except RegistryError as error:
        answers.put((number, str(error)))


@pytest.mark.long
@pytest.mark.slow
def test_of_two_promotions_at_once_exactly_one_wins(three: Any) -> None:
    """Two processes, both seeing champion 1, each promoting its own."""
    context = multiprocessing.get_context("spawn")
    start, answers = context.Barrier(2), context.Queue()
    racers = [
        context.Process(target=_race, args=(three.root, three.name, number, start, answers)) for number in ("2", "3")
    ]
    for racer in racers:
        racer.start()
    found = dict(answers.get(timeout=120) for _ in racers)
    for racer in racers:
        racer.join(60)
    (winner,) = [number for number, words in found.items() if words == "won"]
    (loser,) = [number for number in found if number != winner]
    assert f"by actor {winner} at" in found[loser]
    assert "won, because: race" in found[loser]
    assert held(three)["champion"] == winner
    assert alias_state(history(three.ledger, three.name))["champion"].version == winner
    assert problems(three) == []
    assert resolve(three.store, f"models:/{three.name}@champion").number == winner


def test_the_same_number_cannot_be_written_twice(three: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the lock the unique (model, seq) still lets one writer alone through."""
    key = signing_key(three.root, three.store.params)
    line = Line("champion", "2", "1", {})
    said: dict[str, Any] = {"action": "promote", "actor": "ada", "reason": "r", "key": key}
    with pytest.raises(OperationsError, match="UNIQUE"), writing(three.ledger) as connection:
        (added,) = append(connection, three.name, [line], **said)
        row = connection.execute(LINES.select().where(LINES.c.hash == added.hash)).mappings().one()
        connection.execute(LINES.insert().values(**row))
