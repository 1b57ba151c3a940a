"""The journal of a run: one JSON object a line, and the same numbers for TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from torch.utils.tensorboard.writer import SummaryWriter

LOG = "log.jsonl"
EVALUATIONS = "evaluations.jsonl"
WARNINGS = "warnings.jsonl"
TENSORBOARD = "tensorboard"


class Journal:
    """Writes what a run reports, and drops what a resumed run will report again.

    Every line is on its way to the disk when the call returns, so that a run that is killed has
    lost nothing but the line that was being written.

    Args:
        folder: Folder of the run; made if there is none.
        done: Steps that the checkpoint holds, 0 for a new run. Lines of later steps are cut off,
            and TensorBoard is told to forget them.

    Raises:
        OSError: The folder cannot be written, or, from the methods, the disk is full.
    """

    def __init__(self, folder: Path, done: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name in (LOG, EVALUATIONS, WARNINGS):
            _cut(folder / name, done)
        self._log = (folder / LOG).open("a", buffering=1)
        self._evaluations = (folder / EVALUATIONS).open("a", buffering=1)
        self._warnings = (folder / WARNINGS).open("a", buffering=1)
        self._board = SummaryWriter(str(folder / TENSORBOARD), purge_step=done + 1)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for file in (self._log, self._evaluations, self._warnings, self._board):
            file.close()

    def step(self, record: Mapping[str, float]) -> None:
        """Log one step.

        Args:
            record: `step`, counted from 1, and whatever else there is to plot over the steps.
        """
        self._log.write(json.dumps(record) + "\n")
        self._scalars("train", record)

    def evaluation(self, record: Mapping[str, float]) -> None:
        """Log one evaluation.

        Args:
            record: `step`, after which it was taken, and its figures.
        """
        self._evaluations.write(json.dumps(record) + "\n")
        self._scalars("evaluation", record)
        self._board.flush()

    def warning(self, step: int, message: str) -> None:
        """Log what the monitor says of the run after `step`."""
        self._warnings.write(json.dumps({"step": step, "message": message}) + "\n")
        self._board.add_text("warnings", message, step)
        self._board.flush()

    def _scalars(self, group: str, record: Mapping[str, float]) -> None:
        for key, value in record.items():
            if key not in ("step", "steps"):
                self._board.add_scalar(f"{group}/{key}", value, int(record["step"]))


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file that a journal wrote, up to a line that is not finished.

    A run may be going on while its journal is read; a file that is not there has no records.
    """
    for line, _ in _lines(path):
        yield line


def _cut(path: Path, done: int) -> None:
    """Shorten a file to its lines of the first `done` steps."""
    if not path.exists():
        return
    end = 0
    for record, after in _lines(path):
        if record["step"] > done:
            break
        end = after
    with path.open("r+b") as file:
        file.truncate(end)


def _lines(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Each finished record, and the offset in bytes at which it ends."""
    if not path.exists():
        return
    end = 0
    with path.open("rb") as file:
        for line in file:
            end += len(line)
            try:
                record = json.loads(line)
            except ValueError:  # cut short by a kill or a full disk
                return
            if not line.endswith(b"\n"):
                return
            yield record, end
