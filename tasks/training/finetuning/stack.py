"""Fine-tuning as a stack of methods: each starts from the policy that the one before it left.

1. Refuse what any of the methods would refuse, before the first one trains.
2. Draw the prompt formats, once for all stages.
3. Run the stages, stage i in `work/<i>-<method>`. An intermediate policy is kept there, sealed when whole under a key
   of all that it depends on: a run that was killed goes on with the stage that it was killed in.
4. Write the curves as one: steps count on from stage to stage, and a column `stage` tells them apart.

A single method runs as if there were no stack: same folders, same bytes.

Layout of a stage's work:

    <i>-<method>/run-<key>/…                the method's own checkpoints
    <i>-<method>/sealed/run-<key>/policy/   the policy that it left
    <i>-<method>/sealed/run-<key>/facts.json
    <i>-<method>/sealed/run-<key>/sealed.json   size and SHA-256 of every file; written last
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from plumbline.data_contracts.artifact import write_json
from plumbline.data_contracts.progress import Progress
from plumbline.data_contracts.records import Record
from plumbline.tasks.models.checkpoints import is_whole, run_folder, seal, weights_digest
from plumbline.tasks.models.curve import CURVE, write_curve
from plumbline.tasks.models.loading import load_tokenizer
from plumbline.tasks.models.renderable import REFUSED, sift_splits
from plumbline.tasks.models.training import library_versions
from plumbline.tasks.params.finetuning import FinetuneParams
from plumbline.tasks.training.finetuning.adapters import ADAPTER
from plumbline.tasks.training.finetuning.formats import apply_formats
from plumbline.tasks.training.finetuning.methods import METHODS, FinetuneInputs, Method
from plumbline.tasks.training.finetuning.tokens import in_all


def run(inputs: FinetuneInputs, params: FinetuneParams) -> dict[str, Any]:
    """Run `params.methods` in order, write the last policy into `inputs.folder`, and return facts for the manifest.

    One method gives its own facts; several give theirs under `stages`, and for the whole stack:

    - `implied_beta`, that of the last stage, where its policy implies a reward β·log(π / π_ref); None if it implies
      none, or one against the stage before it (`stage_reference: previous`), which nobody keeps;
    - `too_long`, examples set aside for their length by the stage that set aside the most: stages read the same
      feedback, so that a sum would count an example once a stage;
    - `tokens`, the sum over stages.

    Raises what the methods raise.
    """
    methods = [METHODS[name] for name in params.methods]
    for method in methods:
        method.check(params)
    formatted, formats = apply_formats(inputs, params.formats)
    if formats:
        formatted, formats["sifted"] = _renderable(formatted)
    facts = methods[0].run(formatted, params) if len(methods) == 1 else _run_stages(methods, formatted, params)
    return {"implied_beta": None} | facts | ({"formats": formats} if formats else {})


def _renderable(inputs: FinetuneInputs) -> tuple[FinetuneInputs, dict[str, Any]]:
    """The inputs less what the chat template refuses now that it is formatted (system prompts), and facts of it."""
    splits = {"train": inputs.train, "validation": inputs.validation, "unpaired": inputs.unpaired}
    tokenizer = load_tokenizer(inputs.start, trust_remote_code=inputs.trust_remote_code)
    kept, facts = sift_splits(tokenizer, splits, inputs.refused_threshold)
    if not facts[REFUSED]["rows"]:
        return inputs, facts
    train, validation, unpaired = kept["train"], kept["validation"], kept["unpaired"]
    return dataclasses.replace(inputs, train=train, validation=validation, unpaired=unpaired), facts


def _run_stages(methods: Sequence[Method], inputs: FinetuneInputs, params: FinetuneParams) -> dict[str, Any]:
    stages: dict[str, dict[str, Any]] = {}
    curves: dict[str, Path] = {}
    policy = inputs.start
    untaught = inputs.reward.state() if inputs.reward else None
    for number, method in enumerate(methods, start=1):
        name = f"{number}-{method.name}"
        if inputs.reward is not None and untaught is not None:
            # what normalisation learned in one stage would reach the next only where no kill lay between
            inputs.reward.restore(untaught)
        follows = number > 1 and params.stage_reference == "previous"
        stage = dataclasses.replace(
            inputs,
            start=policy,
            reference=policy if follows else inputs.reference,
            work=inputs.work / name,
            progress=_named(inputs.progress, name),
        )
        if number < len(methods):
            facts, policy = _intermediate(method, stage, params)
        else:
            facts, policy = method.run(stage, params), inputs.folder
        stages[name] = facts | {"policy_weights": weights_digest(policy)}
        curves[name] = policy / CURVE
    # the adapter of the last stage fits a policy that nobody keeps
    shutil.rmtree(inputs.folder / ADAPTER, ignore_errors=True)
    write_curve(inputs.folder, _joined(curves))
    *_, last = stages.values()
    against_reference = params.stage_reference == "reference"
    return {
        "method": "+".join(params.methods),
        "settings": {"stage_reference": params.stage_reference}
        | {key: each["settings"] for key, each in stages.items()},
        "seed": inputs.seed,
        "reference_weights": weights_digest(inputs.reference),
        "implied_beta": last.get("implied_beta") if against_reference else None,
        "too_long": {"train": max(each["too_long"]["train"] for each in stages.values())},
        "tokens": in_all(each["tokens"] for each in stages.values()),
        "stages": stages,
    }


def _intermediate(method: Method, stage: FinetuneInputs, params: FinetuneParams) -> tuple[dict[str, Any], Path]:
    """Facts and folder of a stage's policy: those that were sealed, or else the stage is run."""
    folder = run_folder(stage.work / "sealed", _depends_on(method, stage, params))
    policy, facts_file = folder / "policy", folder / "facts.json"
    if not is_whole(folder):
        shutil.rmtree(policy, ignore_errors=True)
        policy.mkdir()
        write_json(facts_file, method.run(dataclasses.replace(stage, folder=policy), params))
        seal(folder)
    facts: dict[str, Any] = orjson.loads(facts_file.read_bytes())
    return facts, policy


def _depends_on(method: Method, stage: FinetuneInputs, params: FinetuneParams) -> dict[str, Any]:
    return {
        "method": method.name,
        "params": method.section(params).model_dump(mode="json"),
        "seed": stage.seed,
        "threads": stage.threads,
        "start": weights_digest(stage.start),
        "reference": weights_digest(stage.reference),
        "records": [_digest(records) for records in (stage.train, stage.validation, stage.unpaired)],
        "temperatures": list(stage.temperatures),
        "judge": [stage.judge_digest, stage.judge_length] if stage.judge else None,
        "reward": stage.reward.digest if stage.reward else None,
        "ranker": stage.ranker.digest if stage.ranker else None,
        "gains": stage.gains.digest if stage.gains else None,
        "reward_model": weights_digest(stage.reward_model) if stage.reward_model else None,
        "libraries": library_versions("peft"),
    }


def _digest(records: Sequence[Record]) -> str:
    digest = hashlib.sha256()
    for record in records:
        digest.update(record.model_dump_json().encode() + b"\n")
    return digest.hexdigest()


def _joined(curves: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Rows of all stages; the first step of a stage follows the last one of the stage before it."""
    rows: list[dict[str, Any]] = []
    done = 0
    for name, file in curves.items():
        of_stage = [orjson.loads(line) for line in file.read_bytes().splitlines()]
        rows += [row | {"step": done + row["step"], "stage": name} for row in of_stage]
        done = rows[-1]["step"] if rows else done
    return rows


def _named(progress: Progress, name: str) -> Progress:
    def watch(done: int, total: int, note: str) -> None:
        progress(done, total, f"{name}: {note}")

    return watch
