"""Verb: champion and challenger answer the same test prompts, and the challenger's judge says which answer is better.

The prompts are those of the challenger's own test split, which it never trained on. The champion may have: every
cluster of prompts of which the champion saw a record or a prompt in training or selection is left out, and counted.
The judge is the challenger's (its held-out judge, or its reward model), and so likes what the challenger was trained
for; the answer names it. Everything comes from the registered, verified versions and from DVC by hash, whatever the
workspace holds now. The outcome is an artifact under `.plumbline/promotion`, named by all that it depends on.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from filelock import FileLock

from plumbline.data_contracts.artifact import read_artifact, verify_artifact, writing
from plumbline.data_contracts.errors import ModelError, StageError
from plumbline.data_contracts.progress import silent
from plumbline.data_contracts.records import CuratedPair, load_jsonl
from plumbline.tasks.params.evaluation import EvaluationParams
from plumbline.tasks.params.lengths import settled
from plumbline.tasks.registry.signing.keys import VerifyingKey, signing_key, verifying_key
from plumbline.tasks.registry.store.client import Store
from plumbline.tasks.registry.versions.registered import MANIFEST_TAG, StoredFiles, Version
from plumbline.tasks.registry.versions.serving_files import verified_model
from plumbline.tasks.storage.versioning.objects import ObjectStore

CONTRACT = "champion_comparison"
SIGNED = "signature"  # of all other facts, by the key that signs versions and ledger
_SEEN = ("train.jsonl", "validation.jsonl")


@dataclass(frozen=True, slots=True)
class Sampling:
    """The sampling of both versions, and its seed."""

    evaluation: EvaluationParams
    seed: int
    threads: int
    trust_remote_code: bool = False

    def limited(self, prompts: int) -> Sampling:
        """The same with at most so many prompts."""
        update = {"max_prompts": prompts}
        return Sampling(self.evaluation.model_copy(update=update), self.seed, self.threads, self.trust_remote_code)


def compare_champion(
    root: Path, store: Store, challenger: Version, champion: Version, sampling: Sampling
) -> dict[str, Any]:
    """Win rate of `challenger` over `champion` with its paired interval, judge, counts; cached by all it depends on.

    Raises `SignatureError` when either is not what was registered, `ModelError` or `StageError` when it cannot be
    measured: another tokenizer, no prompt that the champion has not seen.
    """
    folders = [verified_model(store, version, root) for version in (challenger, champion)]
    manifests = [StoredFiles(store, version).manifest() for version in (challenger, champion)]
    home = root / ".plumbline" / "promotion"
    home.mkdir(parents=True, exist_ok=True)
    path = home / comparison_key(challenger, champion, manifests[0], sampling)
    with FileLock(path.with_suffix(".lock")):
        if not _is_whole(path, verifying_key(store.root, store.params)):
            parents = {version.uri: version.tags[MANIFEST_TAG] for version in (challenger, champion)}
            with writing(path, contract=CONTRACT, version=1, parents=parents) as draft:
                facts = _compare(ObjectStore(root), folders, manifests, sampling, draft.path)
                sign = signing_key(store.root, store.params).sign(_signed(path.name, facts))
                draft.facts = {**facts, SIGNED: sign}
        return {**read_artifact(path, contract=CONTRACT).facts, "artifact": path.relative_to(root).as_posix()}


def measure_latency(root: Path, store: Store, version: Version, sampling: Sampling, answers: int) -> dict[str, Any]:
    """Times of `answers` single answers to test prompts, in ms: {"p50_ms", "p95_ms", "n", "max_new_tokens"}.

    Measured now, on this machine; the first answer warms up and is not counted. Raises as `compare_champion`.
    """
    from plumbline.tasks.models.loading import load_policy, load_tokenizer, seed_everything
    from plumbline.tasks.models.renderable import sift
    from plumbline.tasks.models.sampling import sample

    folder, objects = verified_model(store, version, root), ObjectStore(root)
    test = _pairs(objects, StoredFiles(store, version).manifest()["objects"]["curated"]["md5"], ("test.jsonl",))
    seed_everything(sampling.seed, sampling.threads)
    tokenizer = load_tokenizer(folder, trust_remote_code=sampling.trust_remote_code)
    model = load_policy(folder, trust_remote_code=sampling.trust_remote_code).eval()
    prompts = list(dict.fromkeys(pair.prompt for pair in sift(tokenizer, test)[0]))
    if not prompts:
        raise StageError(f"{version.uri}: expected test prompts to time answers on, found none.")
    params, times = sampling.evaluation, []
    for number in range(answers + 1):
        started = time.perf_counter()
        sample(
            model,
            tokenizer,
            [prompts[number % len(prompts)]],
            max_new_tokens=settled(params.max_new_tokens),
            temperature=params.temperature,
            top_p=params.top_p,
            seed=sampling.seed + number,
            batch_size=1,
        )
        times.append(1000 * (time.perf_counter() - started))
    p50, p95 = (float(np.percentile(times[1:], at)) for at in (50, 95))
    return {"p50_ms": p50, "p95_ms": p95, "n": answers, "max_new_tokens": params.max_new_tokens}


def comparison_key(challenger: Version, champion: Version, manifest: Mapping[str, Any], sampling: Sampling) -> str:
    """SHA-256 (hex, 32 characters) of everything that a comparison depends on."""
    facts = {
        "versions": [challenger.tags[MANIFEST_TAG], champion.tags[MANIFEST_TAG]],
        "data": manifest["objects"]["curated"]["md5"],
        "reward": manifest["objects"]["reward"]["md5"],
        "evaluation": sampling.evaluation.model_dump(mode="json"),
        "seed": sampling.seed,
    }
    return hashlib.sha256(orjson.dumps(facts, option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]


def unseen(test: Sequence[CuratedPair], seen: Sequence[CuratedPair]) -> tuple[list[CuratedPair], dict[str, int]]:
    """Test pairs of clusters of which `seen` has neither a record nor a prompt, and counts of what was left out."""
    records, prompts = {pair.id for pair in seen}, {pair.prompt for pair in seen}
    leaked = {pair.cluster for pair in test if pair.id in records or pair.prompt in prompts}
    kept = [pair for pair in test if pair.cluster not in leaked]
    counts = {"test_pairs": len(test), "leaked_clusters": len(leaked), "leaked_pairs": len(test) - len(kept)}
    return kept, counts


def _is_whole(path: Path, key: VerifyingKey) -> bool:
    """True if a kept comparison is what was measured: else it is measured again. Its win rate opens a gate."""
    if not path.is_dir() or verify_artifact(path):
        return False
    facts = dict(read_artifact(path, contract=CONTRACT).facts)
    signature = facts.pop(SIGNED, None)
    return isinstance(signature, str) and key.accepts(_signed(path.name, facts), signature)


def _signed(name: str, facts: Mapping[str, Any]) -> bytes:
    return orjson.dumps({"purpose": CONTRACT, "key": name, "facts": facts}, option=orjson.OPT_SORT_KEYS)


def _compare(
    objects: ObjectStore,
    folders: Sequence[Path],
    manifests: Sequence[Mapping[str, Any]],
    sampling: Sampling,
    out: Path,
) -> dict[str, Any]:
    datasets = [manifest["objects"]["curated"]["md5"] for manifest in manifests]
    test, counts = unseen(_pairs(objects, datasets[0], ("test.jsonl",)), _pairs(objects, datasets[1], _SEEN))
    if not test:
        raise StageError(
            f"expected test prompts that the champion was not trained on, found none: it saw all of "
            f"{counts['leaked_clusters']} clusters. Add feedback on new prompts, or promote with an override."
        )
    with tempfile.TemporaryDirectory() as scratch:
        reward = Path(scratch) / "reward"
        digest = manifests[0]["objects"]["reward"]["md5"]
        for name, file in objects.listing(digest).items():
            objects.fetch(file, reward / name)
        return _judge(folders, test, reward, sampling, out) | {"leakage": counts}


def _judge(
    folders: Sequence[Path], test: Sequence[CuratedPair], reward: Path, sampling: Sampling, out: Path
) -> dict[str, Any]:
    """Both sampled with the same draws, judged in both positions: what the evaluation does with π_ref."""
    from plumbline.tasks.evaluation.measures.samples import (
        choose_prompts,
        draw,
        only_judgeable,
        score_samples,
        write_samples,
    )
    from plumbline.tasks.evaluation.measures.subjects import load_subjects
    from plumbline.tasks.evaluation.measures.win_rate import Pointwise, win_rate
    from plumbline.tasks.models.loading import seed_everything
    from plumbline.tasks.models.renderable import sift
    from plumbline.tasks.training.rewards.held_out import choose_judge
    from plumbline.tasks.training.rewards.scoring import RewardModel

    params = sampling.evaluation
    seed_everything(sampling.seed, sampling.threads)
    subjects = load_subjects(folders[0], folders[1], trust_remote_code=sampling.trust_remote_code)
    name, folder = choose_judge(reward)
    judge = RewardModel.load(folder, trust_remote_code=sampling.trust_remote_code)
    if judge.tokenizer.get_vocab() != subjects.tokenizer.get_vocab():
        raise ModelError("expected the challenger's judge to share its tokenizer, found another.")
    kept, refused = sift(subjects.tokenizer, test)
    chosen = choose_prompts(kept, subjects, params, judge.max_length)
    drawn = draw(chosen, subjects, params, sampling.seed, [silent, silent])
    samples = only_judgeable(drawn, subjects, judge.max_length)
    scores = score_samples(Pointwise(judge.score, "the challenger's judge"), samples)
    write_samples(out / "samples.jsonl", samples, {"judge": scores})
    found = win_rate(scores.judged, samples.length_difference(), params, sampling.seed)
    return {
        "win_rate": found,
        "judge": name,
        "judge_digest": judge.digest,
        "counts": chosen.counts | {"refused": len(refused)},
    }


def _pairs(objects: ObjectStore, digest: str, names: Sequence[str]) -> list[CuratedPair]:
    """Curated pairs of a dataset by its DVC hash, each file of it verified by its own hash first."""
    listing = objects.listing(digest)
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            objects.fetch(listing[name], Path(scratch) / name)
        return [pair for name in names for pair in load_jsonl(Path(scratch) / name, CuratedPair)]
