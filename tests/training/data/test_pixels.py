import pytest
import torch

from training.data.pixels import normalise


def test_imagenets_mean_becomes_zero_and_a_deviation_one():
    pixels = torch.tensor([124, 116, 104], dtype=torch.uint8).expand(1, 2, 2, 3)
    assert normalise(pixels).abs().max() < 0.02
    assert normalise(pixels + 58)[0, 0].mean() == pytest.approx(1.0, abs=0.02)


def test_any_number_of_channels_is_normalised():
    pixels = torch.full((2, 4, 4, 5), 255, dtype=torch.uint8)
    assert torch.equal(normalise(pixels, (0.5,), (0.5,)), torch.ones(2, 5, 4, 4))
    means = (0.0, 0.25, 0.5, 0.75, 1.0)
    assert normalise(pixels, means, (1.0,))[0, :, 0, 0].tolist() == pytest.approx(
        [1 - m for m in means]
    )


def test_a_mean_of_other_channels_is_refused():
    with pytest.raises(ValueError, match="mean has 3 values and the images have 1 channels"):
        normalise(torch.zeros(1, 2, 2, 1, dtype=torch.uint8), (0, 0, 0), (1,))
