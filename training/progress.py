"""The progress of a run on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

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
        figures = ", ".join(
            f"{title} {record[key]:.3f}" for key, title in MEASURES if key in record
        )
        spread = f"deviation {record['deviation']:.3f}"
        figures += f"\n{spread}, {record['images_per_second']:.1f} images/s"
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
def progress(console: Console) -> Iterator[Bar]:
    """Show a run for as long as the context lasts.

    Args:
        console: Where to; where it is no terminal, only warnings and the last state are printed.
    """
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
