"""Vectors in memory against brute force, through every way the rows are laid anew."""

from unittest.mock import patch

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.index.vectors import STEP, Vectors

DIM = 16


def unit(count: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def nearest(held: dict[str, np.ndarray], query: np.ndarray, k: int) -> list[str]:
    return sorted(held, key=lambda item: -float(held[item] @ query))[:k]


def settle(vectors: Vectors) -> None:
    """Lay the rows anew as far as that is due."""
    vectors.begin()
    while step := vectors.advance():
        step()


def test_a_graph_finds_nearly_all_that_brute_force_finds() -> None:
    vectors = Vectors(DIM, exact_below=500)
    truth = {str(n): v for n, v in enumerate(unit(4000, seed=1))}
    vectors.put(list(truth), np.stack(list(truth.values())))
    settle(vectors)
    assert vectors._laid.graph is not None
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
    settle(vectors)
    for item in list(truth)[:1480]:
        vectors.remove(item)
        del truth[item]
        settle(vectors)
    query = unit(1, seed=4)[0]
    assert [item for item, _ in vectors.search(query, 20)] == nearest(truth, query, 20)
    assert len(vectors.search(query, 1000)) == 20


@pytest.mark.parametrize("exact_below", [10, 100_000])
def test_a_search_among_some_is_exact(exact_below: int) -> None:
    vectors = Vectors(DIM, exact_below)
    truth = {str(n): v for n, v in enumerate(unit(600, seed=5))}
    vectors.put(list(truth), np.stack(list(truth.values())))
    settle(vectors)
    among = {item: truth[item] for item in list(truth)[::7]}
    query = unit(1, seed=6)[0]
    found = [item for item, _ in vectors.search(query, 9, among=[*among, "unknown"])]
    assert found == nearest(among, query, 9)


def test_replacing_for_ever_keeps_the_rows_bounded() -> None:
    vectors = Vectors(DIM)
    for seed in range(40):
        vectors.put([str(n) for n in range(100)], unit(100, seed))
        settle(vectors)
    assert vectors._laid.flat.ntotal <= 2 * 100 + 1000
    last = unit(100, 39)
    assert vectors.search(last[17], 1)[0][0] == "17"


def test_one_step_never_holds_the_owner_up_for_more_than_its_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vectors = Vectors(DIM, exact_below=500)
    vectors.put([str(n) for n in range(3000)], unit(3000, seed=7))
    added: list[tuple[bool, int]] = []
    owner = True
    add = faiss.IndexHNSWFlat.add

    def note(graph: faiss.IndexHNSWFlat, rows: np.ndarray) -> None:
        added.append((owner, len(rows)))
        add(graph, rows)

    monkeypatch.setattr(faiss.IndexHNSWFlat, "add", note)
    assert vectors.begin()
    while step := vectors.advance():
        owner = False
        step()
        owner = True
    assert sum(rows for _, rows in added) == 3000
    assert max(rows for _, rows in added) <= STEP
    assert [by_owner for by_owner, _ in added] == [False] * (len(added) - 1) + [True]


def test_what_is_given_up_leaves_all_as_it_was() -> None:
    vectors = Vectors(DIM, exact_below=500)
    truth = {str(n): v for n, v in enumerate(unit(2000, seed=8))}
    vectors.put(list(truth), np.stack(list(truth.values())))
    assert vectors.begin()
    step = vectors.advance()
    assert step is not None
    vectors.abandon()
    step()
    assert vectors.advance() is None
    query = unit(1, seed=9)[0]
    assert [item for item, _ in vectors.search(query, 10)] == nearest(truth, query, 10)
    settle(vectors)
    assert vectors._laid.graph is not None


ITEMS = st.integers(0, 60)
HISTORY = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.lists(ITEMS, min_size=1, max_size=12)),
        st.tuples(st.just("remove"), st.lists(ITEMS, min_size=1, max_size=12)),
        st.tuples(
            st.sampled_from(["advance", "advance", "step", "abandon", "search"]), st.just([])
        ),
    ),
    max_size=60,
)


@settings(deadline=None, max_examples=300)
@given(HISTORY, st.sampled_from([3, 20, 1000]), st.sampled_from([1, 4, 16]))
def test_any_history_answers_as_a_dictionary_would(
    history: list[tuple[str, list[int]]], exact_below: int, rows_a_step: int
) -> None:
    """Each put makes new vectors, and a step may still be under way when the next things happen."""
    vectors, truth, step = Vectors(DIM, exact_below), dict[str, np.ndarray](), None
    with patch.multiple("service.index.vectors", STEP=rows_a_step, SLACK=5):
        for seed, (action, numbers) in enumerate(history):
            ids = [str(number) for number in numbers]
            if action == "put":
                new = unit(len(ids), seed)
                vectors.put(ids, new)
                truth |= zip(ids, new, strict=True)
            elif action == "remove":
                for item in ids:
                    truth.pop(item, None)
                    vectors.remove(item)
            elif action == "advance":
                if step is not None:
                    step()
                step = vectors.advance()
            elif action == "step" and step is not None:
                step()
                step = None
            elif action == "abandon":
                vectors.abandon()
            else:
                assert_as_brute_force(vectors, truth, unit(1, seed=2000 + seed)[0])
            vectors.begin()
        if step is not None:
            step()
        settle(vectors)
        assert_as_brute_force(vectors, truth, unit(1, seed=3000)[0])


def assert_as_brute_force(
    vectors: Vectors, truth: dict[str, np.ndarray], query: np.ndarray
) -> None:
    assert len(vectors) == len(truth)
    for k in (3, 100):
        found = vectors.search(query, k)
        assert [item for item, _ in found] == nearest(truth, query, k)
        assert [score for _, score in found] == pytest.approx(
            [float(truth[item] @ query) for item, _ in found], abs=1e-6
        )
