import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from service.attention import mass_masks, render, run_lengths, select_heads
from service.errors import InvalidOption

MAPS = np.random.default_rng(0).random((3, 5, 7), np.float32)

positive_maps = arrays.arrays(
    np.float32, (2, 3, 4), elements=st.floats(np.float32(1e-3), 1, width=32)
)
masks = arrays.arrays(np.bool_, arrays.array_shapes(min_dims=2, max_dims=2, max_side=40))


def decoded(encoding: dict) -> np.ndarray:
    """COCO's format read back plainly: characters -> five-bit groups -> deltas -> runs."""
    height, width = encoding["size"]
    runs, bits, shift = [], 0, 0
    for character in encoding["counts"]:
        group = ord(character) - 48
        assert 0 <= group < 64
        bits += (group % 32) * 2**shift
        shift += 5
        if group < 32:
            value = bits - 2**shift if group >= 16 else bits
            runs.append(value + (runs[-2] if len(runs) >= 3 else 0))
            bits, shift = 0, 0
    pixels = [index % 2 == 1 for index, run in enumerate(runs) for _ in range(run)]
    return np.array([[pixels[x * height + y] for x in range(width)] for y in range(height)])


def opened(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        return np.asarray(image)


def test_all_heads_keep_their_order():
    names, maps = select_heads(MAPS, "all")
    assert names == [0, 1, 2]
    assert np.array_equal(maps, MAPS)


def test_mean_is_one_map():
    names, maps = select_heads(MAPS, "mean")
    assert names == ["mean"]
    np.testing.assert_allclose(maps[0], sum(MAPS) / 3, rtol=1e-6)


def test_named_heads_come_in_the_order_asked():
    names, maps = select_heads(MAPS, "2, 0")
    assert names == [2, 0]
    assert np.array_equal(maps, np.stack([MAPS[2], MAPS[0]]))


@pytest.mark.parametrize("heads", ["", "3", "-1", "0,0", "0,,1", "first", "all,mean", "1.0", "²"])
def test_heads_that_are_not_there_are_refused(heads):
    with pytest.raises(InvalidOption, match="from 0 to 2"):
        select_heads(MAPS, heads)


@given(positive_maps, st.floats(0.01, 1))
def test_mask_holds_its_mass_and_no_smaller_one_does(maps, mass):
    for one, mask in zip(maps.astype(np.float64), mass_masks(maps, mass), strict=True):
        chosen, count = one[mask].sum(), mask.sum()
        assert chosen >= mass * one.sum() * (1 - 1e-9)
        # No set with one patch less can hold as much as the greatest ones do.
        assert np.sort(one.ravel())[::-1][: count - 1].sum() < mass * one.sum() * (1 + 1e-9)


def test_mask_is_that_of_the_papers_figure():
    """DINO drops, from the least patch up, those whose running sum stays within 1 - mass."""
    for one, mask in zip(MAPS, mass_masks(MAPS, 0.6), strict=True):
        share = one.astype(np.float64).ravel() / one.astype(np.float64).sum()
        running, kept = 0.0, np.zeros(share.size, bool)
        for patch in np.argsort(share):
            running += share[patch]
            kept[patch] = running > 0.4
        assert np.array_equal(mask.ravel(), kept)


@pytest.mark.parametrize("mass", [0, -0.1, 1.01, float("nan")])
def test_mass_out_of_range_is_refused(mass):
    with pytest.raises(InvalidOption, match="mass"):
        mass_masks(MAPS, mass)


@given(masks)
def test_run_lengths_decode_to_the_mask(mask):
    assert np.array_equal(decoded(run_lengths(mask)), mask)


def test_run_lengths_agree_with_a_known_encoding():
    """Worked by hand: runs 1 2 1 2 3, so deltas 1 2 1 0 2."""
    mask = np.array([[0, 0, 0], [1, 1, 0], [1, 1, 0]], bool)
    assert run_lengths(mask) == {"size": [3, 3], "counts": "12102"}


def test_long_runs_take_several_characters():
    assert run_lengths(np.zeros((100, 10), bool)) == {"size": [100, 10], "counts": "Xo0"}


def test_small_photograph_is_enlarged_by_a_whole_number():
    pixels = np.random.default_rng(1).integers(0, 256, (96, 128, 3), np.uint8)
    assert opened(render(pixels, MAPS, "overlay", 0.6)).shape == (384, 512, 3)


def test_large_photograph_keeps_its_pixels():
    pixels = np.random.default_rng(1).integers(0, 256, (480, 640, 3), np.uint8)
    assert opened(render(pixels, MAPS, "overlay", 0.6)).shape == (480, 640, 3)


def test_heatmap_is_bright_where_attention_is():
    maps = np.zeros((1, 4, 4), np.float32)
    maps[0, 0, 3] = 1
    picture = opened(render(np.zeros((128, 128, 3), np.uint8), maps, "heatmap", 0.6)).sum(axis=2)
    row, column = np.unravel_index(picture.argmax(), picture.shape)
    assert row < 128
    assert column >= 384
    assert picture[256:, :256].max() < 30


def test_overlay_leaves_the_photograph_recognisable():
    pixels = np.zeros((128, 128, 3), np.uint8)
    pixels[:, 64:] = 200
    quiet = np.zeros((1, 4, 4), np.float32)
    picture = opened(render(pixels, quiet, "overlay", 0.6)).astype(int)
    assert (picture[:, 300:].sum(axis=2) - picture[:, :200].sum(axis=2).mean()).min() > 200


def test_mask_keeps_the_photograph_inside_and_dims_it_outside():
    pixels = np.full((128, 128, 3), 200, np.uint8)
    maps = np.zeros((1, 2, 2), np.float32)
    maps[0, 1, 0] = 1
    picture = opened(render(pixels, maps, "mask", 0.6))
    assert np.all(picture[260:508, 4:252] == 200)
    assert picture[:250].max() < 100


def test_grid_holds_every_head():
    pixels = np.full((320, 320, 3), 90, np.uint8)
    for count, shape in ((1, (320, 320)), (3, (320, 972)), (6, (646, 972)), (12, (972, 1298))):
        maps = np.random.default_rng(2).random((count, 4, 4), np.float32)
        assert opened(render(pixels, maps, "heads", 0.6)).shape == (*shape, 3)


def test_uniform_attention_is_drawn():
    pixels = np.full((64, 64, 3), 90, np.uint8)
    for view in ("heatmap", "overlay", "mask", "heads"):
        assert render(pixels, np.full((2, 4, 4), 1 / 16, np.float32), view, 1.0)


def test_mask_picture_refuses_a_mass_out_of_range():
    with pytest.raises(InvalidOption, match="mass"):
        render(np.zeros((64, 64, 3), np.uint8), MAPS, "mask", 2.0)
