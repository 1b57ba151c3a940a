"""Checkpoints: everything that a run needs to go on to the same numbers."""

from __future__ import annotations

import errno
import fcntl
import os
import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

LAST = "last.pt"
BEST = "best.pt"
STEPS = "step-*.pt"
LOCK = ".lock"


class CheckpointError(Exception):
    """The checkpoint cannot be used or written; the message says why."""


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint so that an interruption leaves the previous one whole.

    Raises:
        CheckpointError: The disk is full or cannot be written; what was there is still there.
    """
    staging = path.with_suffix(".tmp")
    try:
        with staging.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        staging.replace(path)
    # After a failed write, torch fails again on the archive that it cannot finish.
    except (OSError, RuntimeError) as error:
        staging.unlink(missing_ok=True)
        first = error.__context__ if isinstance(error.__context__, OSError) else error
        raise CheckpointError(
            f"could not write {path} ({first}); the previous checkpoint is whole. Make room on the "
            "disk and run the same command again to go on from there"
        ) from error


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep a run's folder from other runs.

    Args:
        folder: Made if there is none.

    Raises:
        CheckpointError: Another run goes on in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as file:
        try:
            # Unlike `flock`'s, it ends with this process, whatever its workers still do.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # Some file systems know no locks.
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise CheckpointError(
                    f"another run goes on in {folder}; wait for its end or choose another --out"
                ) from None
        yield


class Checkpoints:
    """The checkpoints of a run: the last few steps', and the best by its evaluation.

    `last.pt` and `best.pt` are further names of two of them.

    Args:
        folder: Folder of the run.
        keep: Number of last ones that are kept.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep
        self._written = -1

    @property
    def last(self) -> Path:
        """Path of the newest one, whether or not there is one."""
        return self.folder / LAST

    def save(self, state: dict[str, Any], best: bool = False) -> None:
        """Write the newest one, name it the best if it is, and remove the oldest.

        Raises:
            CheckpointError: The disk is full or cannot be written.
        """
        path = self.folder / f"step-{state['step']:08d}.pt"
        # A step that is both due and the best is one file of two names.
        if state["step"] != self._written:
            save(path, state)
            self._written = state["step"]
        for name in (LAST, BEST) if best else (LAST,):
            _name(path, self.folder / name)
        for old in sorted(self.folder.glob(STEPS))[: -self.keep]:
            old.unlink()


def _name(path: Path, name: Path) -> None:
    """Give a file a second name, which replaces what had it; a copy where links are unknown."""
    staging = name.with_suffix(".tmp")
    staging.unlink(missing_ok=True)
    try:
        try:
            os.link(path, staging)
        except OSError:
            shutil.copyfile(path, staging)
        staging.replace(name)
    except OSError as error:
        staging.unlink(missing_ok=True)
        raise CheckpointError(f"could not write {name} ({error}); {path} is whole") from error


def load(path: Path) -> dict[str, Any]:
    """Read tensors, numbers and strings only; nothing in the file is executed.

    Raises:
        CheckpointError: There is no such file, or it holds anything else.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"no checkpoint at {path}") from None
    except pickle.UnpicklingError:
        # torch's own message advises to run whatever the file holds.
        raise CheckpointError(
            f"{path} is not a readable checkpoint: it is damaged, or holds objects that are not "
            "weights; none was run"
        ) from None
    except Exception as error:
        raise CheckpointError(f"{path} is not a readable checkpoint: {error}") from error
    return state
