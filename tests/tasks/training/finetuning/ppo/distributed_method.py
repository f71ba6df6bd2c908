"""A method's `run()` as a process of torchrun (or alone): `distributed_method.py REFERENCE REWARD PAIRS FOLDER`.

Each process has an output folder of its own, writes what it ended with into FOLDER/rank-<n>.json, and a list of the
files that it opened for writing.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

RANK = int(os.environ.get("RANK", "0"))
WRITTEN: list[str] = []


def note_writes(event: str, arguments: tuple[Any, ...]) -> None:
    """Audit hook: remember every file that this process opens for writing, and every rename and folder."""
    if event == "open":
        path, mode, flags = arguments
        writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)
        if isinstance(path, (str, os.PathLike)) and (writes or (isinstance(mode, str) and set(mode) & set("wax+"))):
            WRITTEN.append(os.fspath(path))
    elif event in ("os.rename", "os.mkdir"):
        WRITTEN.append(str(arguments[0]))


def main(reference: Path, reward_model: Path, pairs: Path, folder: Path) -> None:
    import numpy as np
    import torch
    from safetensors.torch import save_file

    from plumbline.data_contracts.records import CuratedPair, load_jsonl
    from plumbline.tasks.models.judging import Completions, Scored
    from plumbline.tasks.params.finetuning import FinetuneParams
    from plumbline.tasks.training.finetuning.methods import METHODS, FinetuneInputs

    class CountYes:
        """Likes `yes`, less its mean on π_ref."""

        digest = "count-yes"
        max_length = None
        mean = 0.0

        def raw(self, answers: Completions) -> np.ndarray:
            return np.array([float(text.split().count("yes")) for text in answers.texts])

        def score(self, answers: Completions) -> Scored:
            return Scored(self.raw(answers) - self.mean, {}, {})

        def calibrate(self, answers: Completions) -> None:
            self.mean = float(self.raw(answers).mean())

        def state(self) -> dict[str, float]:
            return {"mean": self.mean}

        def restore(self, state: dict[str, float]) -> None:
            self.mean = state["mean"]

    kept: dict[str, torch.Tensor] = {}

    def judge(prompts: Any, responses: Any) -> list[float]:
        return [float(response.split().count("yes")) for response in responses]

    output = folder / f"policy-{RANK}"
    output.mkdir(parents=True)
    inputs = FinetuneInputs(
        start=reference,
        reference=reference,
        train=list(load_jsonl(pairs / "train.jsonl", CuratedPair)),
        validation=list(load_jsonl(pairs / "validation.jsonl", CuratedPair)),
        judge=judge,
        judge_digest="count-yes",
        seed=7,
        threads=1,
        folder=output,
        work=folder / "work",
        reward=CountYes(),
        reward_model=reward_model,
    )
    params = FinetuneParams.model_validate(json.loads((pairs / "finetune.json").read_text()))
    from plumbline.tasks.training.finetuning import run as finetuning

    train = finetuning.train

    def spied(trainer: Any, runs_in: Path) -> Any:
        state = train(trainer, runs_in)
        kept.update(
            {name: weights.detach().clone().contiguous() for name, weights in trainer.model.state_dict().items()}
        )
        return state

    finetuning.train = spied
    sys.addaudithook(note_writes)
    facts = METHODS[params.methods[0]].run(inputs, params)
    found = {"facts": facts, "written": [path for path in WRITTEN if str(folder) in path]}
    save_file(kept, folder / f"weights-{RANK}.safetensors")
    (folder / f"rank-{RANK}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*(Path(each) for each in sys.argv[1:5]))
