import tracemalloc

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from tests.data import dataset
from training.data.sources import ImageFolder
from training.evaluation import knn
from training.evaluation.features import raw_pixels
from training.evaluation.knn import knn_accuracy


@pytest.mark.parametrize("k", [1, 20, 200, 10_000])
def test_equals_scikit_learn(k):
    random = np.random.default_rng(0)
    centres = random.normal(size=(5, 16))
    labels, test_labels = random.integers(0, 5, 600), random.integers(0, 5, 1500)
    train = (centres[labels] + 2 * random.normal(size=(600, 16))).astype(np.float32)
    test = (centres[test_labels] + 2 * random.normal(size=(1500, 16))).astype(np.float32)
    oracle = KNeighborsClassifier(
        n_neighbors=min(k, 600),
        metric="cosine",
        algorithm="brute",
        weights=lambda distance: np.exp((1 - distance) / 0.07),
    )
    oracle.fit(train, labels)
    expected = oracle.score(test, test_labels)
    assert 0.3 < expected < 0.95
    assert knn_accuracy(train, labels, test, test_labels, k) == pytest.approx(expected, abs=1e-3)


def test_memory_is_bounded_and_decides_no_answer(monkeypatch):
    random = np.random.default_rng(0)
    labels, test_labels = random.integers(0, 3, 20_000), random.integers(0, 3, 700)
    train = (labels[:, None] + random.normal(size=(20_000, 8))).astype(np.float32)
    test = (test_labels[:, None] + random.normal(size=(700, 8))).astype(np.float32)
    expected = knn_accuracy(train, labels, test, test_labels)
    monkeypatch.setattr(knn, "PAIRS", 2**17)
    tracemalloc.start()
    accuracy = knn_accuracy(train, labels, test, test_labels)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert accuracy == expected
    # The features once more, and 12 bytes a pair.
    assert peak < 3 * train.nbytes + 16 * 2**17


def test_raw_pixels_of_imagenette_reach_the_known_floor():
    """37.3 %: 32 x 32 pixels, centred, cosine, k = 20, T = 0.07."""

    root = dataset("imagenette128")
    train, test = ImageFolder.open(root / "train"), ImageFolder.open(root / "val")
    train_x, test_x = raw_pixels(train).features, raw_pixels(test).features
    centre = train_x.mean(axis=0)
    accuracy = knn_accuracy(train_x - centre, train.labels, test_x - centre, test.labels)
    assert 100 * accuracy == pytest.approx(37.3, abs=0.5)
