"""A real pretrained model learns a taste: PPO and GRPO make stories260K continue children's stories more cheerfully.

The reward is VADER's compound sentiment (Hutto & Gilbert 2014) of the continuation, in [-1, 1], given to the methods as
any user would: as a Python function in a reward mixture (PPO) and as a rule judge over groups (GRPO). Measured on
beginnings that training never saw: mean sentiment before and after with a paired 95 % bootstrap interval, Wilcoxon's
signed-rank test, KL from the untouched model in nats per token, and samples of both.

    python -m benchmarks.story_sentiment [--methods ppo grpo] [--seed 17] [--json]
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plumbline.data_contracts.records import CuratedPair
    from plumbline.tasks.training.finetuning.methods import FinetuneInputs

MODEL = Path(__file__).resolve().parents[2] / "shared" / "models" / "stories260K"
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] }}{% endif %}{% endfor %}"
)
"""No roles, no marks: what the user says is the beginning of a story, what the assistant says continues it."""

NEW_TOKENS = 48
HELD_OUT = 512
VALIDATION = 128
WHO = ("girl", "boy", "dog", "cat", "bird", "bear", "rabbit", "mouse", "fox", "frog", "duck", "pig")
NAMES = ("Lily", "Tom", "Sue", "Max", "Mia", "Ben", "Anna", "Tim", "Lucy", "Sam", "Jack", "Amy")
WANTS = (
    "liked to play with",
    "wanted to find",
    "went to the park with",
    "was looking at",
    "had lost",
    "walked home with",
    "was afraid of",
    "saw",
)
THINGS = ("a red ball", "a big tree", "a toy car", "a small box", "a friend", "a hat", "a boat", "the rain")


def sentiment(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
    """VADER's compound score of each completion, in [-1, 1]; a reward function in TRL's signature."""
    analyser = _analyser()
    return [float(analyser.polarity_scores(turns[-1]["content"])["compound"]) for turns in completions]


@functools.lru_cache(maxsize=1)
def _analyser() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


def score(prompts: Sequence[Any], responses: Sequence[str]) -> list[float]:
    """The same for plain texts."""
    return sentiment(prompts, [[{"content": response}] for response in responses])


def beginnings(seed: int) -> list[str]:
    """Every combination of the parts of a beginning, in an order fixed by the seed."""
    texts = [
        f"Once upon a time, there was a little {who} named {name}. One day, {name} {wanted} {thing}."
        for who, name, wanted, thing in itertools.product(WHO, NAMES, WANTS, THINGS)
    ]
    random.Random(seed).shuffle(texts)
    return texts


def prepare(folder: Path) -> Path:
    """A copy of the model with `TEMPLATE`."""
    from plumbline.tasks.models.loading import load_policy, load_tokenizer, save_model

    tokenizer = load_tokenizer(MODEL)
    tokenizer.chat_template = TEMPLATE
    save_model(load_policy(MODEL), tokenizer, folder)
    return folder


def as_pairs(texts: Sequence[str]) -> list[CuratedPair]:
    """Beginnings in the record that methods read; on-policy methods look at the prompt alone."""
    from plumbline.data_contracts.records import CuratedPair, Message, Origin

    return [
        CuratedPair(
            id=f"story-{row}",
            prompt=(Message(role="user", content=text),),
            chosen="yes",
            rejected="no",
            source="stories",
            origin=Origin(file="made", line=row + 1),
            cluster=str(row),
        )
        for row, text in enumerate(texts)
    ]


def learn(method: str, reference: Path, folder: Path, texts: Sequence[str], seed: int) -> tuple[Path, dict[str, Any]]:
    """Fine-tune with one method; the folder of the policy, and facts."""
    from plumbline.tasks.training.finetuning.methods import METHODS, FinetuneInputs

    policy = folder / method
    policy.mkdir()
    inputs = FinetuneInputs(
        start=reference,
        reference=reference,
        train=as_pairs(texts[HELD_OUT + VALIDATION :]),
        validation=as_pairs(texts[HELD_OUT : HELD_OUT + VALIDATION]),
        judge=score,
        seed=seed,
        threads=1,
        folder=policy,
        work=folder / f"{method}-work",
    )
    started = time.process_time()
    facts = METHODS[method].run(_with_rewards(inputs), _params(method))
    return policy, facts | {"cpu_s": time.process_time() - started}


def _with_rewards(inputs: FinetuneInputs) -> FinetuneInputs:
    from plumbline.tasks.params.gains import GainParams
    from plumbline.tasks.params.judge import JudgeParams
    from plumbline.tasks.params.mixture import MixtureParams
    from plumbline.tasks.training.rewards.gains import build_gains
    from plumbline.tasks.training.rewards.judges.build import JudgeMeans, build_judge
    from plumbline.tasks.training.rewards.mixture import build_mixture

    term = {"kind": "function", "function": "benchmarks.story_sentiment:sentiment", "name": "sentiment"}
    reward = build_mixture(MixtureParams.model_validate({"terms": [term | {"normalise": "reference"}]}), None)
    rules = JudgeParams.model_validate({"kind": "rule", "rule": {"terms": [term | {"normalise": "none"}]}})
    judge = build_judge(rules, JudgeMeans(None, inputs.work / "answers"))
    gains = build_gains(GainParams(kind="schedule"), None)
    return dataclasses.replace(inputs, reward=reward, ranker=judge, gains=gains)


def _params(method: str) -> Any:
    from benchmarks.sample_world import world_params
    from plumbline.tasks.params.finetuning import FinetuneParams

    shared: dict[str, Any] = {
        "max_completion_length": NEW_TOKENS,
        "validation": {"prompts": VALIDATION, "max_new_tokens": NEW_TOKENS},
    }
    sections: dict[str, dict[str, Any]] = {
        "ppo": {
            "total_episodes": 1536,
            "critic_init": "reference",
            "learning_rate": 3e-4,
            "best_within_kl": 0.2,
            "eval_steps": 2,
            "shaping": {"missing_eos": "none"},
        },
        "grpo": {"learning_rate": 3e-4, "best_within_kl": 0.2},
    }
    world = world_params().finetune.model_dump()
    section = {**world[method], **shared, **sections[method]}
    return FinetuneParams.model_validate({"methods": [method], method: section})


def answers(folder: Path, texts: Sequence[str], seed: int) -> tuple[list[str], Any]:
    """Continuations of held-out beginnings, and the model's log-probabilities of any tokens."""
    from plumbline.tasks.models.loading import load_policy, load_tokenizer
    from plumbline.tasks.models.sampling import sample

    model, tokenizer = load_policy(folder), load_tokenizer(folder)
    drawn = sample(
        model,
        tokenizer,
        [pair.prompt for pair in as_pairs(texts)],
        max_new_tokens=NEW_TOKENS,
        temperature=1.0,
        top_p=1.0,
        seed=seed,
        batch_size=128,
    )
    return [each.text for each in drawn], (model, tokenizer, drawn)


def kl_per_token(policy: Any, reference: Any, texts: Sequence[str]) -> float:
    """KL(policy ‖ reference) in nats per token: mean log-ratio of the policy's own tokens."""
    import torch

    from plumbline.tasks.models.chat import encode_prompts
    from plumbline.tasks.models.logps import token_logps

    model, tokenizer, drawn = policy
    heads = encode_prompts(tokenizer, [pair.prompt for pair in as_pairs(texts)])
    sides = [(head, each.token_ids) for head, each in zip(heads, drawn, strict=True)]
    logps = [torch.cat(token_logps(each, sides, max_length=512, batch_size=128)) for each in (model, reference[0])]
    return float((logps[0] - logps[1]).mean())


def measure(policy: Path, reference: Path, texts: Sequence[str], seed: int) -> dict[str, Any]:
    """Sentiment of both on held-out beginnings, drawn independently."""
    import numpy as np
    from scipy.stats import wilcoxon

    from plumbline.tasks.statistics import paired_bootstrap

    (before, frozen), (after, tuned) = answers(reference, texts, seed + 1), answers(policy, texts, seed + 2)
    scores = np.array([score(texts, before), score(texts, after)])
    gain, low, high = paired_bootstrap(scores[1] - scores[0], 0.95, 2000, seed)
    return {
        "prompts": len(texts),
        "sentiment_before": float(scores[0].mean()),
        "sentiment_after": float(scores[1].mean()),
        "gain": {"value": gain, "low": low, "high": high},
        "wilcoxon_p": float(wilcoxon(scores[1], scores[0], alternative="greater").pvalue),
        "win_rate": float(((scores[1] > scores[0]) + 0.5 * (scores[1] == scores[0])).mean()),
        "kl_nats_per_token": kl_per_token(tuned, frozen, texts),
        "samples": [
            {"prompt": text, "before": one, "after": other}
            for text, one, other in zip(texts[:4], before, after, strict=False)
        ],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["ppo", "grpo"], choices=["ppo", "grpo"])
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if not MODEL.is_dir():
        parser.error(f"{MODEL}: expected the pretrained model stories260K there, found no such folder.")
    texts = beginnings(options.seed)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        reference = prepare(Path(folder) / "reference")
        for method in options.methods:
            policy, facts = learn(method, reference, Path(folder), texts, options.seed)
            results[method] = measure(policy, reference, texts[:HELD_OUT], options.seed) | {
                "cpu_s": facts["cpu_s"],
                "best": facts["best"],
                "evaluations": facts["evaluations"],
            }
    if options.json:
        json.dump(results, sys.stdout, indent=1)
        return 0
    for method, found in results.items():
        gain = found["gain"]
        print(
            f"{method}: sentiment {found['sentiment_before']:.3f} -> {found['sentiment_after']:.3f}, "
            f"gain {gain['value']:.3f} [{gain['low']:.3f}, {gain['high']:.3f}], p {found['wilcoxon_p']:.1e}, "
            f"win rate {found['win_rate']:.3f}, KL {found['kl_nats_per_token']:.3f} nats/token, "
            f"{found['cpu_s']:.0f} CPU s"
        )
        for sample_ in found["samples"]:
            print(f"  {sample_['prompt']}\n    before: {sample_['before']}\n    after:  {sample_['after']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
