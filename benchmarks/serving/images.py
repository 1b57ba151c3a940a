"""The photographs that every server is sent: 640 x 480 JPEGs, no two the same."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from benchmarks.serving.models import CACHE
from tests.data import dataset

COUNT = 1024
PHOTO, THUMBNAIL = (640, 480), (96, 72)


def written(count: int = COUNT, size: tuple[int, int] = PHOTO) -> Path:
    """A folder of JPEGs, made once out of the photographs of the test data."""
    folder = CACHE / f"jpegs-{count}-{size[0]}x{size[1]}"
    if not folder.is_dir():
        photos = sorted(p for p in dataset("photos").iterdir() if p.suffix in {".jpg", ".png"})
        encoded = [jpeg(photo, size) for photo in photos]
        staging = folder.with_suffix(".new")
        staging.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            # Bytes after a JPEG's end are no pixels, but no two images are then the same.
            data = encoded[number % len(encoded)] + number.to_bytes(4)
            (staging / f"{number:04}.jpg").write_bytes(data)
        staging.rename(folder)
    return folder


def jpeg(photo: Path, size: tuple[int, int]) -> bytes:
    """A photograph at another size."""
    with Image.open(photo) as opened:
        picture = opened.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=90)
    return file.getvalue()
