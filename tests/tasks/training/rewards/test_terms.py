from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plumbline.data_contracts.errors import ModelError, ParamsError
from plumbline.data_contracts.records import Message
from plumbline.tasks.models.loading import load_tokenizer
from plumbline.tasks.params.mixture import (
    BrevityTermParams,
    ComplianceTermParams,
    FunctionTermParams,
    LengthTermParams,
    RepetitionTermParams,
    RewardModelTermParams,
    SafetyTermParams,
)
from plumbline.tasks.training.rewards.terms import TERMS, Term, build_term

MODULE = """
import asyncio, time

def share_of_a(prompts, completions, completion_ids, **kwargs):
    return [turns[-1]["content"].count("a") / max(1, len(ids)) for turns, ids in zip(completions, completion_ids)]

async def later(completions, **kwargs):
    await asyncio.sleep(0)
    return [float(len(completions))] * len(completions)

def slow(completions, **kwargs):
    time.sleep(30)

def quick_and_wrong(completions, **kwargs):
    raise KeyError("column")

def wants_a_column(completions, answer, **kwargs):
    return [0.0] * len(completions)

def takes_too_little(completions):
    return [0.0] * len(completions)

number = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Path of a function in a fresh module."""
    (tmp_path / "my_rewards_of_a_test.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "my_rewards_of_a_test", raising=False)
    return lambda name: f"my_rewards_of_a_test:{name}"


def call(term: Term, texts: list[str], asks: list[str] | None = None, tokens: list[list[int]] | None = None) -> Any:
    asks = asks or ["hello"] * len(texts)
    return term.function(
        prompts=[[{"role": "system", "content": "bomb"}, {"role": "user", "content": ask}] for ask in asks],
        completions=[[{"role": "assistant", "content": text}] for text in texts],
        completion_ids=tokens or [[1]] * len(texts),
    )


def test_every_kind_of_params_has_its_term() -> None:
    from typing import get_args

    from plumbline.tasks.params.mixture import TermParams

    kinds = {member.model_fields["kind"].default for member in get_args(get_args(TermParams)[0])}
    assert kinds == set(TERMS)


def test_brevity_by_hand() -> None:
    """2 words are free and each further one costs 0.25: 3 words -0.25, 6 words -1, 9 words -1 (the most)."""
    term = build_term(BrevityTermParams(free_words=2, cost=0.25), None)
    assert call(term, ["", "a b", "a b c", "a " * 6, "a " * 9]) == [0, 0, -0.25, -1, -1]


def test_length_penalty_by_hand() -> None:
    """DAPO eq. 13, L_max 10 and L_cache 4: 0 up to 6 tokens, then ((L_max - L_cache) - |y|) / L_cache, -1 from 10."""
    term = build_term(LengthTermParams(limit=10, buffer=4), None)
    assert call(term, ["x"] * 5, tokens=[[0] * count for count in (0, 6, 7, 10, 30)]) == [0, 0, -0.25, -1, -1]


def test_length_penalty_equals_that_of_trl() -> None:
    from trl.rewards import get_soft_overlong_punishment

    tokens = [[0] * count for count in range(24)]
    theirs = get_soft_overlong_punishment(max_completion_len=16, soft_punish_cache=5)(tokens)
    assert call(build_term(LengthTermParams(limit=16, buffer=5), None), ["x"] * 24, tokens=tokens) == theirs


def test_repetition_by_hand() -> None:
    """Bigrams of "a b a b A B": ab ba ab ba ab, 2 distinct of 5, so 3/5 repeat. One word has no bigram."""
    term = build_term(RepetitionTermParams(ngram=2), None)
    assert call(term, ["a b a b A B", "a b c", "a", ""]) == pytest.approx([-0.6, 0, 0, 0])


def test_repetition_equals_that_of_trl() -> None:
    """TRL counts n-grams of tokens: here a token a word."""
    from trl.rewards import get_repetition_penalty_reward

    texts = ["the cat the cat the cat sat", "all words differ here", "no no no no", "two words"]
    words = sorted({word for text in texts for word in text.split()})
    tokens = [[words.index(word) for word in text.split()] for text in texts]
    theirs = get_repetition_penalty_reward(ngram_size=3, max_penalty=-1.0)(completions=texts, completion_ids=tokens)
    assert call(build_term(RepetitionTermParams(ngram=3), None), texts) == pytest.approx(theirs)


def test_compliance_by_hand() -> None:
    """Two rules to keep and one not to break: all kept 0, one of three broken -1/3, all -1. Case does not matter."""
    term = build_term(ComplianceTermParams(must=("thanks|thank you", r"\.$"), must_not=("damn",)), None)
    assert call(term, ["Thank you.", "no.", "DAMN"]) == pytest.approx([0, -1 / 3, -1])


def test_patterns_with_flags_of_their_own_stand_beside_others() -> None:
    term = build_term(SafetyTermParams(asks=("bomb", "(?s)fire.*wood"), refusals=("no",)), None)
    assert call(term, ["no"], ["fire\nwood"]) == [1]


def test_safety_by_hand() -> None:
    """Due and done 1, due and missing -1, needless `over_refusal`, a plain answer 0; the system turn does not ask."""
    term = build_term(SafetyTermParams(over_refusal=-0.5), None)
    texts = ["I cannot help with that.", "First, get nails.", "I can't help.", "Sure."]
    asks = ["How do I make a BOMB?", "build a bomb", "What is a lamp?", "What is a lamp?"]
    assert call(term, texts, asks) == [1, -1, -0.5, 0]


def test_safety_reads_the_last_user_turn() -> None:
    term = build_term(SafetyTermParams(), None)
    turns = ["build a bomb", "I can't help.", "What is a lamp?"]
    prompt = [{"role": role, "content": text} for role, text in zip(("user", "assistant", "user"), turns, strict=True)]
    assert term.function(prompts=[prompt], completions=[[{"role": "assistant", "content": "Light."}]]) == [0]


@pytest.fixture
def classifier_folder(policy_folder: Path, tmp_path: Path) -> Path:
    """A random classifier with the labels `fine` and `risky`."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    tokenizer = load_tokenizer(policy_folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        max_position_embeddings=128,
        id2label={0: "fine", 1: "risky"},
        label2id={"fine": 0, "risky": 1},
        pad_token_id=3,
    )
    folder = tmp_path / "classifier"
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_classifier_takes_the_place_of_the_lexicon(classifier_folder: Path) -> None:
    """Naive: a forward on one request, softmax over the labels. A threshold between two requests' probabilities
    sorts them."""
    import torch
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(classifier_folder).eval()
    tokenizer = load_tokenizer(classifier_folder)
    asks = ["please refund the order", "no no one"]
    with torch.no_grad():
        naive = [model(**tokenizer(ask, return_tensors="pt")).logits.softmax(-1)[0, 1].item() for ask in asks]
    assert abs(naive[0] - naive[1]) > 1e-5
    params = SafetyTermParams(
        asks=(), classifier=str(classifier_folder), classifier_label="risky", classifier_threshold=sum(naive) / 2
    )
    term = build_term(params, None)
    # a refusal of what is not to be refused is a needless one
    expected = [1.0 if probability >= sum(naive) / 2 else params.over_refusal for probability in naive]
    assert call(term, ["I can't help."] * 2, asks) == expected
    assert term.identity is not None
    assert call(term, [], []) == []
    # a request is text, the special tokens that it spells included
    spelled = "</s> please"
    with torch.no_grad():
        as_text, as_token = (
            model(**tokenizer(spelled, return_tensors="pt", split_special_tokens=split)).logits.softmax(-1)[0, 1].item()
            for split in (True, False)
        )
    assert abs(as_text - as_token) > 1e-5
    between = build_term(params.model_copy(update={"classifier_threshold": (as_text + as_token) / 2}), None)
    assert call(between, ["I can't help."], [spelled]) == [1.0 if as_text > as_token else params.over_refusal]
    for threshold, value in ((0.0, 1.0), (1.0, params.over_refusal)):
        extreme = build_term(params.model_copy(update={"classifier_threshold": threshold}), None)
        assert call(extreme, ["I can't help."] * 2, asks) == [value] * 2


def test_a_classifier_without_the_label_is_refused(classifier_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"with the label 'unsafe', found \['fine', 'risky'\]"):
        build_term(SafetyTermParams(classifier=str(classifier_folder)), None)
    with pytest.raises(ModelError, match="expected a model folder"):
        build_term(SafetyTermParams(classifier=str(tmp_path / "nowhere")), None)


def test_reward_model_is_given_messages_and_texts() -> None:
    class Model:
        digest, max_length = "d", 64

        def score_fitting(self, prompts: Any, responses: Any) -> list[float | None]:
            assert prompts[0] == [Message(role="system", content="bomb"), Message(role="user", content="hello")]
            return [float(len(response)) if response else None for response in responses]

    term = build_term(RewardModelTermParams(), Model())  # type: ignore[arg-type]
    assert (term.identity, term.max_length) == ("d", 64)
    assert call(term, ["abc", ""]) == [3.0, None]


def test_a_reward_model_term_without_a_model_is_refused() -> None:
    with pytest.raises(ParamsError, match=r"`reward_model` is a reward_model, but this run has none\. Train one"):
        build_term(RewardModelTermParams(), None)


def test_functions_are_called_as_trl_calls_them(module: Callable[[str], str]) -> None:
    term = build_term(FunctionTermParams(function=module("share_of_a")), None)
    assert call(term, ["banana", "b"], tokens=[[1, 2], [1]]) == [1.5, 0]
    assert call(build_term(FunctionTermParams(function=module("later")), None), ["x", "y"]) == [2.0, 2.0]
    trl = build_term(FunctionTermParams(function="trl.rewards:think_format_reward"), None)
    assert call(trl, ["<think>\na\n</think>\nb", "b"]) == [1.0, 0.0]


def test_a_function_is_known_by_its_source(module: Callable[[str], str], tmp_path: Path) -> None:
    path = module("share_of_a")
    before = build_term(FunctionTermParams(function=path), None).identity
    assert before == build_term(FunctionTermParams(function=path), None).identity
    (tmp_path / "my_rewards_of_a_test.py").write_text(MODULE + "\n# changed\n")
    assert build_term(FunctionTermParams(function=path), None).identity != before


def test_a_function_that_takes_too_long(module: Callable[[str], str]) -> None:
    slow = build_term(FunctionTermParams(function=module("slow"), timeout_s=0.05), None)
    start = time.monotonic()
    with pytest.raises(TimeoutError, match=r"no answer within 0\.05 s"):
        call(slow, ["x"])
    assert time.monotonic() - start < 20, "it did not wait for the function's 30 s"
    wrong = build_term(FunctionTermParams(function=module("quick_and_wrong"), timeout_s=20), None)
    with pytest.raises(KeyError, match="column"):
        call(wrong, ["x"])
    right = build_term(FunctionTermParams(function=module("later"), timeout_s=20), None)
    assert call(right, ["x"]) == [1.0]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_such_module_here:f", "found ModuleNotFoundError"),
        ("my_rewards_of_a_test:missing", "found AttributeError"),
        ("my_rewards_of_a_test:number", "expected a function, found int"),
        ("my_rewards_of_a_test:wants_a_column", "missing a required argument: 'answer'"),
        ("my_rewards_of_a_test:takes_too_little", r"found takes_too_little\(completions\): got an unexpected keyword"),
        ("math:dist", "TRL's reward signature"),
    ],
)
def test_what_is_no_reward_function_is_refused(module: Callable[[str], str], path: str, message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        build_term(FunctionTermParams(function=path), None)
