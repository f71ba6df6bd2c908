from __future__ import annotations

from typing import Any

import pytest

from plumbline.data_contracts.errors import RegistryError
from plumbline.tasks.registry.versions import registered as versions
from plumbline.tasks.registry.versions.registered import StoredFiles, all_versions, resolve

pytestmark = pytest.mark.slow


def aliases(registry: Any) -> dict[str, tuple[str, ...]]:
    return {version.number: version.aliases for version in all_versions(registry.store, registry.name)}


def test_registration_gives_no_alias_that_serves(registry: Any) -> None:
    registry.register("a", crowned=False)
    registry.register("b", passed=False, crowned=False)
    assert aliases(registry) == {"1": ("candidate",), "2": ()}


def test_the_candidate_is_the_latest_that_passed(registry: Any) -> None:
    assert not registry.register("a", passed=False).passed
    assert aliases(registry) == {"1": ()}
    registry.register("b")
    assert aliases(registry) == {"1": (), "2": ("candidate", "champion")}
    registry.register("c")
    registry.register("d", passed=False)
    assert aliases(registry) == {"1": (), "2": ("champion",), "3": ("candidate",), "4": ()}
    tags = resolve(registry.store, f"models:/{registry.name}/4").tags
    assert tags["plumbline.gate"] == "rejected"
    assert tags["plumbline.md5.curated"] == "a" * 32 + ".dir"


def test_a_champion_that_was_taken_away_is_not_put_back(registry: Any) -> None:
    registry.register("a")
    registry.store.client.delete_registered_model_alias(registry.name, "champion")
    registry.register("b")
    assert aliases(registry) == {"1": (), "2": ("candidate",)}


def test_the_same_results_keep_their_version(registry: Any) -> None:
    assert registry.register("a") == registry.register("a")
    assert len(all_versions(registry.store, registry.name)) == 1


@pytest.mark.parametrize(
    "step", ["_upload", "_verify_upload", "_sign_upload", "_create_version", "_complete_seal", "settle_candidate"]
)
def test_a_crash_before_any_step_loses_nothing(registry: Any, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*arguments: object, **named: object) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(versions, step, crash)
        with pytest.raises(RuntimeError, match="killed"):
            registry.register("a")
    version = registry.register("a")
    assert (version.number, version.aliases) == ("1", ("candidate", "champion"))
    stored = StoredFiles(registry.store, version)
    assert stored.check_manifest().ok
    assert all(check.ok for check in stored.check_files(stored.manifest()["files"]))
    stored.require_signed()
    models = registry.store.client.search_logged_models(
        [registry.store.experiment_id()], f"name = '{registry.name}'", max_results=10
    )
    assert len(models) == 1


def test_what_mlflow_stored_must_be_what_was_handed_over(registry: Any) -> None:
    with pytest.raises(RegistryError, match=r"model/weights.bin: changed in mlflow"):
        registry.register("a", claimed="0" * 64)
    assert all_versions(registry.store, registry.name) == []


def test_every_way_to_name_a_version(registry: Any) -> None:
    name = registry.name
    registry.register("a", passed=False)
    assert resolve(registry.store, name).number == "1"
    registry.register("b")
    registry.register("c")
    cases = {
        name: "2",
        f"models:/{name}": "2",
        f"models:/{name}/3": "3",
        f"models:/{name}@candidate": "3",
        f"models:/{name}@champion": "2",
        f"{name}@champion": "2",
    }
    assert {uri: resolve(registry.store, uri).number for uri in cases} == cases


@pytest.mark.parametrize(
    ("suffix", "words"),
    [
        ("/9", "has versions 1 to 1 and aliases candidate, champion"),
        ("@nosuch", "no such version"),
        ("/one", r"expected models:/NAME@ALIAS, models:/NAME/VERSION or NAME"),
        ("x/1", "no version of .* `plumbline retrain` registers one"),
    ],
)
def test_a_name_that_means_nothing_says_what_there_is(registry: Any, suffix: str, words: str) -> None:
    registry.register("a")
    with pytest.raises(RegistryError, match=words):
        resolve(registry.store, f"models:/{registry.name}{suffix}")


def test_an_extra_a_missing_and_a_changed_file_are_each_found(registry: Any) -> None:
    stored = StoredFiles(registry.store, registry.register("a"))
    files = stored.manifest()["files"]
    (stored.folder / "model/weights.bin").write_text("weights of b")
    (stored.folder / "MODEL_CARD.md").unlink()
    (stored.folder / "model/pickle.bin").write_text("surprise")
    found = {check.name: check.problem() for check in stored.check_files(files) if not check.ok}
    assert set(found) == {"model/weights.bin", "MODEL_CARD.md", "model/pickle.bin"}
    assert "missing in mlflow" in found["MODEL_CARD.md"]
    assert "an extra file" in found["model/pickle.bin"]
    (stored.folder / "manifest.json").write_text("{}")
    assert not stored.check_manifest().ok
