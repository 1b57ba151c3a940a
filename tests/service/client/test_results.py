import numpy as np
import pytest

from service.attention import run_lengths
from service.client.results import decode_mask


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (60, 41)])
def test_a_mask_comes_back_as_it_was(shape: tuple[int, int], share: float) -> None:
    mask = np.random.default_rng(0).random(shape) < share
    assert np.array_equal(decode_mask(**run_lengths(mask)), mask)
