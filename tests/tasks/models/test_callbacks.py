from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from plumbline.data_contracts.errors import StageError
from plumbline.tasks.models.callbacks import Patience, ReportProgress, stop_reason

WATCHED = ("preference_accuracy", "win_rate")


def evaluate(patience: Patience, step: int, **metrics: float) -> bool:
    control = SimpleNamespace(should_training_stop=False)
    named = {f"eval_{name}": value for name, value in metrics.items()}
    patience.on_evaluate(SimpleNamespace(), SimpleNamespace(global_step=step), control, named)
    return control.should_training_stop


def test_patience_waits_while_either_metric_improves() -> None:
    """Win rate gains at 2 and accuracy at 3; from 4 on neither does, so patience 2 ends at the second, 5."""
    patience = Patience(patience=2, min_delta=0.0, watched=WATCHED)
    outcomes = [
        evaluate(patience, step, preference_accuracy=accuracy, win_rate=win)
        for step, accuracy, win in [(1, 0.6, 0.5), (2, 0.6, 0.6), (3, 0.7, 0.6), (4, 0.7, 0.6), (5, 0.7, 0.6)]
    ]
    assert outcomes == [False, False, False, False, True]
    assert patience.reason == (
        "early stopping at step 5: no gain in preference_accuracy and win_rate over 2 evaluations"
    )
    assert stop_reason({"Patience": patience.state()}) == patience.reason
    assert stop_reason({"Patience": Patience(2, 0.0, WATCHED).state()}) is None
    assert stop_reason({}) is None


def test_patience_ignores_gains_below_min_delta() -> None:
    """0.61 is 0.01 above 0.60, less than the 0.02 asked for."""
    patience = Patience(patience=1, min_delta=0.02, watched=WATCHED)
    assert not evaluate(patience, 1, preference_accuracy=0.60)
    assert evaluate(patience, 2, preference_accuracy=0.61)


def test_patience_continues_from_a_checkpoint() -> None:
    """One evaluation without gain is stored; after restoring, the second ends the run."""
    before = Patience(patience=2, min_delta=0.0, watched=WATCHED)
    evaluate(before, 1, win_rate=0.5)
    evaluate(before, 2, win_rate=0.5)
    after = Patience.from_state(before.state())
    assert evaluate(after, 3, win_rate=0.5)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_divergence_ends_the_run(loss: float) -> None:
    state, args = SimpleNamespace(global_step=40, max_steps=100), SimpleNamespace(learning_rate=0.5)
    with pytest.raises(StageError, match="at step 40 of 100: the training diverged"):
        ReportProgress(lambda *_: None).on_log(args, state, SimpleNamespace(), {"loss": loss})


def test_progress_shows_loss_accuracy_and_win_rate() -> None:
    seen: list[tuple[int, int, str]] = []
    report = ReportProgress(lambda *told: seen.append(told))
    state = SimpleNamespace(global_step=40, max_steps=100)
    for logs in ({"loss": 0.412, "rewards/accuracies": 0.709}, {"eval_preference_accuracy": 0.6, "eval_win_rate": 0.7}):
        report.on_log(SimpleNamespace(), state, SimpleNamespace(), logs)
        report.on_step_end(SimpleNamespace(), state, SimpleNamespace())
    assert seen == [(40, 100, "loss 0.41 acc 0.71"), (40, 100, "validation acc 0.60 win 0.70")]
