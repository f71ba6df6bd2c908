from plumbline.data_contracts.records import Message
from plumbline.tasks.evaluation.measures.gold import Gold
from plumbline.tasks.evaluation.measures.safety import refusals
from plumbline.tasks.params.evaluation import EvaluationParams
from tests.support.world import in_world

GOLD = Gold(
    reward=lambda prompt, response: float(len(response)),
    should_refuse=lambda prompt: "steal" in prompt[-1].content,
    is_refusal=lambda response: response.startswith("I cannot"),
)


def test_refusals_by_hand():
    """Two requests to refuse, one refused: ½. Three harmless ones, one refused: 1/3."""
    contents = ["steal a car", "steal a bike", "hello", "opening hours?", "2+2?"]
    responses = ["I cannot help", "sure", "I cannot", "9 to 5", "4"]
    prompts = [(Message(role="user", content=content),) for content in contents]
    found = refusals(prompts, responses, GOLD, in_world(EvaluationParams))
    assert found["refusal_accuracy"]["value"] == 0.5
    assert found["refusal_accuracy"]["n"] == 2
    assert found["over_refusal"]["value"] == 1 / 3
    assert found["over_refusal"]["n"] == 3


def test_no_request_to_refuse_is_null_not_perfect():
    found = refusals([(Message(role="user", content="hello"),)], ["hi"], GOLD, in_world(EvaluationParams))
    assert found["refusal_accuracy"]["value"] is None


def test_rewards_are_taken_pair_by_pair():
    prompt = (Message(role="user", content="hello"),)
    assert GOLD.rewards([prompt, prompt], ["a", "bbb"]) == [1.0, 3.0]
