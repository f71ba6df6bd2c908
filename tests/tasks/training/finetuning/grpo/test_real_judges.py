"""GRPO under the judges that Plumbline has: what they cost is paid for, and changes no byte of what they leave."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from plumbline.tasks.models.judging import SPENDING, Judge, judging_account
from plumbline.tasks.models.loading import load_reward, load_tokenizer
from plumbline.tasks.params.grpo import GrpoParams
from plumbline.tasks.params.llm_judge import LlmJudgeParams
from plumbline.tasks.params.mixture import BrevityTermParams
from plumbline.tasks.training.finetuning.grpo import run as grpo
from plumbline.tasks.training.finetuning.methods import FinetuneInputs
from plumbline.tasks.training.rewards.judges.chat_client import JudgeReply
from plumbline.tasks.training.rewards.judges.llm import LlmJudge
from plumbline.tasks.training.rewards.judges.parsing import Reply
from plumbline.tasks.training.rewards.judges.reward_model import RewardModelJudge
from plumbline.tasks.training.rewards.judges.rule import RuleJudge
from plumbline.tasks.training.rewards.mixture import Mixture
from plumbline.tasks.training.rewards.scoring import RewardModel
from plumbline.tasks.training.rewards.terms import build_term

pytestmark = pytest.mark.training


@dataclasses.dataclass(frozen=True)
class Served:
    """In place of a server: A wins always, each answer a little later than the one before."""

    def ask_all(self, requests: Mapping[str, Any], wanted: Any, received: Callable[[str, JudgeReply], None]) -> None:
        for number, key in enumerate(requests):
            reply = Reply(
                content=json.dumps({"winner": "A"}),
                refusal=None,
                finish_reason="stop",
                prompt_tokens=200,
                completion_tokens=10,
            )
            received(key, JudgeReply(reply, retries=number % 2, seconds=0.1 * number))


@pytest.fixture
def make_judge(reference: Path, tmp_path: Path) -> Callable[[str], Judge]:
    def make(kind: str) -> Judge:
        if kind == "rule":
            brevity = BrevityTermParams(free_words=1, cost=0.1)
            return RuleJudge(Mixture([(brevity, build_term(brevity, None))]))
        if kind == "reward_model":
            import torch

            torch.manual_seed(0)
            model = load_reward(reference, new_head=True).eval()
            model.config.pad_token_id = 2
            return RewardModelJudge(RewardModel(model, load_tokenizer(reference), 64, folder=reference))
        params = LlmJudgeParams(
            base_url="http://127.0.0.1:9/v1", model="scripted", mode="pairwise", order="random", price_prompt=1.0
        )
        judge = LlmJudge(params, tmp_path / "answers")
        judge._client = Served()  # type: ignore[assignment]
        return judge

    return make


@pytest.mark.parametrize("kind", ["rule", "reward_model", "llm"])
def test_the_same_bytes_again_and_the_cost_in_the_account(
    kind: str,
    judged: FinetuneInputs,
    quick: GrpoParams,
    elsewhere: Callable[..., FinetuneInputs],
    make_judge: Callable[[str], Judge],
) -> None:
    """Three steps. The second time a language model's answers all come from its cache: nothing is paid then."""
    params = quick.model_copy(update={"num_train_epochs": 0.25, "num_generations": 2, "per_device_train_batch_size": 8})
    given = {name: getattr(judged, name) for name in ("train", "gains", "judge_digest")}
    found, accounts = [], []
    for name in ("once", "again"):
        inputs = elsewhere(name, **given, ranker=make_judge(kind))
        with judging_account() as account:
            facts = grpo.run(inputs, params)
        accounts.append(account)
        found.append((json.dumps(facts), (inputs.folder / "training.jsonl").read_bytes()))
    assert found[0] == found[1]
    keys = {key.rsplit("/", 1)[-1] for key in json.loads(found[0][0])["totals"]}
    keys |= {key.rsplit("/", 1)[-1] for line in found[0][1].splitlines() for key in json.loads(line)}
    assert not keys & SPENDING
    assert accounts[0]["requests"] > 0
    assert accounts[0]["seconds"] > 0
    if kind == "llm":
        assert accounts[0]["cost"] == pytest.approx(200e-6 * accounts[0]["requests"])
        assert accounts[0]["request_seconds"] > 0
        assert (accounts[1]["requests"], accounts[1]["cost"]) == (0, 0)
        assert accounts[1]["cached"] > 0
