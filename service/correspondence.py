"""Which patch of one photograph is which of another: EsViT's region matching."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.pooling import Floats, unit

ROWS = 256  # of the matrix of similarities at a time; 4 MB at 4,096 patches


@dataclass(frozen=True, slots=True)
class Correspondence:
    """The best match of each patch of the first photograph in the second.

    Attributes:
        matches: Row and column in the second's grid, int [rows, columns, 2].
        scores: Cosine to the match, float32 [rows, columns].
        mutual: Whether the patch is its match's own best match, bool [rows, columns].
    """

    matches: NDArray[np.intp]
    scores: Floats
    mutual: NDArray[np.bool_]


def correspond(first: Floats, second: Floats) -> Correspondence:
    """Match patches by cosine: j* = argmax_j cos(z_i, z_j) (Li et al., EsViT, 2021, equation 4).

    Of equal matches the first in reading order is taken. Patches that choose each other (Amir et
    al., 2021, call them best buddies) are the pairs to trust.

    Args:
        first: Patch tokens, [rows, columns, dim].
        second: Those of the other photograph; its grid may be another.
    """
    here = unit(first.reshape(-1, first.shape[-1]))
    there = unit(second.reshape(-1, second.shape[-1]))
    best = np.empty(len(here), np.intp)
    scores = np.empty(len(here), np.float32)
    back = np.zeros(len(there), np.intp)
    back_scores = np.full(len(there), -np.inf, np.float32)
    for start in range(0, len(here), ROWS):
        cosines = here[start : start + ROWS] @ there.T
        rows = np.arange(len(cosines))
        best[start + rows] = found = cosines.argmax(axis=1)
        scores[start + rows] = cosines[rows, found]
        nearest = cosines.argmax(axis=0)
        near_scores = cosines[nearest, np.arange(len(there))]
        closer = near_scores > back_scores
        back[closer], back_scores[closer] = start + nearest[closer], near_scores[closer]
    grid = first.shape[:2]
    matches = np.stack(np.unravel_index(best, second.shape[:2]), axis=-1)
    return Correspondence(
        matches=matches.reshape(*grid, 2),
        scores=scores.reshape(grid),
        mutual=(back[best] == np.arange(len(here))).reshape(grid),
    )
