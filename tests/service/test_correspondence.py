import numpy as np
import pytest

from service.correspondence import ROWS, correspond


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / (one @ one) ** 0.5 / (other @ other) ** 0.5)


def random_tokens(seed: int, rows: int, columns: int, dim: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, columns, dim)).astype(np.float32)


def test_matches_are_those_of_brute_force():
    first, second = random_tokens(0, 4, 6), random_tokens(1, 5, 3)
    found = correspond(first, second)
    places = [(y, x) for y in range(5) for x in range(3)]
    origins = [(y, x) for y in range(4) for x in range(6)]
    for here in origins:
        match = max(places, key=lambda there: cosine(first[here], second[there]))
        assert tuple(found.matches[here]) == match
        assert found.scores[here] == pytest.approx(cosine(first[here], second[match]), abs=1e-6)
        back = max(origins, key=lambda origin: cosine(first[origin], second[match]))
        assert found.mutual[here] == (back == here)
    assert 0 < found.mutual.sum() < 24


def test_shuffled_patches_are_found_again_across_blocks():
    first = random_tokens(2, 32, 40)
    assert first.shape[0] * first.shape[1] > 4 * ROWS
    order = np.random.default_rng(3).permutation(32 * 40)
    second = 3 * first.reshape(-1, 12)[order].reshape(40, 32, 12)
    found = correspond(first, second)
    places = found.matches[..., 0] * 32 + found.matches[..., 1]
    assert np.array_equal(order[places], np.arange(32 * 40).reshape(32, 40))
    np.testing.assert_allclose(found.scores, 1, atol=1e-5)
    assert found.mutual.all()


def test_of_equal_matches_the_first_is_taken():
    found = correspond(np.ones((2, 2, 4), np.float32), np.ones((3, 3, 4), np.float32))
    assert not found.matches.any()
    assert found.mutual.tolist() == [[True, False], [False, False]]


def test_empty_tokens_match_with_a_score_of_zero():
    found = correspond(np.zeros((1, 1, 4), np.float32), random_tokens(4, 2, 2, 4))
    assert found.scores[0, 0] == 0
