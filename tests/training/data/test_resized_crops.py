"""One image at a time and many at once, beside Pillow's crop and resize."""

import numpy as np
import pytest
import torch
from PIL import Image

from training.data import batched, single
from training.data.crops import CropConfig
from training.data.views import boxes, numbers

CONFIG = CropConfig(global_size=96, local_size=48, local_count=4)


@pytest.fixture(scope="module")
def drawn(photos):
    uniform = numbers(CONFIG, len(photos), np.random.default_rng(0))
    return boxes(CONFIG, uniform, np.array([photo.size for photo in photos]))


def reference(photos, drawn, side):
    bicubic = Image.Resampling.BICUBIC
    return np.stack(
        [
            [np.asarray(photo.crop(box.tolist()).resize((side, side), bicubic)) for box in row]
            for photo, row in zip(photos, drawn, strict=True)
        ]
    ).astype(int)


@pytest.mark.parametrize(("crops", "side"), [(slice(0, 2), 96), (slice(2, None), 48)])
def test_many_at_once_are_pillows(photos, padded, drawn, crops, side):
    ours = batched.resized_crops(torch.from_numpy(padded), drawn[:, crops], side)
    ours = ours.permute(0, 2, 3, 1).unflatten(0, (len(photos), -1)).numpy().astype(int)
    difference = np.abs(ours - reference(photos, drawn[:, crops], side))
    assert difference.mean() < 0.25  # Pillow rounds between its two passes
    assert (difference > 1).mean() < 1e-3


@pytest.mark.parametrize(("crops", "side"), [(slice(0, 2), 96), (slice(2, None), 48)])
def test_one_at_a_time_is_pillows(photos, drawn, crops, side):
    theirs = reference(photos, drawn[:, crops], side)
    for photo, row, expected in zip(photos, drawn[:, crops], theirs, strict=True):
        ours = single.resized_crops(torch.from_numpy(np.array(photo)), row, side)
        difference = np.abs(ours.permute(0, 2, 3, 1).numpy().astype(int) - expected)
        assert difference.mean() < 0.25
        assert difference.max() <= 3


@pytest.mark.parametrize("channels", [1, 5])
def test_other_channels_are_resized_like_one(padded, drawn, channels):
    image = torch.from_numpy(np.repeat(padded[:1, :, :, :1], channels, axis=3))
    alone = single.resized_crops(image[0], drawn[0, 2:], 48)
    together = batched.resized_crops(image, drawn[:1, 2:], 48)
    assert alone.shape == together.shape == (4, channels, 48, 48)
    assert torch.equal(alone[:, 0], alone[:, -1])
    assert (alone.int() - together.int()).abs().float().mean() < 0.3


def test_no_crops_are_none(padded, drawn):
    none = drawn[:, 6:]
    assert batched.resized_crops(torch.from_numpy(padded), none, 48).shape == (0, 3, 48, 48)
    assert single.resized_crops(torch.from_numpy(padded[0]), none[0], 48).shape == (0, 3, 48, 48)
