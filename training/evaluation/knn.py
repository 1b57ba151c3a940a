"""Weighted k-nearest-neighbour classification with frozen features.

Source: Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination"
(2018), section 3.4, as DINO uses it: cosine similarity, votes exp(similarity / 0.07).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from training.stopping import heed

CHUNK = 1024
"""Test images that are compared at a time, at the most."""
PAIRS = 2**26
"""Pairs that are compared at a time; each takes 12 bytes."""


def knn_accuracy(
    train: NDArray[np.float32],
    train_labels: ArrayLike,
    test: NDArray[np.float32],
    test_labels: ArrayLike,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Share of test images whose heaviest class among the k nearest training images is right.

    Args:
        train: Features of the training images, [n, dim].
        train_labels: Their classes, integers from 0, [n].
        test: Features of the test images, [m, dim].
        test_labels: Their classes, [m].
        k: Number of neighbours that vote; at most n.
        temperature: Of the votes.

    Returns:
        Top-1 accuracy in [0, 1].

    Raises:
        Interrupted: The run is asked to stop.
    """
    train_classes, test_classes = np.asarray(train_labels), np.asarray(test_labels)
    keys, queries = unit(train), unit(test)
    k = min(k, len(keys))
    chunk = max(1, min(CHUNK, PAIRS // len(keys)))
    right = 0
    for start in range(0, len(queries), chunk):
        heed()
        opposed = queries[start : start + chunk] @ keys.T
        np.negative(opposed, out=opposed)
        nearest = np.argpartition(opposed, k - 1, axis=1)[:, :k]
        votes = np.exp(-np.take_along_axis(opposed, nearest, axis=1) / temperature)
        scores = np.zeros((len(opposed), train_classes.max() + 1), votes.dtype)
        np.add.at(scores, (np.arange(len(scores))[:, None], train_classes[nearest]), votes)
        right += int((scores.argmax(axis=1) == test_classes[start : start + chunk]).sum())
    return right / len(queries)


def unit(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale each row to length one."""
    lengths: NDArray[np.float32] = np.linalg.norm(features, axis=1, keepdims=True)
    return np.divide(features, np.maximum(lengths, 1e-12), dtype=np.float32)
