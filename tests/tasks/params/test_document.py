from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from plumbline.data_contracts.errors import ParamsError, UsageError
from plumbline.tasks.params.describe import render_params
from plumbline.tasks.params.document import save_params, without
from plumbline.tasks.params.layers import load_layers, load_params
from plumbline.tasks.params.section import PARAMS_FILE
from plumbline.tasks.params.whole import Params


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A workspace whose `params.yaml` holds every param, with its comment."""
    (tmp_path / PARAMS_FILE).write_text(render_params(Params()))
    return tmp_path


@pytest.fixture
def choices(tmp_path: Path) -> Path:
    """A workspace whose `params.yaml` holds two choices."""
    (tmp_path / PARAMS_FILE).write_text("# mine\nseed: 3\n\n# why\nfinetune:\n  dpo:\n    beta: 0.2\n")
    return tmp_path


def test_the_rendered_defaults_are_the_defaults(root: Path) -> None:
    assert load_params(root)[0] == Params()


def test_every_key_is_documented(root: Path) -> None:
    """A comment stands above each key of the rendered file."""
    lines = render_params(Params()).splitlines()
    bare = [
        line
        for before, line in itertools.pairwise(lines)
        if re.match(r"[ -]*\w+:", line) and not before.lstrip().startswith("#")
    ]
    assert bare == []


def test_overlays_then_settings_win_and_are_written_back_with_comments(root: Path) -> None:
    overlay = root / "overlay.yaml"
    overlay.write_text("seed: 3\nfinetune:\n  dpo:\n    beta: 0.2\n")
    params, document = load_params(root, [overlay], ["finetune.dpo.beta=0.3"])
    assert (params.seed, params.finetune.dpo.beta) == (3, 0.3)

    changed = save_params(root, document)
    assert changed == ["seed: 17 -> 3", f"finetune.dpo.beta: {Params().finetune.dpo.beta!r} -> 0.3"]
    assert load_params(root)[0] == params
    text = (root / PARAMS_FILE).read_text()
    assert text.count("#") == render_params(Params()).count("#")


def test_writing_back_without_a_change_leaves_the_bytes(root: Path) -> None:
    before = (root / PARAMS_FILE).read_bytes()
    _, document = load_params(root, [], ["seed=17"])
    assert save_params(root, document) == []
    assert (root / PARAMS_FILE).read_bytes() == before


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("finetune.dpo.betta=0.1", r"finetune\.dpo\.betta: unknown key; did you mean 'beta'\?"),
        ("finetune.dpo.beta=-1", r"finetune\.dpo\.beta: Input should be greater than 0; found -1"),
        ("threads=0", "threads: Input should be greater than or equal to 1; found 0"),
        ("finetune.methods=[ppa]", "finetune.methods.0: Input should be 'sft', 'dpo', .*; found 'ppa'"),
        ("finetune=3", "--set finetune=3: finetune is a section with keys"),
        ("recipe=none-such", "recipe: expected the name of a recipe in params/"),
        ("recipe=../secrets", "recipe: expected the name of a recipe in params/"),
        ("seed", "expected KEY=VALUE"),
        ("seed=[1", "not readable as YAML"),
        ("nonsense=1", "nonsense: unknown key; known keys: recipe, seed"),
    ],
)
def test_a_wrong_setting_names_key_value_and_remedy(root: Path, setting: str, message: str) -> None:
    with pytest.raises(ParamsError, match=message) as caught:
        load_params(root, [], [setting])
    assert caught.value.exit_code == 2


def test_a_wrong_key_in_the_file_names_file_and_line(root: Path) -> None:
    path = root / PARAMS_FILE
    lines = path.read_text().splitlines()
    number = next(index for index, line in enumerate(lines) if line.startswith("threads:"))
    lines[number] = "threats: 1"
    path.write_text("\n".join(lines))
    with pytest.raises(ParamsError, match=rf"params\.yaml:{number + 1}: threats: unknown key; did you mean 'threads'"):
        load_params(root)


@pytest.mark.parametrize(
    ("text", "message"), [("seed: [", "could not read it"), ("- 1\n", "expected a YAML mapping of params, found")]
)
def test_an_unreadable_file_is_named(root: Path, text: str, message: str) -> None:
    (root / PARAMS_FILE).write_text(text)
    with pytest.raises(ParamsError, match=message):
        load_params(root)


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="plumbline init"):
        load_params(tmp_path)


@pytest.mark.parametrize("how", ["setting", "overlay"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mixture.terms", "[{kind: function, function: mod:f}]"),
        ("mixture.terms", "[{kind: compliance, must: ['^a: b #', '[a-z]{2}: @', '- ']}]"),
        ("judge.llm.extra_body", "{a: {b: [1, {c: d:e}]}, f: null, g: 'yes'}"),
        ("compare.variants", "{hot: {finetune.dpo.learning_rate: 0.001}}"),
        ("finetune.methods", "[sft, dpo]"),
    ],
)
def test_what_is_set_stands_in_block_style_as_dvc_reads_it(root: Path, key: str, value: str, how: str) -> None:
    """DVC reads params by `YAML(typ="safe")`, which is libyaml and refuses `{function: mod:f}`."""
    from dvc.utils.serialize import parse_yaml

    overlay = root / "overlay.yaml"
    *heads, last = key.split(".")
    nested = "".join(f"{'  ' * depth}{head}:\n" for depth, head in enumerate(heads))
    overlay.write_text(f"{nested}{'  ' * len(heads)}{last}: {value}\n")
    given = ([overlay], []) if how == "overlay" else ([], [f"{key}={value}"])
    params, document = load_params(root, *given)
    assert save_params(root, document)
    text = (root / PARAMS_FILE).read_text()
    assert parse_yaml(text, PARAMS_FILE) == document
    assert load_params(root)[0] == params
    line = next(line for line in text.splitlines() if line.strip().startswith(f"{last}:"))
    assert line.strip() == f"{last}:"


def test_a_list_takes_the_comments_of_its_first_item_along(root: Path) -> None:
    _, document = load_params(root, [], ["mixture.terms=[{kind: brevity}]"])
    save_params(root, document)
    text = (root / PARAMS_FILE).read_text()
    assert "  terms:\n  - kind: brevity\n" in text


@pytest.mark.parametrize(
    "settings",
    [
        ["finetune.methods=[ppo]"],
        ["finetune.methods=[sft, dpo, ppo]", "finetune.methods=[dpo]"],
        ["compare.seeds=[1, 2]", "compare.seeds=[]", "compare.seeds=[3]"],
        ["compare.betas=[0.1]", "compare.betas=[0.1, 0.2, 0.3]"],
        ["compare.variants={a: {finetune.dpo.beta: 0.2}}", "compare.variants={b: {finetune.dpo.beta: 0.3}}"],
        ["reward.optim=sgd", "reward.adam_beta1=0.8"],
        ["serving.safety.violations=[a, b]", "serving.safety.asks=[]"],
        ["finetune.formats.temperatures=[0.7, 1.0]", "finetune.formats.temperatures=[1.0]"],
    ],
)
def test_what_follows_a_list_keeps_its_comment(root: Path, settings: list[str]) -> None:
    """Comments stay, in their order: ruamel keeps the one above the next key inside the list."""
    from dvc.utils.serialize import parse_yaml

    before = comments_of(root)
    for setting in settings:
        _, document = load_params(root, [], [setting])
        save_params(root, document)
        assert comments_of(root) == before
        assert parse_yaml((root / PARAMS_FILE).read_text(), PARAMS_FILE) == document


def test_comments_on_the_items_of_a_list_go_with_it_and_those_of_an_overlay_come(root: Path, tmp_path: Path) -> None:
    path = root / PARAMS_FILE
    path.write_text(path.read_text().replace("  - dpo\n", "  - dpo  # as in the paper\n"))
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("finetune:\n  methods:\n  - sft  # first\n  - dpo  # then\n")
    _, document = load_params(root, [overlay], [])
    save_params(root, document)
    text = path.read_text()
    assert "  - sft  # first\n  - dpo  # then\n  # What a later method is tied to" in text
    assert "as in the paper" not in text


def comments_of(root: Path) -> list[str]:
    return [line for line in (root / PARAMS_FILE).read_text().splitlines() if line.strip().startswith("#")]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("finetune.dpo.optim=!x sgd", r"params\.yaml: expected params that DVC can read.*leave tags"),
        (
            'finetune.dpo.optim="a\\u0085b"',  # libyaml takes it for the end of a line
            r"DVC reads as we do.*optim: 'a b' in place of 'a\\x85b'",
        ),
    ],
)
def test_what_dvc_could_not_read_back_is_not_written(root: Path, setting: str, message: str) -> None:
    before = (root / PARAMS_FILE).read_bytes()
    _, document = load_params(root, [], [setting])
    with pytest.raises(ParamsError, match=re.compile(message, re.DOTALL)) as caught:
        save_params(root, document)
    assert caught.value.exit_code == 2
    assert (root / PARAMS_FILE).read_bytes() == before


def test_a_file_edited_beyond_dvc_is_named_before_dvc_calls_it_corrupted_and_a_setting_mends_it(root: Path) -> None:
    file = root / PARAMS_FILE
    file.write_text("mixture:\n  terms: [{kind: function, function: mod:f}]\n")
    with pytest.raises(ParamsError, match="expected params that DVC can read"):
        save_params(root, load_params(root)[1])
    save_params(root, load_params(root, [], ["mixture.terms=[{kind: function, function: mod:g}]"])[1])
    assert YAML(typ="safe").load(file.read_text()) == {
        "mixture": {"terms": [{"kind": "function", "function": "mod:g"}]}
    }


# --- choices, recipes, defaults ---------------------------------------------------------------------------------------


def test_what_is_not_chosen_is_a_default(choices: Path) -> None:
    params, _ = load_params(choices)
    assert params == Params(seed=3, finetune={"dpo": {"beta": 0.2}})


def test_a_part_of_a_section_leaves_the_rest_of_it_as_its_method_has_it(choices: Path) -> None:
    """GRPO's `kl` has defaults of its own, other than those of its class."""
    kl = load_params(choices, (), ["finetune.grpo.kl.target=0.12"])[0].finetune.grpo.kl
    assert kl == Params().finetune.grpo.kl.model_copy(update={"target": 0.12})


def test_a_section_whose_lines_are_all_comments_chooses_nothing(choices: Path) -> None:
    recipe(choices, "mine", "reference:\n  base: some/model\n")
    (choices / PARAMS_FILE).write_text("recipe: mine\nreference:\n  # base: other/model\nreward:\n")
    params, _ = load_params(choices)
    assert params == Params(recipe="mine", reference={"base": "some/model"})


def test_null_turns_off_a_section_that_can_be_off(choices: Path) -> None:
    assert Params().finetune.dpo.early_stopping is not None
    assert load_params(choices, (), ["finetune.dpo.early_stopping=null"])[0].finetune.dpo.early_stopping is None


def test_a_recipe_stands_below_the_file_and_above_the_defaults(choices: Path) -> None:
    recipe(choices, "mine", "seed: 5\nthreads: 2\nfinetune:\n  dpo:\n    beta: 0.05\n    sft_weight: 0.7\n")
    params, document = load_params(choices, (), ["recipe=mine"])
    assert (params.seed, params.threads, params.finetune.dpo.beta, params.finetune.dpo.sft_weight) == (3, 2, 0.2, 0.7)
    assert "threads" not in document, "params.yaml names the recipe, and does not repeat it"


def test_once_wins_and_is_not_kept(choices: Path) -> None:
    params, document = load_params(choices, (), ["seed=4"], ["seed=5", "threads=2"])
    assert (params.seed, params.threads) == (5, 2)
    assert save_params(choices, document) == ["seed: 3 -> 4"]
    assert "threads" not in (choices / PARAMS_FILE).read_text()


def test_each_value_knows_its_place(choices: Path) -> None:
    recipe(choices, "mine", "threads: 2\n")
    layers = load_layers(choices, (), ["recipe=mine"], ["reward.init=reference"])
    assert layers.place_of(["seed"]) == f"{choices / PARAMS_FILE}:2"
    assert layers.place_of(["finetune", "dpo", "beta"]) == f"{choices / PARAMS_FILE}:7"
    assert layers.place_of(["threads"]) == f"{choices / 'params/mine.yaml'}:1"
    assert layers.place_of(["recipe"]) == "--set recipe=mine"
    assert layers.place_of(["reward", "init"]) == "--once reward.init=reference"
    assert layers.place_of(["reward", "audit"]) is None


def test_a_mistake_in_a_recipe_names_the_recipe_and_its_line(choices: Path) -> None:
    recipe(choices, "mine", "\nthreads: 0\nthreats: 1\n")
    with pytest.raises(ParamsError) as caught:
        load_params(choices, (), ["recipe=mine"])
    file = choices / "params/mine.yaml"
    assert (
        str(caught.value).splitlines()[0].startswith(f"{file}:2: threads: Input should be greater than or equal to 1")
    )
    assert f"{file}:3: threats: unknown key" in str(caught.value)


def test_a_recipe_names_no_other(choices: Path) -> None:
    recipe(choices, "mine", "recipe: other\n")
    with pytest.raises(ParamsError, match="a recipe names no other recipe"):
        load_params(choices, (), ["recipe=mine"])


def test_a_key_is_removed_with_the_sections_it_leaves_empty(choices: Path) -> None:
    document = load_layers(choices, (), ["finetune.methods=[ppo]"]).document
    assert without(document, "finetune.dpo.beta")
    assert not without(document, "finetune.dpo.beta")
    assert not without(document, "seed.more")
    assert document == {"seed": 3, "finetune": {"methods": ["ppo"]}}
    assert save_params(choices, document) == [
        "finetune.dpo.beta: 0.2 -> not set",
        "finetune.methods: not set -> ['ppo']",
    ]
    assert (choices / PARAMS_FILE).read_text().startswith("# mine\nseed: 3\n\n# why\nfinetune:\n")


def recipe(root: Path, name: str, text: str) -> None:
    (root / "params").mkdir(exist_ok=True)
    (root / "params" / f"{name}.yaml").write_text(text)


# --- what trainings share ---------------------------------------------------------------------------------------------


def test_a_shared_value_reaches_each_training_and_names_its_place(choices: Path) -> None:
    layers = load_layers(choices, (), ["training.bf16=true"])
    params = layers.validate()
    assert params.reward.bf16 and params.reference.sft.bf16 and params.finetune.dpo.bf16 and params.finetune.ppo.bf16
    assert layers.place_of(["finetune", "dpo", "bf16"]) == "--set training.bf16=true"
    assert layers.place_of(["finetune", "ppo", "logging_steps"]) is None


def test_in_one_layer_the_training_itself_comes_first_and_a_stronger_layer_before_a_weaker_one(choices: Path) -> None:
    recipe(choices, "mine", "training:\n  max_length: 64\nfinetune:\n  dpo:\n    max_length: 128\n")
    params, _ = load_params(choices, (), ["recipe=mine"])
    assert (params.reward.max_length, params.finetune.dpo.max_length, params.finetune.sft.max_length) == (64, 128, 64)
    over, _ = load_params(choices, (), ["recipe=mine"], ["training.max_length=256"])
    assert (over.reward.max_length, over.finetune.dpo.max_length) == (256, 256)


def test_a_method_that_does_not_run_takes_a_shared_value_only_if_it_fits(choices: Path) -> None:
    """GRPO needs rollouts of whole groups: 3 x 1 completions are no multiple of 8."""
    shared = ["training.per_device_train_batch_size=3"]
    params, _ = load_params(choices, (), shared)
    assert params.finetune.dpo.per_device_train_batch_size == 3
    assert params.finetune.grpo == Params().finetune.grpo
    with pytest.raises(ParamsError, match="does not divide into groups"):
        load_params(choices, (), [*shared, "finetune.methods=[grpo]"])
