"""Verb: answers that users had against those of another checkpoint, as the champion's judge sees them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from plumbline.data_contracts.interactions import Interaction, ServedCompletion
from plumbline.tasks.params.lengths import settled
from plumbline.tasks.params.whole import Params


def judge_traffic(
    params: Params,
    served: list[tuple[Interaction, ServedCompletion]],
    rival: Path,
    reward: Path,
    *,
    seed: int,
    stored: Mapping[str, str],
) -> dict[str, float]:
    """Request -> 1 where the served answer wins, 0 if the rival's does, both positions judged.

    `stored` holds the rival's answers by request where it gave them at the time; the others it gives now, at
    evaluation's settings, in which `max_new_tokens` is a number. Requests that are too long for the rival or the judge,
    or that a chat template of theirs refuses, are left out.
    """
    from plumbline.tasks.evaluation.measures.win_rate import Pointwise, judge_both_positions
    from plumbline.tasks.models.loading import seed_everything
    from plumbline.tasks.training.rewards.held_out import choose_judge
    from plumbline.tasks.training.rewards.scoring import RewardModel

    seed_everything(params.seed, params.threads)
    missing = [request for request, _ in served if request.id not in stored]
    texts = {**stored, **(_answers(params, missing, rival, seed) if missing else {})}
    served = [item for item in served if item[0].id in texts]
    prompts = [request.prompt for request, _ in served]
    mine, theirs = [answer.text for _, answer in served], [texts[request.id] for request, _ in served]
    judge = RewardModel.load(choose_judge(reward)[1], trust_remote_code=params.reference.trust_remote_code)
    scores = judge.score_fitting(prompts, mine), judge.score_fitting(prompts, theirs)
    rows = [row for row, pair in enumerate(zip(*scores, strict=True)) if None not in pair]
    judged = judge_both_positions(
        Pointwise(judge.score, "the champion's judge"),
        [prompts[row] for row in rows],
        [mine[row] for row in rows],
        [theirs[row] for row in rows],
    )
    return {served[row][0].id: value for row, value in zip(rows, judged.outcomes.tolist(), strict=True)}


def _answers(params: Params, requests: list[Interaction], folder: Path, seed: int) -> dict[str, str]:
    from plumbline.tasks.models.chat import encode_prompts, refused_by_template
    from plumbline.tasks.models.loading import context_length, load_policy, load_tokenizer
    from plumbline.tasks.models.sampling import sample

    trusting = params.reference.trust_remote_code
    tokenizer = load_tokenizer(folder, trust_remote_code=trusting)
    model = load_policy(folder, trust_remote_code=trusting).eval()
    room = context_length(model.config, tokenizer) - 1
    refused = refused_by_template(tokenizer, [request.prompt for request in requests], prompt=True)
    requests = [request for place, request in enumerate(requests) if place not in refused]
    heads = encode_prompts(tokenizer, [request.prompt for request in requests])
    fitting = [request for request, head in zip(requests, heads, strict=True) if len(head) < room]
    drawn = sample(
        model,
        tokenizer,
        [request.prompt for request in fitting],
        max_new_tokens=settled(params.evaluation.max_new_tokens),
        temperature=params.evaluation.temperature,
        top_p=params.evaluation.top_p,
        seed=seed,
        batch_size=params.evaluation.batch_size,
    )
    return {request.id: completion.text for request, completion in zip(fitting, drawn, strict=True)}
