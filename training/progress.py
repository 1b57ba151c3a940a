"""The progress of a run: live on a terminal, and a line a minute in a log."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

# Objectives without distributions for targets have no entropy and no KL.
MEASURES = (("loss", "loss"), ("entropy", "entropy"), ("kl", "KL"))
PERIOD = 60.0  # seconds between two lines of a log


class Lines:
    """A line a minute, for whoever reads the log of a container or a file.

    Args:
        console: Where to.
        clock: Seconds that never go backwards.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._start: tuple[float, float] | None = None
        self._due = -math.inf

    def __call__(self, record: Mapping[str, float]) -> None:
        """Tell of a step, if it is time or the last; `record` is what the journal logs."""
        now, step, steps = self._clock(), record["step"], record["steps"]
        # Steps that an earlier process did are no measure of this one's speed.
        started, first = self._start = self._start or (now, step)
        if now < self._due and step < steps:
            return
        self._due = now + PERIOD
        parts = [f"epoch {record['epoch']:.0f}", f"step {step:.0f}/{steps:.0f}", *_figures(record)]
        if step > first:
            left = (now - started) * (steps - step) / (step - first)
            parts.append(f"left {timedelta(seconds=round(left))}")
        self.note(", ".join(parts))

    def note(self, message: str) -> None:
        """Say something of the whole run."""
        self._console.print(message, markup=False, highlight=False, soft_wrap=True)

    def warn(self, step: int, message: str) -> None:
        """Say what the monitor says."""
        self.note(f"warning after step {step}: {message}")


class Bar:
    """Two lines that follow the run, and what is said above them.

    Args:
        bar: The live display.
    """

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task: TaskID | None = None

    def __call__(self, record: Mapping[str, float]) -> None:
        """Show a step.

        Args:
            record: What the journal logs: `step`, `steps`, `epoch`, `images_per_second` and the
                loss and measures that there are.
        """
        where = f"epoch {record['epoch']:.0f}\n{record['step']:.0f}/{record['steps']:.0f}"
        *measures, deviation, speed = _figures(record)
        figures = f"{', '.join(measures)}\n{deviation}, {speed}"
        if self._task is None:
            # Steps that an earlier process did are no measure of this one's speed.
            self._task = self._bar.add_task(
                where, total=record["steps"], completed=int(record["step"]), figures=figures
            )
        else:
            self._bar.update(
                self._task, completed=record["step"], description=where, figures=figures
            )

    def note(self, message: str) -> None:
        """Say something of the whole run, above the line."""
        self._bar.console.print(message, markup=False, highlight=False)

    def warn(self, step: int, message: str) -> None:
        """Say what the monitor says, above the bar; it stays there."""
        self._bar.console.print(
            f"[yellow]warning[/yellow] after step {step}: {escape(message)}", highlight=False
        )


@contextmanager
def progress(console: Console) -> Iterator[Bar | Lines]:
    """Show a run for as long as the context lasts.

    Args:
        console: Where to.
    """
    if not console.is_terminal:
        yield Lines(console)
        return
    # Two short lines, which fit a terminal of 80 columns.
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=10),
        TextColumn("{task.fields[figures]}"),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        yield Bar(bar)


def _figures(record: Mapping[str, float]) -> list[str]:
    measures = [f"{title} {record[key]:.3f}" for key, title in MEASURES if key in record]
    deviation = f"deviation {record['deviation']:.3f}"
    return [*measures, deviation, f"{record['images_per_second']:.1f} images/s"]
