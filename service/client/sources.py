"""Images on this side: what a caller may hand in, and how it travels."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

from PIL import Image as Pillow

from service.client.errors import ClientError, UnreadableFile
from service.images import FORMATS

T = TypeVar("T")

# A path, a URL (http, https or data), encoded bytes, or a Pillow image.
Image = str | os.PathLike[str] | bytes | Pillow.Image
Payload = bytes | str  # encoded bytes, or a URL

URLS = ("http://", "https://", "data:")


def as_list(images: Image | Iterable[Image]) -> list[Image]:
    """One image as a list of one, several as a list."""
    if isinstance(images, str | os.PathLike | bytes | Pillow.Image):
        return [images]
    return list(images)


def load(image: Image) -> Payload:
    """What travels for an image; a Pillow image is encoded as PNG, which loses nothing.

    Raises:
        UnreadableFile: The path cannot be read.
    """
    if isinstance(image, bytes):
        return image
    if _is_url(image):
        return image
    if isinstance(image, Pillow.Image):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return buffer.getvalue()
    try:
        return Path(image).read_bytes()
    except OSError as error:
        raise UnreadableFile(f"{image}: {error.strerror}") from error


@dataclass(frozen=True, slots=True)
class Loaded:
    """Several images: what travels for them, and those that cannot.

    Attributes:
        sent: What travels, in the order of the images.
        unreadable: Why an image cannot be read, by its index.
    """

    sent: list[Payload]
    unreadable: dict[int, UnreadableFile]

    def of_sent(self, values: Sequence[T]) -> list[T]:
        """Of a value for each image those of the images that travel."""
        return [value for index, value in enumerate(values) if index not in self.unreadable]

    def merge(self, answers: Iterable[T | ClientError]) -> list[T | ClientError]:
        """For each image its answer, or why it cannot be read."""
        merged = list(answers)
        for index, error in self.unreadable.items():
            merged.insert(index, error)
        return merged


def load_each(images: Iterable[Image]) -> Loaded:
    """What travels for the images that can be read."""
    loaded = Loaded([], {})
    for index, image in enumerate(images):
        try:
            loaded.sent.append(load(image))
        except UnreadableFile as error:
            loaded.unreadable[index] = error
    return loaded


def as_json(payload: Payload) -> Any:
    """An entry of a JSON request's list of images."""
    if isinstance(payload, bytes):
        return {"b64": base64.b64encode(payload).decode()}
    return payload if payload.startswith("data:") else {"url": payload}


def batches(images: Iterable[Image], count: int, size: int) -> Iterator[list[Image]]:
    """Group images in order: at most `count` and about `size` bytes in a group, at least one."""
    group: list[Image] = []
    held = 0
    for image in images:
        weight = _weight(image)
        if group and (len(group) == count or held + weight > size):
            yield group
            group, held = [], 0
        group.append(image)
        held += weight
    if group:
        yield group


def image_files(folder: Path) -> list[Path]:
    """The files under `folder` whose suffix is that of an accepted image type, sorted.

    Raises:
        UnreadableFile: It is no folder.
    """
    if not folder.is_dir():
        raise UnreadableFile(f"{folder}: there is no such folder")
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in _suffixes() and p.is_file())


@cache
def _suffixes() -> frozenset[str]:
    known = Pillow.registered_extensions()
    return frozenset(suffix for suffix, form in known.items() if form in FORMATS)


def _is_url(image: Image) -> TypeGuard[str]:
    return isinstance(image, str) and image.startswith(URLS)


def _weight(image: Image) -> int:
    if isinstance(image, Pillow.Image):
        return image.width * image.height * len(image.getbands())
    if isinstance(image, bytes):
        return len(image)
    if _is_url(image):
        return len(image)
    try:
        return Path(image).stat().st_size
    except OSError:
        return 0
