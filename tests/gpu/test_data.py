"""A GPU cuts and distorts a CPU's crops."""

import numpy as np
import pytest
import torch

from tests.data import dataset
from training.data import batched, loader
from training.data.crops import CropConfig
from training.data.device_loader import DeviceLoader
from training.data.distort import distort
from training.data.loader import ResidentLoader
from training.data.sources import DataError, ImageFolder
from training.data.views import boxes, distortions, numbers

pytestmark = pytest.mark.gpu

CROPS = CropConfig(global_size=96, local_size=48, local_count=4)
BATCH = 16


@pytest.fixture(scope="module")
def source():
    return ImageFolder.open(dataset("photos"))


def assert_like(given, expected):
    """Alike but for sums that end beside a half, one level up or down."""
    difference = (given.cpu().int() - expected.int()).abs().float()
    assert difference.mean() < 0.05
    assert (difference > 1).float().mean() < 1e-3


def test_crops_are_the_cpus(device):
    random = np.random.default_rng(0)
    images = torch.from_numpy(random.integers(0, 256, (BATCH, 90, 120, 3), np.uint8))
    drawn = boxes(CROPS, numbers(CROPS, BATCH, random), np.array([[120, 90]] * BATCH))
    expected = batched.resized_crops(images, drawn, 48)
    assert_like(batched.resized_crops(images.to(device), drawn, 48), expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_distortions_are_the_cpus(channels, device):
    random = np.random.default_rng(0)
    draws = distortions(CROPS, numbers(CROPS, 64, random)).flat()
    crops = random.integers(0, 256, (len(draws), channels, 48, 48), np.uint8)
    expected = distort(torch.from_numpy(crops.copy()), draws)
    assert_like(distort(torch.from_numpy(crops).to(device), draws), expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_workers_decode_becomes_the_cpus_crops(workers, source, device):
    expected = DeviceLoader(source, CROPS, BATCH, seed=3, workers=0, device="cpu")
    given = DeviceLoader(source, CROPS, BATCH, seed=3, workers=workers, device=device)
    for epoch in (0, 1):
        for one, two in zip(given.epoch(epoch), expected.epoch(epoch), strict=True):
            for a, b in zip(one, two, strict=True):
                assert a.device == device
                assert_like(a, b)


def test_resident_crops_are_the_cpus(source, device):
    # Their memory is used again, in another stream, while the next ones are made.
    given = list(ResidentLoader(source, CROPS, BATCH, seed=3, device=device).epoch(0))
    expected = ResidentLoader(source, CROPS, BATCH, seed=3, device="cpu").epoch(0)
    for one, two in zip(given, expected, strict=True):
        for a, b in zip(one, two, strict=True):
            assert_like(a, b)


def test_a_set_that_would_fill_the_gpu_is_refused(source, device, monkeypatch):
    monkeypatch.setattr(loader, "ROOM", 1e-9)
    with pytest.raises(DataError, match="set resident=false"):
        ResidentLoader(source, CROPS, BATCH, seed=3, device=device)
