"""Pure statistics shared by the audits of rewards and of policies: intervals and calibration. No models, no files."""

from plumbline.tasks.statistics.calibration import brier, expected_calibration_error, logistic_loss, reliability
from plumbline.tasks.statistics.clusters import clustered_interval, effective_size
from plumbline.tasks.statistics.intervals import paired_bootstrap, wilson_interval

__all__ = [
    "brier",
    "clustered_interval",
    "effective_size",
    "expected_calibration_error",
    "logistic_loss",
    "paired_bootstrap",
    "reliability",
    "wilson_interval",
]
