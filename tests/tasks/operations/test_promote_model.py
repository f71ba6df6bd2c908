from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from plumbline.data_contracts.errors import RegistryError, SignatureError, UnknownModelError, UsageError
from plumbline.tasks.evaluation.measures import gate
from plumbline.tasks.evaluation.measures.gate import GateFigures
from plumbline.tasks.operations.compare_champion import unseen
from plumbline.tasks.operations.promote_model import (
    Override,
    anchor_history,
    champion_of,
    current_actor,
    delete_version,
    promote,
    promotion_history,
    rollback,
)
from plumbline.tasks.operations.promotion.gates import GATES_OF
from plumbline.tasks.operations.settle_champion import settle_first_champion
from plumbline.tasks.params.promotion import PromotionParams
from plumbline.tasks.params.whole import Params
from plumbline.tasks.registry.register_model import Registered
from plumbline.tasks.registry.signing.keys import PUBLIC_KEY
from plumbline.tasks.registry.signing.signatures import SIGNATURE
from plumbline.tasks.registry.store.client import Store
from plumbline.tasks.registry.versions.registered import StoredFiles, all_versions, resolve

pytestmark = pytest.mark.slow

# What the small world measures: only a win rate over π_ref.
LENIENT = PromotionParams(
    min_win_rate_vs_champion_low=None,
    min_preference_accuracy=None,
    min_finished_share=None,
    max_finished_drop=None,
    max_ece=None,
    max_kl_nats_per_token=None,
    max_latency_p95_ms=None,
    require_reward_audit=False,
)
PARAMS = Params(promotion=LENIENT)


@pytest.fixture(scope="module")
def four(make_worlds: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Versions 1, 3 and 4 passed, version 2 was rejected."""
    world = make_worlds(tmp_path_factory.mktemp("four") / "workspace")
    world.register()
    world.set(finetune={"dpo": {"beta": 0.2}}, gate={"pass": False})
    world.register()
    for beta in (0.3, 0.4):
        world.set(finetune={"dpo": {"beta": beta}}, gate={"pass": True})
        world.register()
    return world


@pytest.fixture
def world(four: Any, tmp_path: Path) -> Any:
    """`four` with a ledger of its own: artifacts are shared, so a test puts back what it changes there."""
    root = tmp_path / "workspace"
    (root / ".plumbline").mkdir(parents=True)
    for name in ("mlflow.db", "operations.db"):
        with_log = [four.root / ".plumbline" / f"{name}{end}" for end in ("", "-wal", "-shm")]
        for path in with_log:
            if path.exists():
                shutil.copy(path, root / ".plumbline")
    (root / ".plumbline/mlartifacts").symlink_to(four.root / ".plumbline/mlartifacts")
    shutil.copy(four.root / PUBLIC_KEY, root / PUBLIC_KEY)
    return type(four)(root)


def numbers(world: Any) -> dict[str, str]:
    """Aliases as MLflow has them."""
    found = all_versions(Store(world.root, PARAMS.registry), "assistant")
    return {alias: version.number for version in found for alias in version.aliases}


def without_champion(make_worlds: Any, root: Path, *, passed: bool = True) -> tuple[Any, Registered]:
    world = make_worlds(root)
    world.set(gate={"pass": passed})
    return world, world.register(crowned=False)


def test_the_first_version_is_held_to_every_gate_that_can_be_measured(make_worlds: Any, tmp_path: Path) -> None:
    """Its own gate passed; of what promotion asks for the small world measures only a win rate over π_ref."""
    world, registered = without_champion(make_worlds, tmp_path / "strict")
    first = settle_first_champion(world.root, Params(), registered).first
    assert first is not None
    assert not first.promoted
    gates = {gate.name: gate for gate in first.gates}
    assert list(gates) == list(GATES_OF["champion"])
    unmeasured = {"finished", "finished_vs_reference", "preference_accuracy", "kl", "latency", "reward_audit"}
    assert {gate.name for gate in first.refused_by} == unmeasured
    assert gates["win_rate_vs_reference"].passed
    assert gates["win_rate_vs_champion"].text.endswith("not applicable, no champion yet")
    assert numbers(world) == {"candidate": "1"}
    assert [line.alias for line in promotion_history(world.root, PARAMS).entries] == ["candidate"]
    with pytest.raises(UnknownModelError):
        resolve(Store(world.root, PARAMS.registry), "models:/assistant@champion")


def test_the_first_version_that_passes_them_is_champion_once_and_on_record(make_worlds: Any, tmp_path: Path) -> None:
    world, registered = without_champion(make_worlds, tmp_path / "lenient")
    settled = settle_first_champion(world.root, PARAMS, registered)
    assert settled.alias_uris == ["models:/assistant@candidate", "models:/assistant@champion"]
    line = promotion_history(world.root, PARAMS, "champion").entries[-1]
    assert (line.actor, line.action, line.version) == ("registration", "assign", "1")
    assert [gate["name"] for gate in line.evidence["gates"]] == list(GATES_OF["champion"])
    again = settle_first_champion(world.root, PARAMS, world.register(crowned=False))
    assert again.first is None
    Store(world.root, PARAMS.registry).client.delete_registered_model_alias("assistant", "champion")
    assert settle_first_champion(world.root, PARAMS, registered).first is None
    assert numbers(world) == {"candidate": "1"}


def test_a_rejected_version_is_not_examined_for_champion(make_worlds: Any, tmp_path: Path) -> None:
    world, registered = without_champion(make_worlds, tmp_path / "rejected", passed=False)
    assert settle_first_champion(world.root, PARAMS, registered).first is None
    assert numbers(world) == {}


def test_rollback_is_no_way_around_the_gates(world: Any) -> None:
    """Version 2 was rejected and never champion; 3 was champion under other limits, and returns without gates."""
    back = rollback(world.root, PARAMS, to="models:/assistant/2", reason="I want it")
    assert not back.promoted
    assert [gate.name for gate in back.refused_by] == ["registered_gate"]
    assert numbers(world) == {"champion": "1", "candidate": "4"}
    for number in "34":
        promote(world.root, PARAMS, f"models:/assistant/{number}", reason="weekly")
    returned = rollback(world.root, Params(), to="models:/assistant/3", reason="worse")
    assert (returned.promoted, returned.gates) == (True, [])


def test_the_candidate_becomes_champion_and_the_champion_previous(world: Any) -> None:
    promotion = promote(world.root, PARAMS, reason="weekly", actor="ada")
    assert (promotion.promoted, promotion.model_uri, promotion.before) == (True, "models:/assistant/4", "1")
    assert numbers(world) == {"champion": "4", "previous": "1", "candidate": "4"}
    previous, champion = promotion.lines
    assert (champion.action, champion.actor, champion.reason) == ("promote", "ada", "weekly")
    assert [gate["name"] for gate in champion.evidence["gates"]][:2] == ["signature", "registered_gate"]
    reference = next(gate for gate in champion.evidence["gates"] if gate["name"] == "win_rate_vs_reference")
    assert (reference["value"], reference["threshold"]) == (0.68, 0.5)
    assert champion.evidence["failing"] == []
    assert previous.at == champion.at
    found = champion_of(world.root, PARAMS)
    assert found is not None
    assert found.number == "4"


def test_a_refusal_changes_nothing(world: Any) -> None:
    before = promotion_history(world.root, PARAMS).entries
    refused = promote(world.root, PARAMS, "models:/assistant/2", reason="weekly")
    assert not refused.promoted
    assert [gate.name for gate in refused.refused_by] == ["registered_gate"]
    assert promotion_history(world.root, PARAMS).entries == before
    assert numbers(world) == {"champion": "1", "candidate": "4"}


def test_an_override_is_kept_with_the_gates_that_said_no(world: Any) -> None:
    named = Override("grace", "the gate's world is broken")
    promotion = promote(world.root, PARAMS, "models:/assistant/2", reason="urgent", override=named)
    assert promotion.promoted
    line = promotion_history(world.root, PARAMS, "champion").entries[-1]
    assert (line.action, line.version) == ("override", "2")
    assert line.evidence["override"] == {"name": "grace", "reason": "the gate's world is broken"}
    assert line.evidence["failing"] == ["registered_gate"]


def test_an_override_that_nothing_needed_is_a_promotion(world: Any) -> None:
    promotion = promote(world.root, PARAMS, reason="weekly", override=Override("grace", "to be sure"))
    assert {line.action for line in promotion.lines} == {"promote"}
    assert promotion.lines[-1].evidence["override"] is None


@pytest.mark.parametrize(("name", "why"), [("", "because"), ("grace", ""), (" ", " ")])
def test_an_override_needs_a_name_and_a_reason(world: Any, name: str, why: str) -> None:
    with pytest.raises(UsageError, match="expected the name of who answers for it and --override-reason"):
        promote(world.root, PARAMS, reason="r", override=Override(name, why))
    with pytest.raises(UsageError, match="--reason"):
        rollback(world.root, PARAMS, reason=" ")


def test_a_gate_that_cannot_be_measured_fails_with_why(world: Any) -> None:
    """The small world's checkpoints are no models: neither comparison nor latency can be had."""
    strict = Params(promotion=LENIENT.model_copy(update={"max_latency_p95_ms": 5000.0}))
    refused = promote(world.root, strict, reason="weekly")
    (gate,) = refused.refused_by
    assert gate.name == "latency"
    assert "not measured (" in gate.text


def test_shadow_and_challenger(world: Any) -> None:
    shadow = promote(world.root, PARAMS, "models:/assistant/2", "shadow", reason="look at it")
    assert [gate.name for gate in shadow.gates] == ["signature"]
    challenger = promote(world.root, PARAMS, "models:/assistant/3", "challenger", reason="canary")
    assert "win_rate_vs_champion" not in [gate.name for gate in challenger.gates]
    assert numbers(world) == {"champion": "1", "candidate": "4", "shadow": "2", "challenger": "3"}
    with pytest.raises(UsageError, match="expected one of candidate, shadow"):
        promote(world.root, PARAMS, "models:/assistant/3", "previous", reason="r")


def test_rollback_goes_back_and_further_back_and_never_to_what_it_left(world: Any) -> None:
    """1, 3, 4 were champions in turn. Back to 3, with 1 as previous; back to 1, with none; then nothing is left."""
    for number in "34":
        promote(world.root, PARAMS, f"models:/assistant/{number}", reason="weekly")
    assert rollback(world.root, PARAMS, reason="worse").model_uri == "models:/assistant/3"
    assert numbers(world) == {"champion": "3", "previous": "1", "candidate": "4"}
    assert rollback(world.root, PARAMS, reason="worse still").model_uri == "models:/assistant/1"
    assert numbers(world) == {"champion": "1", "candidate": "4"}
    with pytest.raises(UsageError, match="no previous champion"):
        rollback(world.root, PARAMS, reason="worst")
    promote(world.root, PARAMS, "models:/assistant/4", reason="again")
    assert numbers(world)["previous"] == "1"
    assert promotion_history(world.root, PARAMS).problems == []


def test_a_lost_head_is_written_anew(world: Any) -> None:
    Store(world.root, PARAMS.registry).client.delete_registered_model_tag("assistant", "plumbline.ledger_head")
    with pytest.raises(SignatureError, match="history --anchor"):
        rollback(world.root, PARAMS, to="models:/assistant/3", reason="r")
    assert anchor_history(world.root, PARAMS, reason="MLflow came back from a backup", actor="ada").actor == "ada"
    assert rollback(world.root, PARAMS, to="models:/assistant/3", reason="r").promoted
    assert promotion_history(world.root, PARAMS).problems == []


def test_the_signature_gate_itself_refuses(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its verdict decides: with a gate that let it pass, nothing would be raised."""
    asked: list[str | None] = []

    def find(figures: GateFigures) -> gate._Found:
        asked.append(figures.signature)
        return gate._Found(float(figures.signature is None))

    checks = [replace(check, find=find) if check.name == "signature" else check for check in gate.CHECKS]
    monkeypatch.setattr(gate, "CHECKS", checks)
    monkeypatch.setattr("plumbline.tasks.operations.promote_model.verified_model", refuse)
    with pytest.raises(SignatureError, match="changed No override helps"):
        promote(world.root, PARAMS, "models:/assistant/3", reason="r")
    assert asked == ["changed"]


def refuse(*given: object) -> None:
    raise SignatureError("changed")


def test_rollback_works_whatever_somebody_deleted_in_mlflow(world: Any) -> None:
    """1, 3, 4 were champions in turn; 3 is deleted: back from 4 to 1, named, and `previous` names nobody."""
    for number in "34":
        promote(world.root, PARAMS, f"models:/assistant/{number}", reason="weekly")
    client = Store(world.root, PARAMS.registry).client
    client.delete_model_version("assistant", "3")
    with pytest.raises(UnknownModelError):
        rollback(world.root, PARAMS, reason="worse")
    assert rollback(world.root, PARAMS, to="models:/assistant/1", reason="worse").promoted
    promote(world.root, PARAMS, "models:/assistant/4", reason="again")
    client.delete_model_version("assistant", "4")
    assert rollback(world.root, PARAMS, reason="gone").model_uri == "models:/assistant/1"
    assert promotion_history(world.root, PARAMS).moved_outside.keys() <= {"candidate"}
    assert numbers(world)["champion"] == "1"


def test_rollback_passes_over_an_earlier_champion_that_is_gone(world: Any) -> None:
    """1, 3, 4 were champions in turn, 1 is deleted: back to 3, and `previous` names nobody."""
    for number in "34":
        promote(world.root, PARAMS, f"models:/assistant/{number}", reason="weekly")
    Store(world.root, PARAMS.registry).client.delete_model_version("assistant", "1")
    assert rollback(world.root, PARAMS, reason="worse").model_uri == "models:/assistant/3"
    assert numbers(world) == {"champion": "3", "candidate": "4"}


def test_rollback_to_a_named_version(world: Any) -> None:
    back = rollback(world.root, PARAMS, to="models:/assistant/3", reason="r", actor="night")
    assert [(line.action, line.alias, line.version) for line in back.lines] == [("rollback", "champion", "3")]
    with pytest.raises(UsageError, match="is champion already"):
        rollback(world.root, PARAMS, to="models:/assistant/3", reason="r")


def test_an_alias_moved_outside_stops_promotion_and_rollback_takes_it_over(world: Any) -> None:
    store = Store(world.root, PARAMS.registry)
    store.client.set_registered_model_alias("assistant", "champion", "2")
    with pytest.raises(RegistryError, match="moved outside the ledger"):
        champion_of(world.root, PARAMS)
    with pytest.raises(RegistryError, match="moved outside the ledger"):
        promote(world.root, PARAMS, reason="weekly")
    assert numbers(world)["champion"] == "2"
    assert promotion_history(world.root, PARAMS).moved_outside == {"champion": {"ledger": "1", "mlflow": "2"}}
    back = rollback(world.root, PARAMS, to="models:/assistant/1", reason="who was that?")
    assert back.lines[-1].evidence["moved_outside"] == {"ledger": "1", "mlflow": "2"}
    assert numbers(world)["champion"] == "1"


@pytest.mark.parametrize("damage", ["changed", "unsigned", "incomplete"])
def test_what_is_not_what_was_signed_is_neither_promoted_nor_returned_to(world: Any, damage: str) -> None:
    store = Store(world.root, PARAMS.registry)
    folder = StoredFiles(store, resolve(store, "models:/assistant/3")).folder
    name = {"changed": "model/model.safetensors", "unsigned": SIGNATURE, "incomplete": "model/tokenizer.json"}[damage]
    before = (folder / name).read_bytes()
    if damage == "changed":
        (folder / name).write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    else:
        (folder / name).unlink()
    try:
        with pytest.raises(SignatureError, match="No override helps"):
            promote(world.root, PARAMS, "models:/assistant/3", reason="r", override=Override("ada", "I insist"))
        with pytest.raises(SignatureError, match="models:/assistant/3"):
            rollback(world.root, PARAMS, to="models:/assistant/3", reason="r")
    finally:
        (folder / name).write_bytes(before)
    assert numbers(world) == {"champion": "1", "candidate": "4"}
    assert rollback(world.root, PARAMS, to="models:/assistant/3", reason="mended").promoted


def test_deletion_spares_what_an_alias_holds(world: Any) -> None:
    promote(world.root, PARAMS, reason="weekly")
    for number, alias in (("4", "candidate, champion"), ("1", "previous")):
        with pytest.raises(RegistryError, match=f"found {alias}"):
            delete_version(world.root, PARAMS, f"models:/assistant/{number}", reason="old")
    line = delete_version(world.root, PARAMS, "assistant/3", reason="never used", actor="ada")
    assert (line.action, line.version, line.reason) == ("delete", "3", "never used")
    with pytest.raises(UnknownModelError):
        rollback(world.root, PARAMS, to="models:/assistant/3", reason="r")
    for uri in ("models:/assistant@candidate", "assistant"):
        with pytest.raises(UsageError, match="expected MODEL/VERSION"):
            delete_version(world.root, PARAMS, uri, reason="old")


def test_who_acts(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLUMBLINE_ACTOR", " night shift ")
    assert current_actor(world.root) == "night shift"
    monkeypatch.delenv("PLUMBLINE_ACTOR")
    monkeypatch.setenv("HOME", str(world.root))
    subprocess.run(["git", "init", "-q", world.root], check=True)
    subprocess.run(["git", "-C", world.root, "config", "user.name", "Ada"], check=True)
    assert current_actor(world.root) == "Ada"
    subprocess.run(["git", "-C", world.root, "config", "--unset", "user.name"], check=True)
    monkeypatch.setenv("LOGNAME", "os-user")
    assert current_actor(world.root) == "os-user"


@pytest.mark.long
def test_a_kill_at_any_step_of_a_promotion_is_made_good_by_the_next_command(world: Any) -> None:
    """SIGKILL of a real process behind the n-th call to MLflow or commit: the ledger and MLflow agree again after."""
    code = _KILLED.format(root=str(world.root))
    for place, number in enumerate("3434", start=1):
        arguments = [sys.executable, "-c", code, str(place), number, LENIENT.model_dump_json()]
        done = subprocess.run(arguments, cwd=REPOSITORY, check=False, capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
        found = champion_of(world.root, PARAMS)  # the next command
        assert found is not None
        assert found.number == numbers(world)["champion"] == ("1" if place == 1 else number)
        history = promotion_history(world.root, PARAMS)
        assert (history.problems, history.moved_outside) == ([], {})


REPOSITORY = Path(__file__).parents[3]
# The n-th of: before the lines are committed; before `previous`, before `champion`, before the head is written.
_KILLED = """
import os, signal, sys
from pathlib import Path
from plumbline.tasks.params.whole import Params
from plumbline.tasks.operations.promote_model import rollback
from plumbline.tasks.params.promotion import PromotionParams
from plumbline.tasks.registry.ledger import ledger

place = int(sys.argv[1])
calls = 0

def dying(step):
    def run(*arguments, **named):
        global calls
        calls += 1
        if calls == place:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(*arguments, **named)
    return run

for name in ("_append", "_carry_out", "_write_head"):
    setattr(ledger, name, dying(getattr(ledger, name)))
params = Params(promotion=PromotionParams.model_validate_json(sys.argv[3]))
rollback(Path({root!r}), params, to="models:/assistant/" + sys.argv[2], reason="killed")
"""


def test_clusters_that_the_champion_saw_are_left_out_and_counted() -> None:
    """Of clusters a (its record was seen), b (its prompt was seen) and c, c alone is left: 1 pair of 4."""
    from plumbline.data_contracts.records import CuratedPair, Message, Origin

    def pair(name: str, prompt: str, cluster: str) -> CuratedPair:
        return CuratedPair(
            id=name,
            prompt=(Message(role="user", content=prompt),),
            chosen="yes",
            rejected="no",
            source="human_pairs",
            origin=Origin(file="f.jsonl", line=1),
            cluster=cluster,
        )

    test = [pair("1", "p1", "a"), pair("2", "p2", "a"), pair("3", "p3", "b"), pair("4", "p4", "c")]
    kept, counts = unseen(test, [pair("1", "another", "x"), pair("9", "p3", "y")])
    assert [item.id for item in kept] == ["4"]
    assert counts == {"test_pairs": 4, "leaked_clusters": 2, "leaked_pairs": 3}
