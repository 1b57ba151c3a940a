import numpy as np
import pytest
from PIL import Image

from tests.data import dataset


@pytest.fixture(scope="session")
def photos():
    """Real photographs of different sizes, about 250 x 200."""
    paths = sorted(p for p in dataset("photos").iterdir() if p.suffix in {".jpg", ".png"})[:40]
    images = []
    for number, path in enumerate(paths):
        with Image.open(path) as photo:
            images.append(photo.convert("RGB").resize((240 + number, 200 + number % 7)))
    return images


@pytest.fixture(scope="session")
def padded(photos):
    """The same as one array."""
    width, height = np.max([photo.size for photo in photos], axis=0)
    array = np.zeros((len(photos), height, width, 3), np.uint8)
    for pixels, photo in zip(array, photos, strict=True):
        pixels[: photo.height, : photo.width] = np.asarray(photo)
    return array
