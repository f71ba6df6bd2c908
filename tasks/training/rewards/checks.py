"""Rewards and judges that params name are there: found out in a moment, before hours of work. No weights are read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from plumbline.data_contracts.errors import ModelError, ParamsError, PlumblineError
from plumbline.tasks.params.judge import JudgeParams
from plumbline.tasks.params.mixture import FunctionTermParams, SafetyTermParams, TermParams
from plumbline.tasks.training.rewards.layout import FACTS, HELD_OUT

DEFAULT_LABELS = {0: "LABEL_0", 1: "LABEL_1"}
"""Labels that transformers takes, and leaves out of config.json, for a classifier that names none."""


def check_terms(where: str, terms: Sequence[TermParams]) -> None:
    """Raise `ParamsError` for a function or a classifier that is not there; `where` is the key of the terms."""
    for term in terms:
        try:
            if isinstance(term, FunctionTermParams):
                _check_function(term)
            if isinstance(term, SafetyTermParams) and term.classifier is not None:
                _check_classifier(term)
        except PlumblineError as error:
            raise ParamsError(f"{where}: `{term.title}`: {error}") from error


def _check_function(term: FunctionTermParams) -> None:
    from plumbline.tasks.training.rewards.terms import build_term

    try:
        build_term(term, None)
    except PlumblineError:
        raise
    except Exception as error:  # whatever a user's module raises while it is imported
        raise ParamsError(
            f"{term.function}: expected an importable reward function, found {type(error).__name__} on import: "
            f"{error}. Mend its module."
        ) from error


def _check_classifier(term: SafetyTermParams) -> None:
    """Raise `ModelError` unless the folder holds a classifier with the label; its weights are not read."""
    folder = Path(str(term.classifier))
    try:
        config = json.loads((folder / "config.json").read_bytes())
        labels = sorted(config.get("id2label", DEFAULT_LABELS).values())
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(
            f"{folder}: expected the folder of a text-classification model with its config.json, found "
            f"{type(error).__name__}: {error}. Correct `classifier`, or set it to null for patterns."
        ) from error
    if not list(folder.glob("*.safetensors")):
        raise ModelError(f"{folder}: expected weights (*.safetensors), found none. Save the classifier there whole.")
    if term.classifier_label not in labels:
        raise ModelError(
            f"{folder}: expected a classifier with the label {term.classifier_label!r}, found {labels[:10]}. Set "
            "classifier_label to the one of a request to refuse."
        )


def check_judge(judge: JudgeParams, reward: Path) -> None:
    """Raise `ParamsError` for a judge whose terms, model, rubric or key are not there.

    `reward` is the folder of the reward model that the run trains.
    """
    if judge.kind == "rule":
        check_terms("judge.rule.terms", judge.rule.terms)
    elif judge.kind == "reward_model" and judge.reward_model.path is not None:
        _check_reward_model(Path(judge.reward_model.path), reward)
    elif judge.kind == "llm":
        from plumbline.tasks.training.rewards.judges.chat_client import ChatClient
        from plumbline.tasks.training.rewards.judges.rubric import load_rubric

        try:
            load_rubric(judge.llm.rubric)
            ChatClient(judge.llm)  # reads the key's variable
        except PlumblineError as error:
            raise ParamsError(f"judge.llm: {error}") from error


def _check_reward_model(folder: Path, trained: Path) -> None:
    if folder.resolve() == (trained / HELD_OUT).resolve():
        raise ParamsError(
            f"judge.reward_model.path: found the held-out judge ({folder}), which reports win rates because no policy "
            "is trained by it. Name another reward model, or null for the trained one."
        )
    missing = [name for name in ("config.json", FACTS) if not (folder / name).is_file()]
    if missing or not list(folder.glob("*.safetensors")):
        raise ParamsError(
            f"judge.reward_model.path: expected the folder of a reward model that Plumbline trained, found {folder} "
            f"without {', '.join(missing) or 'weights (*.safetensors)'}. Correct the path, or set it to null for the "
            "model of this run."
        )
