import numpy as np
import pytest
from pydantic import ValidationError

from training.data.crops import CropConfig
from training.data.views import BRIGHTNESS, HUE, SATURATION, boxes, distortions, numbers


def drawn(images=4000, size=(400, 400), **changes):
    config = CropConfig(local_count=2, **changes)
    uniform = numbers(config, images, np.random.default_rng(0))
    return boxes(config, uniform, np.tile([size], (images, 1))), distortions(config, uniform)


def test_boxes_fill_their_range_of_area_and_aspect():
    box = drawn()[0][:, 2:].reshape(-1, 4)
    width, height = box[:, 2] - box[:, 0], box[:, 3] - box[:, 1]
    share, log_aspect = width * height / 160_000, np.log(width / height)
    assert box.min() >= 0
    assert box.max() <= 400
    # Uniform over the range: mean in the middle, deviation the range over sqrt(12).
    assert share.mean() == pytest.approx(0.225, abs=0.005)
    assert share.std() == pytest.approx(0.35 / 12**0.5, rel=0.03)
    assert np.abs(log_aspect).max() <= np.log(4 / 3) + 0.02
    assert log_aspect.mean() == pytest.approx(0.0, abs=0.01)
    for side, extent in ((0, width), (1, height)):
        assert box[:, side].mean() == pytest.approx((400 - extent).mean() / 2, rel=0.03)


def test_global_boxes_have_the_global_scale():
    box = drawn()[0][:, :2]
    share = np.prod(box[..., 2:] - box[..., :2], axis=-1) / 160_000
    assert share.min() >= 0.39
    assert share.max() > 0.95


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (2, 3)])
def test_a_tiny_image_has_boxes_of_at_least_a_pixel(size):
    box = drawn(50, size)[0]
    assert (box[..., 2:] > box[..., :2]).all()
    assert (box[..., :2] >= 0).all()
    assert (box[..., 2:] <= size).all()


def test_a_box_that_never_fits_is_the_centre_at_the_nearest_aspect():
    box = drawn(20, (1000, 30), global_scale=(0.9, 1.0))[0]
    assert (box[:, :2] == [480, 0, 520, 30]).all()


def test_each_distortion_comes_as_often_as_published():
    draws = drawn()[1]
    assert draws.flip.mean() == pytest.approx(0.5, abs=0.02)
    assert draws.jitter.mean() == pytest.approx(0.8, abs=0.02)
    assert draws.grey.mean() == pytest.approx(0.2, abs=0.02)
    assert (draws.blur > 0).mean(axis=0) == pytest.approx([1.0, 0.1, 0.5, 0.5], abs=0.03)
    assert draws.solarize.mean(axis=0) == pytest.approx([0.0, 0.2, 0.0, 0.0], abs=0.03)
    radius = draws.blur[:, 0]
    assert (radius.min(), radius.max()) == pytest.approx((0.1, 2.0), abs=0.01)


def test_jitter_has_the_published_strengths_in_every_order():
    draws = drawn()[1]
    factors, turn = draws.amount[..., : SATURATION + 1], draws.amount[..., HUE]
    low, high = factors.min(axis=(0, 1)), factors.max(axis=(0, 1))
    assert low == pytest.approx([0.6, 0.6, 0.8], abs=0.01)
    assert high == pytest.approx([1.4, 1.4, 1.2], abs=0.01)
    assert (turn.min(), turn.max()) == (-25, 25)  # a tenth of 255 levels
    first = [(draws.order[..., 0] == kind).mean() for kind in range(BRIGHTNESS, HUE + 1)]
    assert first == pytest.approx([0.25] * 4, abs=0.02)
    assert (np.sort(draws.order, axis=-1) == np.arange(4)).all()


def test_what_a_recipe_turns_off_never_comes():
    draws = drawn(200, flip=0, jitter=0, grey=0, solarize=0, blur_chance=(0, 0, 0))[1]
    for field in (draws.flip, draws.jitter, draws.grey, draws.solarize, draws.blur):
        assert not field.any()


@pytest.mark.parametrize(
    "wrong", [{"global_scale": (0.5, 0.4)}, {"local_scale": (0, 1.5)}, {"blur_chance": (1, 2, 0)}]
)
def test_a_range_that_makes_no_sense_is_named(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        CropConfig(**wrong)
