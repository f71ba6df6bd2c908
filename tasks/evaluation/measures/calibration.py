"""Calibration of the implied probabilities: is P(chosen ≻ rejected) = sigmoid(β·margin) as often right as it says?

A pair has no natural order, and listing the chosen response first would make every outcome 1. So
every pair enters in both orders, as (p, 1) and (1 - p, 0): the base rate is ½, a forecast of ½ is
calibrated, and the curve is symmetric about (½, ½). Brier score and log loss are the same in either
form. `n` counts pairs; the bins count both orders, 2n in all. Their number is even: in a bin with ½ inside both
orders of a pair would meet and cancel, and a policy that is right but barely says so would look calibrated.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from plumbline.tasks.params.evaluation import EvaluationParams
from plumbline.tasks.statistics import brier, expected_calibration_error, logistic_loss, reliability


def calibration(margins: NDArray[np.float64], beta: float | None, params: EvaluationParams) -> dict[str, Any]:
    """ECE and Brier score in [0, 1], logistic loss in nats, reliability bins.

    margins: (n,), nats, chosen minus rejected, before β. `beta` is that of the training objective; None if the
    method implies no probability of a preference (supervised fine-tuning): every figure is then null.
    """
    if margins.size == 0 or beta is None:
        return {"ece": None, "brier": None, "logistic_loss_nats": None, "bins": [], "beta": beta, "n": 0}
    from scipy.special import expit

    logits = beta * margins
    forecasts = np.concatenate([expit(logits), expit(-logits)])  # (2n,)
    outcomes = np.repeat([1.0, 0.0], margins.size)
    return {
        "ece": expected_calibration_error(forecasts, outcomes, params.bins),
        "brier": brier(forecasts, outcomes),
        "logistic_loss_nats": logistic_loss(logits, np.ones_like(logits)),
        "bins": reliability(forecasts, outcomes, params.bins),
        "beta": beta,
        "n": int(margins.size),
    }
