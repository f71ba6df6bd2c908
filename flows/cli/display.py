"""The display of a run on the terminal, and the tables at its end."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from plumbline.data_contracts.progress import Progress as Report
from plumbline.tasks.pipeline.stage import Stage, StageRecord
from plumbline.tasks.pipeline.watch import Unwatched, set_watch


class Display:
    """One line per stage, live, on stderr; silent if stderr is not a terminal."""

    def __init__(self, stages: list[Stage]) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓[/]"),
            TextColumn("{task.description:<18}"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[note]}[/]", table_column=None),
            console=console,
            disable=not console.is_terminal,
        )
        self._stages = stages
        self._bars: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        for stage in self._stages:
            self._bars[stage.name] = self._progress.add_task(stage.title, start=False, total=None, note="")
        self._progress.start()
        set_watch(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        set_watch(Unwatched())
        self._progress.stop()

    def started(self, stage: Stage) -> None:
        """Start the stage's clock."""
        self._progress.start_task(self._bars[stage.name])

    def progress(self, stage: Stage) -> Report:
        """Move the stage's bar."""

        def report(done: int, total: int, note: str) -> None:
            self._progress.update(self._bars[stage.name], completed=done, total=max(total, 1), note=note)

        return report

    def finished(self, stage: Stage, record: StageRecord) -> None:
        """Complete the stage's bar."""
        bar = self._bars[stage.name]
        self._progress.update(bar, completed=1, total=1, note="reused" if record.reused else "")
        self._progress.stop_task(bar)
