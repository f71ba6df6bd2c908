"""Each recipe from `init` to a registered version, on a random model of the architecture that it names.

The sample world's recipe is what the session's own workspace runs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import orjson
import pytest
from ruamel.yaml import YAML
from safetensors.numpy import load_file

from plumbline.data_contracts.artifact import read_artifact
from plumbline.flows.graph.workspaces import SAMPLE_WORLD, recipes
from plumbline.tasks.params.section import flatten
from plumbline.tasks.params.training import shared_key
from plumbline.tasks.params.whole import Params
from tests.flows.conftest import Workspace
from tests.support.chat_server import Server, chat_server, shown
from tests.support.tiny_bases import family_of, write_tiny_base

pytestmark = pytest.mark.long

SIZES = Path(__file__).with_name("recipe_sizes.yaml")
GUIDE = Path(__file__).parents[2] / "docs/guides/params.md"
PAIRS, THUMBS = 60, 24
TRAINED = 36  # pairs: 0.6 of them
DEFAULTS = dict(flatten(Params().model_dump(mode="json")))
NAMES = [name for name in recipes() if name != SAMPLE_WORLD]


@dataclass(frozen=True)
class Ran:
    """A recipe's workspace after its run: the recipe as written, what the run printed, facts of base and policy."""

    workspace: Workspace
    recipe: dict[str, Any]
    payload: dict[str, Any]
    base: Mapping[str, Any]
    policy: Mapping[str, Any]

    @property
    def methods(self) -> list[str]:
        """The methods that the recipe trains by."""
        return list(self.recipe.get("finetune", {}).get("methods", DEFAULTS["finetune.methods"]))

    @property
    def settings(self) -> list[dict[str, Any]]:
        """The settings of each method as run."""
        found: dict[str, Any] = self.policy["settings"]
        stages = self.policy.get("stages")
        return [found[stage] for stage in stages] if stages else [found]


def read_yaml(path: Path) -> dict[str, Any]:
    read: dict[str, Any] = YAML(typ="safe").load(path)
    return read


def words(draw: Random, count: int) -> str:
    return " ".join("".join(draw.choices("abcdefghiklmnoprstu", k=5)) for _ in range(count))


def write_pairs(path: Path) -> Path:
    """Conversations that end in the sum that the guide's rewards.py knows; the chosen response is right and good."""
    draw = Random(1)
    with path.open("wb") as file:
        for _ in range(PAIRS):
            asked = f"\n\nHuman: {words(draw, 4)}?\n\nAssistant: {words(draw, 1)}.\n\nHuman: What is 12 + 30?"
            answer = words(draw, 1)
            row = {
                "chosen": f"{asked}\n\nAssistant: good {answer} 42",
                "rejected": f"{asked}\n\nAssistant: {answer} 41",
            }
            file.write(orjson.dumps(row) + b"\n")
    return path


def write_thumbs(path: Path) -> None:
    draw = Random(2)
    with path.open("wb") as file:
        for place in range(THUMBS):
            row = {"prompt": f"{words(draw, 4)}?", "completion": words(draw, 3), "label": place % 3 > 0}
            file.write(orjson.dumps(row) + b"\n")


def write_guides_reward(path: Path) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    path.write_text(code)


@pytest.fixture(scope="module")
def judge() -> Iterator[Server]:
    with chat_server() as served:
        yield served


@pytest.fixture(scope="module")
def run_recipe(tmp_path_factory: pytest.TempPathFactory, server: str, judge: Server) -> Callable[[str], Ran]:
    """Run a recipe's whole chain on a tiny base; it must end with exit code 0."""

    def run(name: str) -> Ran:
        folder = tmp_path_factory.mktemp(name)
        workspace = Workspace(folder / "workspace", server)
        workspace.root.mkdir()
        init = workspace.run("init", ".", "--recipe", name)
        assert init.code == 0, init.err
        recipe = read_yaml(workspace.root / "params" / f"{name}.yaml")
        base = write_tiny_base(recipe["reference"]["base"], folder / "base")
        ingested = workspace.run("ingest", "human_pairs", write_pairs(folder / "pairs.jsonl"))
        assert ingested.code == 0, ingested.err
        write_thumbs(workspace.root / "thumbs.jsonl")
        write_guides_reward(workspace.root / "rewards.py")
        here = ("--set", f"reference.base={base}", "--set", f"judge.llm.base_url={judge.url}")
        done = workspace.run("retrain", "--params", SIZES, *here, "--json")
        assert done.code == 0, done.err
        facts = [read_artifact(workspace.root / path).facts for path in ("models/base", "models/policy")]
        return Ran(workspace, recipe, done.payload, *facts)

    return run


def choices_of(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What a recipe chooses, by dotted key, without what the sizes say, for one training or for all."""
    sized = {key for key, _ in flatten(read_yaml(SIZES))} | {"reference.base"}
    return {
        key: value
        for key, value in flatten(recipe)
        if key not in sized and ".".join(shared_key(key.split(".")) or ()) not in sized
    }


def holds(found: Any, chosen: Any) -> bool:
    """Whether a value is what was chosen; of sections in a list, only what was chosen of each."""
    if isinstance(chosen, list) and isinstance(found, list):
        return len(found) == len(chosen) and all(map(holds, found, chosen))
    if isinstance(chosen, dict) and isinstance(found, dict):
        return all(key in found and holds(found[key], value) for key, value in chosen.items())
    return bool(found == chosen)


def check_choices(ran: Ran) -> None:
    """What the recipe chooses is in force, and differs from the defaults if they do not say the same."""
    shown = ran.workspace.run("params", "--diff", "--json")
    assert shown.code == 0, shown.err
    differing = {row["key"]: row["value"] for row in shown.payload["params"]}
    choices = choices_of(ran.recipe)
    in_force = {key: differing.get(key, DEFAULTS.get(key)) for key in choices}
    assert {key: in_force[key] for key, chosen in choices.items() if not holds(in_force[key], chosen)} == {}
    assert differing.keys() & choices.keys()
    assert ran.policy["method"] == "+".join(ran.methods)
    for settings in ran.settings:
        assert settings["bf16"] is True
        assert settings["gradient_checkpointing"] is True


def check_model(ran: Ran) -> None:
    """The policy is of the base's architecture, its numbers are finite, and as much was trained as the recipe says."""
    root = ran.workspace.root
    (architecture,) = {
        name
        for folder in ("base", "reference", "policy")
        for name in orjson.loads((root / "models" / folder / "config.json").read_bytes())["architectures"]
    }
    assert architecture == family_of(ran.recipe["reference"]["base"]).class_name
    weights = load_file(root / "models/policy/model.safetensors")
    assert all(np.isfinite(tensor).all() for tensor in weights.values())
    curve = ran.workspace.lines("models/policy/training.jsonl")
    assert all(math.isfinite(value) for row in curve for value in row.values() if isinstance(value, float))
    check_adapters(ran)


def check_adapters(ran: Ran) -> None:
    """A recipe with adapters trains them alone, of its rank, and leaves them beside the merged weights."""
    adapter = ran.workspace.root / "models/policy/adapter"
    lora = ran.settings[-1]["lora"]
    trained = ran.policy["stages"]["3-ppo"] if "stages" in ran.policy else ran.policy
    if lora is None:
        assert trained["trained_parameters"] == ran.base["parameters"]
        assert not adapter.exists()
        return
    assert orjson.loads((adapter / "adapter_config.json").read_bytes())["r"] == lora["r"] == 16
    matrices = load_file(adapter / "adapter_model.safetensors")
    assert sum(matrix.size for matrix in matrices.values()) == trained["trained_parameters"] < ran.base["parameters"]
    assert any(matrix.any() for name, matrix in matrices.items() if "lora_B" in name)  # zeros before training


def gradients(ran: Ran) -> list[float]:
    """The norm of the gradient at each optimiser step."""
    return [row["grad_norm"] for row in ran.workspace.lines("models/policy/training.jsonl")]


def learned(ran: Ran) -> bool:
    """Whether every step had a gradient to follow, and the policy has other weights than π_ref."""
    models = ran.workspace.root / "models"
    policy, reference = (load_file(models / name / "model.safetensors") for name in ("policy", "reference"))
    return min(gradients(ran)) > 0.1 and any((tensor != reference[name]).any() for name, tensor in policy.items())


def about_dpo(ran: Ran, judge: Server) -> None:
    assert learned(ran)
    assert ran.policy["pairs"]["train"] == TRAINED


def about_a_language_model_that_ranks(ran: Ran, judge: Server) -> None:
    """It agrees with people, who also prefer what is good; each question ranks a pair or a whole group of four."""
    assert learned(ran)
    assert (ran.policy["ranking"]["judge"], ran.policy["ranking"]["kappa"]) == ("llm", 1)
    assert ran.policy["ranking"]["gains"] == "schedule"
    asked = judge.requests
    assert all("Rank the" in request["messages"][1]["content"] for request in asked)
    assert {len(shown(request)) for request in asked} >= {2, 4}
    assert ran.policy["totals"]["groups"] * 4 == ran.policy["totals"]["completions"]


def about_a_function_that_verifies(ran: Ran, judge: Server) -> None:
    """The guide's function knows the sum. No random completion solves it: all groups tie, and are replaced twice."""
    assert (ran.policy["ranking"]["judge"], ran.policy["ranking"]["kappa"]) == ("rule", 1)
    totals = ran.policy["totals"]
    assert totals["gains/tied"] == totals["gains/groups"] == 3 * totals["zero_variance"]
    assert totals["resampled"] == 2 * totals["zero_variance"] > 0
    assert max(gradients(ran)) < 1e-6
    assert not judge.requests


def about_a_held_out_judge(ran: Ran, judge: Server) -> None:
    assert learned(ran)
    assert (ran.policy["held_out_judge"], ran.policy["optimised_against_judge"]) == ("held_out", False)
    assert (ran.workspace.root / "models/reward/held_out/model.safetensors").is_file()
    terms = {term["name"]: term["weight"] for term in ran.policy["reward_terms"]}
    assert terms == {"reward_model": 1.0, "length_penalty": 0.5, "repetition_penalty": 0.5}


def about_a_stack(ran: Ran, judge: Server) -> None:
    """Each method starts from the one before it; π_ref is the base after imitation."""
    assert learned(ran)
    first, second, third = ran.policy["stages"].values()
    assert first["start_weights"] == ran.policy["reference_weights"]
    assert (second["start_weights"], third["start_weights"]) == (first["policy_weights"], second["policy_weights"])
    assert (
        len({first["start_weights"], first["policy_weights"], second["policy_weights"], third["policy_weights"]}) == 4
    )
    assert read_artifact(ran.workspace.root / "models/reference").facts["steps"] > 0


def about_thumbs(ran: Ran, judge: Server) -> None:
    """Of 24 thumbs every third is down. A pair gives a desirable response and an undesirable one."""
    assert learned(ran)
    assert ran.policy["examples"] == {"desirable": TRAINED + 16, "undesirable": TRAINED + 8}


ABOUT: Mapping[str, Callable[[Ran, Server], None]] = {
    "dpo-full-0.5b": about_dpo,
    "dpo-lora-8b": about_dpo,
    "grpo-judge-1.5b": about_a_language_model_that_ranks,
    "grpo-verifiable-1.5b": about_a_function_that_verifies,
    "kto-thumbs": about_thumbs,
    "ppo-lora-1b": about_a_held_out_judge,
    "sft-dpo-ppo": about_a_stack,
}


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_registers_a_model_of_its_architecture(
    name: str, run_recipe: Callable[[str], Ran], judge: Server
) -> None:
    judge.requests.clear()
    ran = run_recipe(name)
    assert ran.payload["gate"]["passed"] is True, ran.payload["gate"]["reasons"]
    assert ran.payload["first_champion"]["promoted"] is True
    check_choices(ran)
    check_model(ran)
    ABOUT[name](ran, judge)
