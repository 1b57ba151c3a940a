"""Checkpoints: everything that a run needs to go on to the same numbers."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

LAST = "last.pt"


class CheckpointError(Exception):
    """The checkpoint cannot be used; the message says why."""


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint so that an interruption leaves the previous one whole."""
    staging = path.with_suffix(".tmp")
    with staging.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    staging.replace(path)


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
