"""NumPy archives: `FILE.npz#train` holds `train_x`, and `train_y` with the classes."""

from __future__ import annotations

import io
import zipfile

import numpy as np

from training.data.sources.base import DataError, Source, numbered, read
from training.data.sources.picture import ArrayPicture, Picture, Unreadable


class Arrays(Source):
    """Images that are arrays: uint8 [images, height, width] or [images, height, width, channels].

    Args:
        location: `FILE.npz#SPLIT`; the split is `train` if none is named.
        channels: Channels of the pixels: grey becomes RGB and RGB grey, others must be as they are.

    Raises:
        DataError: There is no such file or split, or it does not hold images of these channels and
            a label of each.
    """

    def __init__(self, location: str, channels: int) -> None:
        self.name, self.channels = location, channels
        file, _, split = location.partition("#")
        key, name = f"{split or 'train'}_x", f"{split or 'train'}_y"
        try:
            with np.load(io.BytesIO(read(file))) as archive:
                if key not in archive:
                    known = ", ".join(archive.files)
                    raise DataError(f"{file} has no array {key}, only {known}; name FILE.npz#SPLIT")
                images = archive[key]
                labels = archive[name] if name in archive else np.zeros(len(images), np.int64)
        except Unreadable as error:
            raise DataError(f"{file}: {error}") from error
        except (ValueError, zipfile.BadZipFile) as error:
            raise DataError(f"{file} is no archive of arrays ({error})") from error
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or 0 in images.shape:
            raise DataError(
                f"{key} of {file} is {images.dtype} {list(images.shape)}; "
                "it must be uint8 [images, height, width] or [images, height, width, channels]"
            )
        self.pixels = images if images.ndim == 4 else images[..., None]
        some = self.pixels.shape[-1]
        if some != channels and {some, channels} != {1, 3}:
            raise DataError(f"{key} of {file} has {some} channels and the recipe {channels}")
        if labels.dtype.kind not in "iu" or labels.shape not in ((len(images),), (len(images), 1)):
            raise DataError(
                f"{name} of {file} is {labels.dtype} {list(labels.shape)}; "
                f"it must be a whole number for each of the {len(images)} images"
            )
        self.labels, self.classes = numbered(labels.ravel().tolist(), f"{name} of {file}")

    def title(self, index: int) -> str:
        """The image's place in the array."""
        return f"{self.name}[{index}]"

    def encoded(self, index: int) -> bytes:
        """The image as PNG; it must have one or three channels."""
        file = io.BytesIO()
        self.image(index).save(file, "PNG")
        return file.getvalue()

    def picture(self, index: int) -> Picture:
        """The image's pixels."""
        return ArrayPicture(self.pixels[index], self.channels)
