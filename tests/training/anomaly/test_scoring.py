import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from training.anomaly.scoring import PatchDensity, image_scores, starts, windowed


def generator():
    return torch.Generator().manual_seed(0)


def test_density_equals_scikit_learns_neighbours():
    normal = torch.randn(300, 16, generator=generator())
    patches = torch.randn(2, 3, 4, 16, generator=generator())
    oracle = NearestNeighbors(n_neighbors=5, metric="cosine").fit(normal.numpy())
    distances, _ = oracle.kneighbors(patches.reshape(-1, 16).numpy())
    maps = PatchDensity(normal, generator(), neighbours=5)(patches)
    expected = torch.tensor(distances.mean(axis=1)).view(2, 3, 4)
    assert torch.allclose(maps, expected.float(), atol=1e-5)


def test_a_small_bank_is_a_sample_of_the_normal_patches():
    normal = torch.nn.functional.normalize(torch.randn(50, 8, generator=generator()), dim=1)
    bank = PatchDensity(normal, generator(), size=20).bank
    nearest = torch.cdist(bank, normal).min(dim=1)
    assert nearest.values.max() < 1e-3
    assert len(nearest.indices.unique()) == 20


def test_windows_of_a_local_score_give_the_map_of_the_whole():
    """A score that looks at its own patch only does not notice the windows."""

    def brightness(images):
        return torch.nn.functional.avg_pool2d(images, 8)[:, 0]

    images = torch.rand(2, 1, 72, 104, generator=generator())
    maps = windowed(brightness, images, side=32, patch=8, overlap=16)
    assert torch.allclose(maps, brightness(images), atol=1e-6)


def test_overlapping_windows_are_averaged():
    calls = iter((1.0, 3.0))

    def number(images):
        return torch.full((len(images), 2, 2), next(calls))

    maps = windowed(number, torch.zeros(1, 3, 16, 24), side=16, patch=8, overlap=8)
    assert maps[0, 0].tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(("length", "side", "step"), [(200, 64, 48), (64, 64, 48), (72, 64, 64)])
def test_windows_cover_every_place_and_end_at_the_edge(length, side, step):
    covered = {place for at in starts(length, side, step) for place in range(at, at + side)}
    assert covered == set(range(length))


def test_images_that_no_window_fits_are_refused():
    with pytest.raises(ValueError, match="at least 32: resize them"):
        windowed(lambda images: images[:, 0], torch.zeros(1, 3, 24, 64), 32, 8, 8)


def test_an_image_is_as_anomalous_as_its_worst_patches():
    maps = torch.zeros(2, 10, 10)
    maps[1, 4, 4:6] = torch.tensor([1.0, 3.0])
    assert image_scores(maps, share=0.02).tolist() == [0.0, 2.0]
    assert image_scores(maps, share=0.0).tolist() == [0.0, 3.0]
