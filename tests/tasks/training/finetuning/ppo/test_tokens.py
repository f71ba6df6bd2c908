from __future__ import annotations

from typing import Any

import pytest

from plumbline.tasks.params.ppo import PpoParams
from plumbline.tasks.training.finetuning.methods import FinetuneInputs
from plumbline.tasks.training.finetuning.ppo import run as ppo
from plumbline.tasks.training.finetuning.ppo.rollouts import RolloutMaker

pytestmark = pytest.mark.training


def test_every_epoch_reads_prompts_and_responses_once(
    ppo_inputs: FinetuneInputs, quick: PpoParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the episodes as they were made, three passes over each."""
    made: list[tuple[int, int]] = []
    original = RolloutMaker.make

    def spy(self: Any, update: int, rows: Any) -> Any:
        episodes = original(self, update, rows)
        made.append(
            (sum(len(self.prompts.ids[row]) for row in rows), sum(len(e.token_ids) for e in episodes.completions))
        )
        return episodes

    monkeypatch.setattr(RolloutMaker, "make", spy)
    facts = ppo.run(ppo_inputs, quick.model_copy(update={"num_ppo_epochs": 3, "total_episodes": 32}))
    prompts, responses = map(sum, zip(*made, strict=True))
    assert facts["tokens"] == {"seen": 3 * (prompts + responses), "generated": responses}
    assert facts["too_long"] == {"train": 0}
