import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from service import resampling
from service.resampling import resize
from tests.data import dataset

SIDES = st.integers(1, 150)
BICUBIC = Image.Resampling.BICUBIC


@pytest.fixture(params=["simd", "pillow"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Either kind of machine: one that has a build of the resizer, and one that has none."""
    if request.param == "pillow":
        monkeypatch.setattr(resampling, "Resizer", None)


def two_passes(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """Pillow's own result, across first, whatever order its release would take."""
    across = image.resize((size[0], image.height), BICUBIC)
    return np.asarray(across.resize(size, BICUBIC)).astype(int)


def differences(image: Image.Image, size: tuple[int, int], part: tuple[int, ...]) -> np.ndarray:
    left, top, right, bottom = part
    resized = resize(image, size, part)
    assert resized.mode == image.mode
    return np.abs(np.asarray(resized) - two_passes(image, size)[top:bottom, left:right])


@given(st.data())
def test_any_part_of_any_picture_is_as_pillow_would_have_it(data: st.DataObject) -> None:
    width, height, new_width, new_height = (data.draw(SIDES) for _ in range(4))
    left, top = data.draw(st.integers(0, new_width - 1)), data.draw(st.integers(0, new_height - 1))
    right = data.draw(st.integers(left + 1, new_width))
    bottom = data.draw(st.integers(top + 1, new_height))
    mode, channels = data.draw(st.sampled_from([("RGB", (3,)), ("L", ())]))
    noise = np.random.default_rng(data.draw(st.integers(0, 99)))
    # Noise overshoots at every edge: what is cut off between the passes shows.
    pixels = noise.choice([0, 255], (height, width, *channels)).astype(np.uint8)
    image = Image.fromarray(pixels)
    assert image.mode == mode
    apart = differences(image, (new_width, new_height), (left, top, right, bottom))
    assert apart.max() <= 2


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("size", [None, (300, 1800), (1800, 300)])
def test_photographs_differ_rarely_and_then_by_a_level_or_two(
    size: tuple[int, int] | None,
) -> None:
    changed = []
    for path in sorted(dataset("photos").glob("*.jpg"))[:12]:
        with Image.open(path) as opened:
            image = opened.convert("RGB") if size is None else opened.convert("RGB").resize(size)
        short = 256 / min(image.size)
        fitted = (int(image.width * short), int(image.height * short))
        apart = differences(image, fitted, (8, 8, fitted[0] - 8, fitted[1] - 8))
        assert apart.max() <= 2
        changed.append(np.mean(apart > 0))
    assert np.mean(changed) < 0.01
