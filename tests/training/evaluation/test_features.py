"""What a network is evaluated on."""

import numpy as np
import pytest
from PIL import Image

from service.bundle import InputSpec
from service.images import View, fit
from training.data.sources import open_source
from training.evaluation.features import LIMITS, batches, raw_pixels


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_images_of_other_channels_are_fitted_channel_by_channel(channels, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 40, 56, channels), np.uint8)
    pixels[..., -1] = 0  # a fourth channel is no transparency
    np.savez(tmp_path / "set.npz", train_x=pixels)
    spec = InputSpec(resize=32, crop=24, multiple=8, mean=(0.5,) * 3, std=(0.5,) * 3)
    source = open_source(tmp_path / "set.npz", channels)
    ((_, fitted),) = batches(source, [0, 1, 2], spec)
    for channel in range(channels):
        alone = [Image.fromarray(image[..., channel]) for image in pixels]
        expected = [np.asarray(fit(image, spec, View(), LIMITS)) for image in alone]
        np.testing.assert_array_equal(fitted[..., channel], expected)
    assert raw_pixels(source).features.shape == (3, 1024 * channels)
