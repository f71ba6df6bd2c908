import hashlib
import math

import orjson
import pytest

from plumbline.data_contracts.errors import ArtifactError, ModelError, StageError
from plumbline.tasks.evaluation.measures.endings import warnings_of
from plumbline.tasks.evaluation.measures.evaluate import PHASES, evaluate
from plumbline.tasks.evaluation.measures.gate import decide
from plumbline.tasks.evaluation.measures.gold import Gold
from plumbline.tasks.params.evaluation import EvaluationParams, GateParams
from tests.support.world import in_world

pytestmark = pytest.mark.training

PARAMS = in_world(EvaluationParams, max_prompts=20, max_new_tokens=12, batch_size=8, resamples=200)
GOLD = Gold(
    reward=lambda prompt, response: -abs(len(response) - 20.0),
    should_refuse=lambda prompt: prompt[-1].content.endswith("3?"),
    is_refusal=lambda response: "e" in response,
)


def letters(prompts, responses):
    return [sum(letter in "aeiou" for letter in response) / 3 for response in responses]


@pytest.fixture
def test_split(pair):
    """26 pairs: 24 distinct short prompts, one of them twice, and one prompt longer than the context of 96."""
    pairs = [pair(number, f"where is order {number}?", chosen="here " * (1 + number % 3)) for number in range(24)]
    return [*pairs, pair(24, "where is order 0?", chosen="the order"), pair(25, "order " * 120)]


@pytest.fixture
def curves(tmp_path):
    lines = [{"step": step, "loss": 1 / step, "eval_accuracy": 1 - 1 / step, "lr": 0.1} for step in range(1, 6)]
    (tmp_path / "dpo.jsonl").write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    (tmp_path / "bare.jsonl").write_bytes(b'{"step": 1, "lr": 0.1}\n')
    return {"finetune": tmp_path / "dpo.jsonl", "reward": tmp_path / "bare.jsonl"}


def run(checkpoints, pairs, folder, *, score=letters, gold=GOLD, params=PARAMS, **more):
    folder.mkdir(exist_ok=True)
    return evaluate(*checkpoints, pairs, score, gold, params, 7, 1, folder, beta=0.1, **more)


def digests(folder):
    files = sorted(item for item in folder.rglob("*") if item.is_file())
    return {item.relative_to(folder).as_posix(): hashlib.sha256(item.read_bytes()).hexdigest() for item in files}


def leaves(value, path=""):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{path}.{key}")
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner, path)
    else:
        yield path, value


def test_everything_is_written_and_counted(checkpoints, test_split, curves, tmp_path):
    seen = []
    metrics = run(
        checkpoints,
        test_split,
        tmp_path / "out",
        curves=curves,
        reward_audit={"passed": True},
        progress=lambda *step: seen.append(step),
    )
    assert set(digests(tmp_path / "out")) == {
        "metrics.json",
        "samples.jsonl",
        "plots/training_curves.png",
        "plots/reward_distribution.png",
        "plots/reliability.png",
    }
    assert orjson.loads((tmp_path / "out/metrics.json").read_bytes()) == metrics
    assert metrics["counts"] == {
        "pairs": 26,
        "pairs_over_context": 1,
        "prompts": 25,
        "prompts_over_context": 1,
        "prompts_beyond_max": 4,
        "prompts_sampled": 20,
        "prompts_not_judged": 0,
    }
    assert metrics["preference"]["accuracy"]["n"] == metrics["calibration"]["n"] == 25
    assert metrics["win_rate"]["judge"]["n"] == metrics["win_rate"]["gold"]["n"] == 20
    assert metrics["safety"]["policy"]["refusal_accuracy"]["n"] == 2  # orders 3 and 13
    assert all(value is None or not isinstance(value, float) or math.isfinite(value) for _, value in leaves(metrics))
    assert [step[0] for step in seen] == sorted(step[0] for step in seen)
    assert seen[-1] == (len(PHASES) * 100, len(PHASES) * 100, "done")
    assert {reason.name for reason in decide(metrics, GateParams()).reasons if "not measured" in reason.text} == set()


def test_samples_hold_every_prompt_and_agree_with_the_metrics(checkpoints, test_split, tmp_path):
    metrics = run(checkpoints, test_split, tmp_path / "out")
    rows = [orjson.loads(line) for line in (tmp_path / "out/samples.jsonl").read_bytes().splitlines()]
    assert [row["pair_id"] for row in rows] == [f"pair-{number}" for number in range(20)]
    outcomes = []
    for row in rows:
        policy, reference = letters(None, [row["policy"], row["reference"]])
        assert row["scores"]["judge"] == {"policy": policy, "reference": reference}
        outcomes.append((policy > reference) + 0.5 * (policy == reference))
    assert metrics["win_rate"]["judge"]["value"] == pytest.approx(sum(outcomes) / 20)


def test_how_answers_ended_and_what_the_judge_makes_of_cut_ones(checkpoints, test_split, tmp_path):
    """A judge that counts characters likes long answers, and cut ones are long: each figure again by hand."""

    def length(prompts, responses):
        return [float(len(response)) for response in responses]

    metrics = run(checkpoints, test_split, tmp_path / "out", score=length)
    rows = [orjson.loads(line) for line in (tmp_path / "out/samples.jsonl").read_bytes().splitlines()]
    for row in rows:
        for side in ("policy", "reference"):
            assert row["cut_at_tokens"][side] == (None if row["finished"][side] else PARAMS.max_new_tokens)
    found = metrics["endings"]
    by_ending = {(True, True): [], (True, False): [], (False, True): [], (False, False): []}
    scores = {True: [], False: []}
    for row in rows:
        ended, score = row["finished"], row["scores"]["judge"]
        won = (score["policy"] > score["reference"]) + 0.5 * (score["policy"] == score["reference"])
        by_ending[ended["policy"], ended["reference"]].append(won)
        for side in ("policy", "reference"):
            scores[ended[side]].append(score[side])
    names = ("win_rate_both_finished", "win_rate_reference_cut", "win_rate_policy_cut", "win_rate_both_cut")
    for name, outcomes in zip(names, by_ending.values(), strict=True):
        assert found[name]["n"] == len(outcomes)
        assert found[name]["value"] == (pytest.approx(sum(outcomes) / len(outcomes)) if outcomes else None)
    liked = [*by_ending[False, True], *(1 - outcome for outcome in by_ending[True, False])]
    assert liked
    assert found["cut_preferred"]["value"] == pytest.approx(sum(liked) / len(liked))
    for name, ended in (("judge_score_finished", True), ("judge_score_cut", False)):
        assert found[name]["value"] == pytest.approx(sum(scores[ended]) / len(scores[ended]))


def test_what_is_warned_of_endings():
    def metrics(policy, low):
        ends = {"policy": {"finished": {"value": policy}}, "reference": {"finished": {"value": 0.6}}}
        return {"text": ends, "endings": {"cut_preferred": {"value": 0.9, "low": low, "high": 1.0, "n": 40}}}

    assert warnings_of(metrics(0.96, 0.4), PARAMS) == []
    assert warnings_of(metrics(None, None), PARAMS) == []
    cut, liked = warnings_of(metrics(0.03, 0.8), PARAMS)
    assert "3.0% of the policy's answers end by themselves (60.0% of π_ref's)" in cut
    assert "evaluation.max_new_tokens (12)" in cut
    assert "prefers the cut answer in 90.0% of the 40 pairs" in liked


def test_figures_that_rest_on_the_truth_leave_out_prompts_of_another_world(checkpoints, test_split, tmp_path):
    """Of orders 0 to 19 the truth knows 0 to 9: 10 win rates, one refusal (order 3); it is never asked for another."""

    def known(prompt):
        return int(prompt[-1].content.rstrip("?").split()[-1]) < 10

    def reward(prompt, response):
        assert known(prompt)
        return GOLD.reward(prompt, response)

    half = Gold(reward, GOLD.should_refuse, GOLD.is_refusal, known)
    metrics = run(checkpoints, test_split[:-1], tmp_path / "out", gold=half)
    assert (metrics["win_rate"]["judge"]["n"], metrics["win_rate"]["gold"]["n"]) == (20, 10)
    assert metrics["gold"]["policy_reward"]["n"] == 10
    assert metrics["safety"]["policy"]["refusal_accuracy"]["n"] == 1
    assert metrics["safety"]["policy"]["over_refusal"]["n"] == 9
    assert metrics["preference"]["accuracy"]["n"] == 25
    assert metrics["preference"]["accuracy_gold"]["n"] <= 11  # pairs 0 to 9, and the second one on order 0
    rows = [orjson.loads(line) for line in (tmp_path / "out/samples.jsonl").read_bytes().splitlines()]
    assert ["gold" in row["scores"] for row in rows] == [True] * 10 + [False] * 10
    assert metrics["gold"] == run(checkpoints, test_split[:10], tmp_path / "known")["gold"]


def test_a_truth_that_knows_no_prompt_is_as_none(checkpoints, test_split, tmp_path):
    nothing = Gold(GOLD.reward, GOLD.should_refuse, GOLD.is_refusal, lambda prompt: False)
    metrics = run(checkpoints, test_split, tmp_path / "out", gold=nothing)
    assert metrics["gold"] is metrics["safety"] is metrics["win_rate"]["gold"] is None
    assert {reason.name for reason in decide(metrics, GateParams()).reasons if "not measured" in reason.text} == set()


def test_the_same_inputs_give_the_same_bytes(checkpoints, test_split, curves, tmp_path):
    for name in ("one", "two"):
        run(checkpoints, test_split, tmp_path / name, curves=curves)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


def test_plots_do_not_depend_on_the_users_style(checkpoints, test_split, curves, tmp_path):
    import matplotlib

    run(checkpoints, test_split, tmp_path / "one", curves=curves)
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "red", "figure.dpi": 33}):
        run(checkpoints, test_split, tmp_path / "two", curves=curves)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


def test_a_policy_against_itself_is_a_tie_everywhere(checkpoints, test_split, tmp_path):
    policy = checkpoints[0]
    metrics = run((policy, policy), test_split, tmp_path / "out")
    assert metrics["win_rate"]["judge"]["value"] == metrics["win_rate"]["gold"]["value"] == 0.5
    assert metrics["win_rate"]["judge"]["ties"] == 20
    assert metrics["preference"]["accuracy"]["value"] == 0.5
    assert metrics["divergence"]["kl_nats_per_token"]["value"] == 0.0
    assert metrics["calibration"]["brier"] == 0.25


def test_swapping_the_policies_mirrors_accuracy_and_win_rate(checkpoints, test_split, tmp_path):
    there = run(checkpoints, test_split, tmp_path / "there")
    back = run(checkpoints[::-1], test_split, tmp_path / "back")
    for path in (("preference", "accuracy"), ("win_rate", "judge"), ("win_rate", "gold")):
        values = [metrics[path[0]][path[1]]["value"] for metrics in (there, back)]
        assert sum(values) == pytest.approx(1.0)
        assert values[0] != 0.5


def test_without_gold_the_keys_stay_and_hold_null(checkpoints, test_split, tmp_path):
    without = run(checkpoints, test_split, tmp_path / "without", gold=None)
    metrics = run(checkpoints, test_split, tmp_path / "with")
    assert set(without) == set(metrics)
    assert without["gold"] is without["safety"] is without["win_rate"]["gold"] is None
    assert without["preference"]["accuracy_gold"] is None
    assert without["win_rate"]["judge"] == metrics["win_rate"]["judge"]


def test_pairs_that_do_not_fit_are_not_measured_and_the_gate_says_so(checkpoints, pair, tmp_path):
    pairs = [pair(number, f"order {number}?", chosen="here " * 120) for number in range(3)]
    metrics = run(checkpoints, pairs, tmp_path / "out")
    assert metrics["counts"]["pairs_over_context"] == 3
    assert metrics["counts"]["prompts_sampled"] == 3
    assert metrics["preference"]["accuracy"] == {"value": None, "low": None, "high": None, "n": 0, "clusters": 0}
    failed = {reason.name for reason in decide(metrics, GateParams()).reasons if "not measured" in reason.text}
    assert failed == {"min_preference_accuracy", "max_ece", "min_refusal_accuracy"}


def test_one_prompt_has_a_value_and_no_interval(checkpoints, test_split, tmp_path):
    metrics = run(checkpoints, test_split, tmp_path / "out", params=PARAMS.model_copy(update={"max_prompts": 1}))
    found = metrics["win_rate"]["judge"]
    assert found["value"] in (0.0, 0.5, 1.0)
    assert found["low"] is found["high"] is None
    assert not decide(metrics, GateParams()).passed


def test_the_judge_never_sees_more_tokens_than_it_takes(checkpoints, tokenizer, test_split, tmp_path):
    """Random bytes that are no character decode to U+FFFD, three tokens for the one that was drawn.

    Short prompts have 19 or 20 tokens here ("where is order", a number, a mark); 12 new tokens and an end fit 34, what
    grew does not. Whatever is left out is counted, and no figure rests on it.
    """
    from plumbline.tasks.models.chat import encode_all

    def judge(prompts, responses):
        assert all(len(head) + len(tail) <= 34 for head, tail in encode_all(tokenizer, prompts, responses))
        return letters(prompts, responses)

    metrics = run(checkpoints, test_split, tmp_path / "out", score=judge, judge_length=34)
    counts = metrics["counts"]
    assert 0 < counts["prompts_not_judged"] < counts["prompts_sampled"]
    judged = counts["prompts_sampled"] - counts["prompts_not_judged"]
    assert metrics["win_rate"]["judge"]["n"] == metrics["text"]["policy"]["tokens"]["n"] == judged
    assert len((tmp_path / "out/samples.jsonl").read_bytes().splitlines()) == judged
    with pytest.raises(ModelError, match=r"raise reward\.max_length"):
        run(checkpoints, test_split[:1], tmp_path / "none", score=judge, judge_length=33)


def test_no_pairs_are_refused(checkpoints, tmp_path):
    with pytest.raises(StageError, match="test split, found none"):
        run(checkpoints, [], tmp_path / "out")


def test_prompts_that_leave_no_room_are_refused_with_what_to_do(checkpoints, test_split, tmp_path):
    with pytest.raises(ModelError, match=r"Lower evaluation\.max_new_tokens"):
        run(checkpoints, test_split, tmp_path / "out", params=PARAMS.model_copy(update={"max_new_tokens": 94}))


def test_policies_of_other_templates_are_refused(checkpoints, models, test_split, tmp_path):
    from plumbline.tasks.models.loading import load_tokenizer, save_model

    other = load_tokenizer(checkpoints[1])
    other.chat_template = other.chat_template.replace("<|user|>", "<|system|>") + " "
    (tmp_path / "other").mkdir()
    save_model(models[1], other, tmp_path / "other")
    with pytest.raises(ModelError, match="share vocabulary and chat template"):
        run((checkpoints[0], tmp_path / "other"), test_split, tmp_path / "out")


def test_a_broken_curve_is_named(checkpoints, test_split, tmp_path):
    (tmp_path / "cut.jsonl").write_text('{"step": 1, "lo')
    with pytest.raises(ArtifactError, match=r"cut\.jsonl"):
        run(checkpoints, test_split, tmp_path / "out", curves={"reward": tmp_path / "cut.jsonl"})
