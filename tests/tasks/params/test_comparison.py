from __future__ import annotations

import pytest
from pydantic import ValidationError

from plumbline.data_contracts.errors import ParamsError
from plumbline.tasks.evaluation.comparison.variants import Variant, settled
from plumbline.tasks.evaluation.comparison.variants import variants_of as _variants_of
from plumbline.tasks.params.comparison import CompareParams

DOCUMENT = {"seed": 17, "finetune": {"methods": ["dpo"], "dpo": {"beta": 0.1, "learning_rate": 0.001}}}


def variants_of(params: CompareParams, ppo_episodes: int = 7680) -> list[Variant]:
    return _variants_of(params, ppo_episodes=ppo_episodes, an_update=64)


def test_the_beta_sweep_is_dpo_at_each_beta() -> None:
    found = variants_of(CompareParams(betas=(0.05, 0.5)))
    assert [(variant.name, dict(variant.settings)) for variant in found] == [
        ("dpo-beta-0.05", {"finetune.methods": ["dpo"], "finetune.dpo.beta": 0.05}),
        ("dpo-beta-0.5", {"finetune.methods": ["dpo"], "finetune.dpo.beta": 0.5}),
    ]


def test_methods_are_compared_one_each_and_custom_variants_follow() -> None:
    params = CompareParams(preset="methods", variants={"stack": {"finetune.methods": ["dpo", "ppo"]}})
    assert [variant.name for variant in variants_of(params)] == ["dpo", "grpo", "ppo", "dpo_ppo", "stack"]


@pytest.mark.parametrize(("alone", "after_dpo"), [(7680, 2560), (64, 64)])
def test_ppo_after_dpo_is_shorter_in_whole_updates(alone: int, after_dpo: int) -> None:
    """0.33 of 120 updates are 39.6, rounded to 40 of 64 episodes; at least one."""
    found = {variant.name: dict(variant.settings) for variant in variants_of(CompareParams(preset="methods"), alone)}
    assert found["dpo_ppo"] == {"finetune.methods": ["dpo", "ppo"], "finetune.ppo.total_episodes": after_dpo}


def test_nested_settings_are_dotted_ones() -> None:
    """As `--set compare.variants.hot.finetune.dpo.learning_rate=0.01` brings them."""
    params = CompareParams(variants={"hot": {"finetune": {"dpo": {"learning_rate": 0.01}}}})
    assert params.variants == {"hot": {"finetune.dpo.learning_rate": 0.01}}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"preset": None}, "nothing to compare"),
        ({"betas": (0.1, 0.1)}, "betas: expected different values"),
        ({"seeds": (1, 1)}, "seeds: expected different values"),
        ({"seeds": (-1,)}, "seeds: expected numbers from 0"),
        ({"variants": {"a/b": {}}}, "a name is letters"),
        ({"variants": {"..": {}}}, "a name is letters"),
        ({"variants": {"a": 3}}, "dictionary"),
        ({"parallel": 0}, "greater than or equal to 1"),
        ({"price_cpu_hour": 0}, "greater than 0"),
    ],
)
def test_what_cannot_be_compared_is_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CompareParams.model_validate(given)


def test_a_name_of_the_preset_is_taken() -> None:
    with pytest.raises(ParamsError, match=r"dpo-beta-0\.1 is already a variant of the preset beta_sweep"):
        variants_of(CompareParams(variants={"dpo-beta-0.1": {}}))


def test_settings_are_merged_into_a_copy() -> None:
    found = settled(
        DOCUMENT, Variant("hot", {"finetune.dpo.learning_rate": 0.01, "finetune.ppo.beta": 1}), ["finetune"]
    )
    assert found == {
        "seed": 17,
        "finetune": {"methods": ["dpo"], "dpo": {"beta": 0.1, "learning_rate": 0.01}, "ppo": {"beta": 1}},
    }
    assert DOCUMENT["finetune"] == {"methods": ["dpo"], "dpo": {"beta": 0.1, "learning_rate": 0.001}}


@pytest.mark.parametrize("key", ["seed", "reward.learning_rate", "evaluation.max_prompts", "finetuned.dpo"])
def test_what_the_variants_share_cannot_differ(key: str) -> None:
    with pytest.raises(
        ParamsError, match=f"compare.variants.hot: {key}: expected a key of finetune, which fine-tuning"
    ):
        settled(DOCUMENT, Variant("hot", {key: 1}), ["finetune"])


def test_a_key_below_a_value_is_refused() -> None:
    with pytest.raises(ParamsError, match=r"finetune\.dpo\.beta\.x: beta is no section"):
        settled(DOCUMENT, Variant("hot", {"finetune.dpo.beta.x": 1}), ["finetune"])
