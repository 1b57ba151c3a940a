import io

import numpy as np
import pytest
from PIL import Image

from tests.data import dataset
from training.data.sources import Unreadable
from training.data.sources.picture import PIXELS, EncodedPicture


def encoded(image, form="PNG", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_stands_upright_and_says_so_before_it_is_decoded(orientation):
    upright = Image.new("RGB", (40, 20), "black")
    upright.paste((255, 255, 255), (0, 0, 20, 10))  # the top left
    back = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = upright if back is None else upright.transpose(back)
    exif = Image.Exif()
    exif[274] = orientation
    picture = EncodedPicture(encoded(stored, exif=exif), 3)
    assert picture.size == (40, 20)
    assert np.array_equal(picture.pixels(), np.asarray(upright))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK"])
def test_every_mode_comes_out_as_seen(mode, channels):
    half = np.zeros((4, 8), np.uint16)
    half[:, 4:] = 65535
    image = (
        Image.fromarray(half)
        if mode == "I;16"
        else Image.fromarray((half // 257).astype(np.uint8)).convert("RGB").convert(mode)
    )
    form = "TIFF" if mode == "CMYK" else "PNG"
    pixels = EncodedPicture(encoded(image, form), channels).pixels()
    assert pixels.shape == (4, 8, channels)
    assert (pixels[:, :4] == 0).all()
    assert (pixels[:, 4:] == 255).all()


def test_transparency_lies_over_white():
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert (EncodedPicture(encoded(clear), 3).pixels() == 255).all()


def test_a_jpeg_is_reduced_while_it_is_decoded(photos):
    data = encoded(photos[5].crop((0, 0, 240, 200)), "JPEG", quality=95, subsampling=0)
    full = Image.fromarray(EncodedPicture(data, 3).pixels())
    for reduction in (2, 4, 8):
        pixels = EncodedPicture(data, 3).pixels(reduction)
        assert pixels.shape == (200 // reduction, 240 // reduction, 3)
        assert np.abs(pixels.astype(int) - np.asarray(full.reduce(reduction))).mean() < 3
    assert EncodedPicture(encoded(photos[5], "JPEG"), 3).pixels(8).shape == (26, 31, 3)


def test_too_many_pixels_are_refused_before_they_are_decoded():
    bomb = encoded(Image.new("1", (2**13 + 1, 2**13)))
    with pytest.raises(Unreadable, match=f"8193 x 8192 pixels; the limit is {PIXELS}"):
        EncodedPicture(bomb, 3)


def test_whatever_is_hostile_is_decoded_or_unreadable():
    for path in sorted(dataset("odd_public").iterdir()):
        try:
            pixels = EncodedPicture(path.read_bytes(), 3).pixels()
        except Unreadable:
            continue
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 3
