import colorsys

import numpy as np
import pytest
from PIL import Image

from tests.data import dataset
from training.data.crops import (
    FIRST_GLOBAL,
    LOCAL,
    SECOND_GLOBAL,
    CropConfig,
    crop_box,
    distort,
    multi_crop,
    shift_hue,
)


@pytest.fixture(scope="module")
def photo():
    with Image.open(dataset("photos") / "skimage_astronaut.png") as image:
        return image.convert("RGB")


def test_gives_two_global_and_the_local_crops(photo):
    config = CropConfig(global_size=64, local_size=24, local_count=5)
    large, small = multi_crop(photo, config, np.random.default_rng(0))
    assert large.shape == (2, 64, 64, 3)
    assert small.shape == (5, 24, 24, 3)
    assert large.dtype == small.dtype == np.uint8


def test_gives_no_local_crop_when_multi_crop_is_off(photo):
    config = CropConfig(global_size=32, local_size=16, local_count=0)
    assert multi_crop(photo, config, np.random.default_rng(0))[1].shape == (0, 16, 16, 3)


def test_is_a_function_of_the_generator(photo):
    config = CropConfig(global_size=32, local_size=16, local_count=2)
    one, same, other = (multi_crop(photo, config, np.random.default_rng(s))[0] for s in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_boxes_fill_their_range_of_area_and_aspect():
    random = np.random.default_rng(0)
    boxes = np.array([crop_box(400, 400, (0.05, 0.4), random) for _ in range(4000)])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    share, log_aspect = width * height / 160_000, np.log(width / height)
    assert boxes.min() >= 0
    assert boxes.max() <= 400
    # Uniform over the range: mean in the middle, deviation the range over sqrt(12).
    assert share.mean() == pytest.approx(0.225, abs=0.005)
    assert share.std() == pytest.approx(0.35 / 12**0.5, rel=0.03)
    assert np.abs(log_aspect).max() <= np.log(4 / 3) + 0.02
    assert log_aspect.mean() == pytest.approx(0.0, abs=0.01)
    assert boxes[:, 0].mean() == pytest.approx((400 - width).mean() / 2, rel=0.03)


def test_a_box_that_never_fits_is_the_centre_at_the_nearest_aspect():
    assert crop_box(1000, 30, (0.9, 1.0), np.random.default_rng(0)) == (480, 0, 520, 30)


@pytest.mark.parametrize(
    ("kind", "grey", "blurred", "solarised"),
    [(FIRST_GLOBAL, 0.2, 1.0, 0.0), (SECOND_GLOBAL, 0.2, 0.1, 0.2), (LOCAL, 0.2, 0.5, 0.0)],
)
def test_each_distortion_comes_as_often_as_published(monkeypatch, kind, grey, blurred, solarised):
    seen = {"blur": 0, "solarize": 0, "jitter": 0}

    def count(name, real):
        def counted(*args):
            seen[name] += 1
            return real(*args)

        return counted

    from training.data import crops

    monkeypatch.setattr(crops.ImageOps, "solarize", count("solarize", crops.ImageOps.solarize))
    blur = crops.ImageFilter.GaussianBlur
    monkeypatch.setattr(crops.ImageFilter, "GaussianBlur", count("blur", blur))
    monkeypatch.setattr(crops, "jitter", count("jitter", crops.jitter))
    random, crop = np.random.default_rng(0), Image.new("RGB", (8, 8), (200, 40, 90))
    trials = 2000
    outcomes = [distort(crop, kind, (0.1, 2.0), random) for _ in range(trials)]
    without_colour = sum((np.ptp(pixels, axis=2) == 0).all() for pixels in outcomes)
    assert without_colour / trials == pytest.approx(grey, abs=0.03)
    assert seen["blur"] / trials == pytest.approx(blurred, abs=0.03)
    assert seen["solarize"] / trials == pytest.approx(solarised, abs=0.03)
    assert seen["jitter"] / trials == pytest.approx(0.8, abs=0.03)


def test_half_of_the_crops_are_mirrored():
    random, crop = np.random.default_rng(0), Image.new("RGB", (8, 8))
    crop.paste((255, 255, 255), (4, 0, 8, 8))
    flips = [distort(crop, LOCAL, (0.1, 2.0), random)[:, :4].mean() > 127 for _ in range(2000)]
    assert np.mean(flips) == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize("turn", [-0.1, 0.05, 0.1])
def test_hue_turns_as_colorsys_says(turn):
    colours = np.random.default_rng(0).integers(0, 256, (200, 3))
    crop = Image.fromarray(colours[None].astype(np.uint8))
    turned = np.asarray(shift_hue(crop, turn))[0]
    for before, after in zip(colours / 255, turned / 255, strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*before)
        expected = colorsys.hsv_to_rgb((hue + turn) % 1.0, saturation, value)
        assert np.abs(after - expected).max() < 0.04  # Pillow keeps hue in eight bits
