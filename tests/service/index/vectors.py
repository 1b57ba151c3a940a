"""Items and queries of random vectors, and what brute force finds among them."""

import numpy as np

from service.index.base import Item

DIGEST = "d" * 64
OTHER = "e" * 64
DIM = 24


def items(count: int, seed: int = 0, prefix: str = "") -> list[Item]:
    vectors = np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)
    return [
        Item(f"{prefix}{number}", vector, {"parity": number % 2, "number": number})
        for number, vector in enumerate(vectors)
    ]


def ranked(held: list[Item], query: np.ndarray) -> list[tuple[str, float]]:
    """Every item by its cosine to the query, in float64."""
    wide = query.astype(np.float64)
    scores = [
        float(np.dot(item.vector.astype(np.float64), wide))
        / float(np.linalg.norm(item.vector.astype(np.float64)) * np.linalg.norm(wide))
        for item in held
    ]
    order = np.argsort(scores)[::-1]
    return [(held[at].id, scores[at]) for at in order]


def query(seed: int = 99) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=DIM).astype(np.float32)
