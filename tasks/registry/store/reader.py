"""Look-ups in MLflow's registry, and the records that answer them. Two readers answer alike.

`tables.TableReader` reads the tables of a database, `client_reader.ClientReader` asks MLflow's client. A `Store` opens
the one that fits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

PARENT = "mlflow.parentRunId"
STAGE_TAG, REUSED_TAG, SECONDS = "plumbline.stage", "plumbline.reused", "seconds"
CURVE = "curve/"  # what a training's curve is logged under
CONTEXT = "mlflow.data.context"


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """One version as MLflow has it.

    `created_ms` is MLflow's clock, `source` is what it was made from. `location` is where its files lie; None if
    that is a question of its own (`RegistryReader.location`).
    """

    number: str
    tags: Mapping[str, str]
    run_id: str | None
    created_ms: int
    location: str | None
    description: str | None = None
    source: str | None = None


@dataclass(slots=True)
class RunRecord:
    """One run, or one logged model, as MLflow shows it. `metrics`: the values logged for each key.

    `datasets`: name -> digest and context. `artifacts` is the location of its files.
    """

    run_id: str
    deleted: bool
    metrics: dict[str, set[float]] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    datasets: dict[str, tuple[str, str]] = field(default_factory=dict)
    artifacts: str = ""


class RegistryReader(Protocol):
    """Look-ups in one registry. What is not there is None or empty; errors are those of the library that is asked."""

    def names(self) -> list[str]:
        """Names of the registered models."""

    def model(self, name: str) -> tuple[dict[str, str], dict[str, str]] | None:
        """Aliases (to version numbers) and tags of a registered model."""

    def version(self, name: str, number: str) -> VersionRecord | None:
        """One version; a deleted one is None."""

    def versions(self, name: str, tags: Sequence[str] | None = None) -> list[VersionRecord]:
        """Every version of a model, oldest first, with its tags; those named are enough."""

    def latest(self, name: str) -> str | None:
        """The highest number of a version."""

    def location(self, name: str, number: str) -> str | None:
        """The location of a version's files."""

    def runs(self, run_id: str) -> dict[str, RunRecord]:
        """The run and the runs of its stages by id, deleted ones too.

        Curves of training are left out: they have thousands of points, and no manifest holds them.
        """

    def stage_seconds(self, experiment: str) -> dict[str, float]:
        """Seconds of each stage's last run that ended well and was no reuse, by the stage's name."""

    def logged_model(self, model_id: str) -> RunRecord:
        """MLflow's entry of a logged model beside its files."""
