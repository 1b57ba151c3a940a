"""Vectors in memory against brute force, through every way the rows are laid anew."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.index.vectors import Vectors

DIM = 16


def unit(count: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def nearest(held: dict[str, np.ndarray], query: np.ndarray, k: int) -> list[str]:
    return sorted(held, key=lambda item: -float(held[item] @ query))[:k]


def test_a_graph_finds_nearly_all_that_brute_force_finds() -> None:
    vectors = Vectors(DIM, exact_below=500)
    truth = {str(n): v for n, v in enumerate(unit(4000, seed=1))}
    vectors.put(list(truth), np.stack(list(truth.values())))
    queries = unit(50, seed=2)
    hits = sum(
        len({item for item, _ in vectors.search(query, 10)} & set(nearest(truth, query, 10)))
        for query in queries
    )
    assert hits / (50 * 10) > 0.98


@pytest.mark.parametrize("exact_below", [10, 100_000])
def test_k_answers_come_whenever_k_are_alive(exact_below: int) -> None:
    vectors = Vectors(DIM, exact_below)
    truth = {str(n): v for n, v in enumerate(unit(1500, seed=3))}
    vectors.put(list(truth), np.stack(list(truth.values())))
    for item in list(truth)[:1480]:
        vectors.remove(item)
        del truth[item]
    query = unit(1, seed=4)[0]
    assert [item for item, _ in vectors.search(query, 20)] == nearest(truth, query, 20)
    assert len(vectors.search(query, 1000)) == 20


@pytest.mark.parametrize("exact_below", [10, 100_000])
def test_a_search_among_some_is_exact(exact_below: int) -> None:
    vectors = Vectors(DIM, exact_below)
    truth = {str(n): v for n, v in enumerate(unit(600, seed=5))}
    vectors.put(list(truth), np.stack(list(truth.values())))
    among = {item: truth[item] for item in list(truth)[::7]}
    query = unit(1, seed=6)[0]
    found = [item for item, _ in vectors.search(query, 9, among=[*among, "unknown"])]
    assert found == nearest(among, query, 9)


def test_replacing_for_ever_keeps_the_rows_bounded() -> None:
    vectors = Vectors(DIM)
    for seed in range(40):
        vectors.put([str(n) for n in range(100)], unit(100, seed))
    assert vectors._flat.ntotal <= 2 * 100 + 1000
    last = unit(100, 39)
    assert vectors.search(last[17], 1)[0][0] == "17"


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(st.sampled_from(["put", "remove"]), st.integers(0, 9), st.integers(0, 1000)),
        max_size=40,
    ),
    st.sampled_from([3, 1000]),
)
def test_any_history_answers_as_a_dictionary_would(
    history: list[tuple[str, int, int]], exact_below: int
) -> None:
    vectors, truth = Vectors(DIM, exact_below), dict[str, np.ndarray]()
    for action, item, seed in history:
        if action == "put":
            truth[str(item)] = unit(1, seed)[0]
            vectors.put([str(item)], truth[str(item)][np.newaxis])
        else:
            truth.pop(str(item), None)
            vectors.remove(str(item))
    assert len(vectors) == len(truth)
    query = unit(1, seed=2000)[0]
    found = vectors.search(query, 10)
    assert {item for item, _ in found} == set(truth)
    assert [score for _, score in found] == pytest.approx(
        sorted((float(v @ query) for v in truth.values()), reverse=True), abs=1e-6
    )
