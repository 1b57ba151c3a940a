"""What every source of images has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import fsspec
import numpy as np
from PIL import Image

from training.data.sources.picture import EncodedPicture, Picture, Unreadable

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


class DataError(Exception):
    """The data cannot be used; the message says what was looked for and where."""


class Source(ABC):
    """Images by number.

    Attributes:
        name: The location, for messages.
        channels: Channels of the pixels.
        labels: Class of each image, an index of `classes`.
        classes: Names of the classes.
    """

    name: str
    channels: int
    labels: tuple[int, ...]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def title(self, index: int) -> str:
        """What one image is called in messages."""

    @abstractmethod
    def encoded(self, index: int) -> bytes:
        """The file of one image.

        Raises:
            Unreadable: It cannot be read.
        """

    def picture(self, index: int) -> Picture:
        """One image, not yet decoded.

        Raises:
            Unreadable: It is no image, or too large.
        """
        return EncodedPicture(self.encoded(index), self.channels)

    def image(self, index: int) -> Image.Image:
        """One image, decoded and upright, of one or three channels.

        Raises:
            Unreadable: It cannot be decoded.
        """
        pixels = self.picture(index).pixels()
        return Image.fromarray(pixels[:, :, 0] if self.channels == 1 else pixels)

    def planes(self, index: int) -> list[Image.Image]:
        """One image whole if it has one or three channels, else each channel as a grey one.

        Raises:
            Unreadable: It cannot be decoded.
        """
        if self.channels in (1, 3):
            return [self.image(index)]
        pixels = self.picture(index).pixels()
        return [Image.fromarray(plane) for plane in np.moveaxis(pixels, 2, 0)]


def classify(names: Sequence[str]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Labels and classes of images whose classes are named, in order of name."""
    classes = tuple(sorted(set(names)))
    index = {name: label for label, name in enumerate(classes)}
    return tuple(index[name] for name in names), classes


def numbered(labels: Sequence[int], name: str) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Labels and classes of images whose classes are numbers from 0, or -1 all of them for none.

    Raises:
        DataError: Some are negative.
    """
    if set(labels) == {-1}:
        labels = [0] * len(labels)
    if min(labels) < 0:
        raise DataError(
            f"{name}: a label is {min(labels)}; classes are numbered from 0, or all are -1 where "
            "there are none"
        )
    return tuple(labels), tuple(str(label) for label in range(max(labels) + 1))


def read(url: str, start: int | None = None, stop: int | None = None) -> bytes:
    """Some bytes of a file, local or remote.

    The file system is looked up anew: a worker process must not use its parent's connections.

    Raises:
        Unreadable: The file is gone, or cannot be read.
    """
    try:
        if "://" not in url and start is None:
            return Path(url).read_bytes()
        system, path = fsspec.url_to_fs(url)
        data: bytes = system.cat_file(path, start=start, end=stop)
    except OSError as error:
        raise Unreadable(f"it cannot be read: {error}") from error
    return data
