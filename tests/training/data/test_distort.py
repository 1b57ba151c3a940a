"""Pillow is the oracle: the same draws, one crop at a time."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from tests.training.data import pillow
from training.data.crops import CropConfig
from training.data.distort import blur_kernels, distort
from training.data.views import distortions, numbers

OFF = {"flip": 0, "jitter": 0, "grey": 0, "blur_chance": (0, 0, 0), "solarize": 0}
SIDE = 96


def pairs(photos, mode="RGB", kind=None, **on):
    """Crops as distorted here and by Pillow, [crops, side, side, channels] as integers."""
    config = CropConfig(local_count=0, **{**OFF, **on})
    draws = distortions(config, numbers(config, len(photos), np.random.default_rng(1))).flat()
    if kind is not None:
        draws = dataclasses.replace(draws, order=np.full((len(draws), 1), kind))
    squares = [photo.convert(mode).resize((SIDE, SIDE)) for photo in photos for _ in range(2)]
    whole = np.array([0, 0, SIDE, SIDE])
    theirs = np.stack([pillow.crop(s, whole, draws[i], SIDE) for i, s in enumerate(squares)])
    planes = np.stack([np.atleast_3d(np.asarray(square)) for square in squares])
    crops = torch.from_numpy(planes).permute(0, 3, 1, 2).contiguous()
    ours = distort(crops, draws).permute(0, 2, 3, 1).numpy()
    return ours.astype(int), theirs.astype(int)


@pytest.mark.parametrize(
    "on", [{"flip": 1}, {"grey": 1}, {"solarize": 1}], ids=["flip", "grey", "solarize"]
)
def test_what_has_no_strength_is_pillows_to_the_level(photos, on):
    ours, theirs = pairs(photos, **on)
    assert np.abs(ours - theirs).max() <= ("grey" in on)
    assert (ours != theirs).mean() < 1e-3


@pytest.mark.parametrize("kind", range(4), ids=["brightness", "contrast", "saturation", "hue"])
def test_each_colour_change_is_pillows_to_a_level(photos, kind):
    ours, theirs = pairs(photos, kind=kind, jitter=1)
    difference = np.abs(ours - theirs)
    # Pillow computes in float32 too; what lies on the edge of a level may fall on either side.
    assert difference.mean() < 0.02
    assert (difference > 1).mean() < 2e-3


def test_colour_changes_in_any_order_are_pillows(photos):
    ours, theirs = pairs(photos, jitter=1)
    assert np.abs(ours - theirs).mean() < 0.1
    assert abs((ours - theirs).mean()) < 0.02


def test_blur_is_pillows_but_for_the_rounding_between_its_passes(photos):
    ours, theirs = pairs(photos, blur_chance=(1, 1, 0))
    difference = np.abs(ours - theirs)
    assert difference.mean() < 0.4
    inner = difference[:, 6:-6, 6:-6]  # at the edges Pillow repeats pixels before every pass
    assert inner.max() <= 3
    assert abs((ours - theirs).mean()) < 0.02


def test_a_blur_has_the_variance_that_its_radius_asks_for():
    radius = np.array([0.1, 0.7, 1.5, 2.0, 5.0])
    taps = blur_kernels(radius)
    offsets = np.arange(taps.shape[1]) - taps.shape[1] // 2
    assert taps.sum(axis=1) == pytest.approx(np.ones(5))
    assert (taps * offsets**2).sum(axis=1) == pytest.approx(radius**2, rel=1e-6)


def test_grey_images_change_in_brightness_and_contrast_only(photos):
    ours, theirs = pairs(photos, mode="L", flip=0.5, jitter=0.8, grey=0.2, solarize=0.2)
    assert ours.shape[-1] == 1
    assert np.abs(ours - theirs).mean() < 0.05


def test_any_number_of_channels_is_taken():
    config = CropConfig(local_count=0)
    crops = torch.randint(0, 256, (8, 5, 16, 16), dtype=torch.uint8)
    before = crops.clone()
    draws = distortions(config, numbers(config, 4, np.random.default_rng(0))).flat()
    assert distort(crops, draws).shape == (8, 5, 16, 16)
    assert not torch.equal(crops, before)


def test_crops_come_out_alike_alone_and_in_a_batch(photos):
    config = CropConfig(local_count=0)
    draws = distortions(config, numbers(config, 20, np.random.default_rng(0))).flat()
    planes = np.stack([np.asarray(p.resize((SIDE, SIDE))) for p in photos]).transpose(0, 3, 1, 2)
    together = distort(torch.from_numpy(planes.copy()), draws)
    for number in range(len(photos)):
        one = slice(number, number + 1)
        alone = distort(torch.from_numpy(planes[one].copy()), draws[one])
        assert (alone.int() - together[one].int()).abs().max() <= 1


def test_the_crops_are_distributed_as_pillows(photos):
    on = {"flip": 0.5, "jitter": 0.8, "grey": 0.2, "blur_chance": (1, 0.1, 0), "solarize": 0.2}
    ours, theirs = pairs(photos, **on)

    def statistics(crops):
        gradient = np.diff(crops, axis=2) ** 2
        return [*crops.mean((0, 1, 2)), *crops.std((0, 1, 2)), gradient.mean() ** 0.5]

    assert statistics(ours) == pytest.approx(statistics(theirs), rel=0.005)


def test_the_oracle_turns_hue_as_a_viewer_sees_it():
    red = Image.new("RGB", (1, 1), (255, 0, 0))
    assert pillow.jitter(red, 3, 85).getpixel((0, 0)) == (0, 255, 0)
