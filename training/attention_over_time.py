"""Attention maps of a few fixed photographs, kept at every evaluation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.models.backbone import Backbone

FOLDER = "attention"
PHOTOGRAPHS = "photographs"
# A page shows no more side by side, and an evaluation is not slowed down by so few.
MOST = 8


class AttentionMaps:
    """Keeps the photographs, and what the model looks at in them as it learns.

    Args:
        folder: Folder of the run, which gets `attention/photographs.npz` (`images`, uint8
            [photographs, side, side, channels]).
        photographs: uint8 [n, side, side, channels] as the model takes them in; the first 8 are
            kept.
    """

    def __init__(self, folder: Path, photographs: NDArray[np.uint8]) -> None:
        self._folder = folder / FOLDER
        self._photographs = photographs[:MOST]
        self._folder.mkdir(parents=True, exist_ok=True)
        _save(self._folder / f"{PHOTOGRAPHS}.npz", images=self._photographs)

    def record(self, backbone: Backbone, epoch: int, normalise: Callable[[Tensor], Tensor]) -> Path:
        """Write `attention/EPOCH.npz` (`maps`, float32 [photographs, heads, rows, columns]).

        Args:
            backbone: Looks at the photographs in evaluation mode and comes back in the mode that
                it was in.
            epoch: Names the file.
            normalise: uint8 [n, side, side, channels] -> what the backbone takes in.

        Returns:
            The file.
        """
        device = next(backbone.parameters()).device
        images = normalise(torch.from_numpy(self._photographs).to(device))
        training = backbone.training
        backbone.eval()
        with torch.no_grad():
            maps = backbone.features(images).attention
        backbone.train(training)
        return _save(self._folder / f"{epoch}.npz", maps=maps.float().cpu().numpy())


def _save(path: Path, **arrays: NDArray[np.generic]) -> Path:
    """Write a file that is there whole or not at all."""
    staging = path.with_name(f".{path.name}")
    with staging.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # its stub takes a flag for an array
    return staging.replace(path)
