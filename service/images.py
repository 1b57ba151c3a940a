"""Encoded bytes -> upright RGB uint8 at the model's size; every limit on input lives here.

Each limit is checked before the work that it bounds: bytes, then pixels by the header, then the
patches of the fitted picture, and only then is anything decoded. A picture comes out as a viewer
would show it: turned as EXIF says, the first frame of several, transparency over white, deep greys
scaled to eight bits. Colour profiles are not applied and JPEGs are decoded in full, as DINO's own
preprocessing does.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.GifImagePlugin import GifImageFile

from service.bundle import InputSpec
from service.errors import InvalidOption, TooLarge, UndecodableImage, UnsupportedMediaType
from service.resampling import resize

Fit = Literal["crop", "whole"]

# AVIF and JPEG 2000 are left out: the header of an AVIF file may understate its coded frame, and
# libavif then decodes up to 268 megapixels before it scales them down.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "ICO")
ACCEPTED = "JPEG, PNG, WebP, GIF, BMP, TIFF, PNM or ICO"

# Every scan of a progressive JPEG visits every pixel, however few bytes it takes; encoders write
# about ten.
MAX_SCANS = 100

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION, _TILE_WIDTH, _TILE_LENGTH = 274, 322, 323
_SEGMENT = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9


@dataclass(frozen=True, slots=True)
class View:
    """How a photograph is fitted to the model; part of the cache key.

    Attributes:
        fit: `crop` resizes the short side and crops the centre square; `whole` keeps all of the
            photograph and its aspect.
        size: Side of the crop, or the short side of the whole, in pixels; None is the bundle's.
    """

    fit: Fit = "crop"
    size: int | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that one image may have: encoded bytes, pixels by its header, fitted patches."""

    bytes: int
    pixels: int
    patches: int


@dataclass(frozen=True, slots=True)
class _Plan:
    """The size that a photograph is resized to, and the part of it that is cut out."""

    size: tuple[int, int]
    part: tuple[int, int, int, int]


def prepare(data: bytes, spec: InputSpec, view: View, limits: Limits) -> NDArray[np.uint8]:
    """Decode one photograph and fit it to the model.

    Resize and crop follow torchvision's `Resize` and `CenterCrop` as closely as `resampling` says:
    bicubic, the long side truncated, the crop's corner rounded to even. Safe to call from many
    threads.

    Args:
        data: The encoded image.
        spec: The model's input.
        view: How to fit the photograph.
        limits: What is refused.

    Returns:
        RGB, [height, width, 3]; both sides are multiples of `spec.multiple`.

    Raises:
        TooLarge: More bytes than the limit.
        UnsupportedMediaType: Not an image, or of a type that is not accepted.
        UndecodableImage: Damaged, truncated, or over the limit of pixels.
        InvalidOption: The size does not suit the model, or gives too many patches.
    """
    if len(data) > limits.bytes:
        raise TooLarge(
            f"The image has {len(data)} bytes; the limit is {limits.bytes}. Send a smaller one."
        )
    if not data:
        raise UnsupportedMediaType(f"The image is empty (zero bytes). Send {ACCEPTED}.")
    _check_pixels(_icon_pixels(data), limits)
    with _decoding(limits):
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        _check_pixels(_header_pixels(image), limits)
        _check_scans(image, data)
        _plan(image.size, spec, view, limits)
        image = fit(opaque(upright(image)), spec, view, limits)
        return np.asarray(image.convert("RGB"))


def fit(image: Image.Image, spec: InputSpec, view: View, limits: Limits) -> Image.Image:
    """Resize and crop a decoded picture, as `prepare` does, which tells what is refused."""
    plan = _plan(image.size, spec, view, limits)
    return resize(image, plan.size, plan.part)


def _plan(size: tuple[int, int], spec: InputSpec, view: View, limits: Limits) -> _Plan:
    """Where a photograph of `size` (width, height) ends up; its work is bounded by `limits`."""
    side = spec.crop if view.size is None else view.size
    if side <= 0 or side % spec.multiple:
        raise InvalidOption(f"size is {side}; it must be a positive multiple of {spec.multiple}.")
    short, long = min(size), max(size)
    if view.fit == "crop":
        resized = round(spec.resize * side / spec.crop)
        fitted, stretched = (side, side), (resized, int(resized * long / short))
    else:
        steps = round(side * long / short / spec.multiple)
        fitted = stretched = (side, steps * spec.multiple)
    patches = fitted[0] * fitted[1] // spec.multiple**2
    if patches > limits.patches:
        raise InvalidOption(
            f"size {side} gives {patches} patches for this photograph of {size[0]} x {size[1]} "
            f"pixels; the limit is {limits.patches}. Ask for a smaller size"
            + (", or fit=crop." if view.fit == "whole" else ".")
        )
    if stretched[0] * stretched[1] > limits.pixels:
        raise UndecodableImage(
            f"The photograph of {size[0]} x {size[1]} pixels is too narrow: resized to a short "
            f"side of {stretched[0]} it is over the limit of {limits.pixels} pixels. Send a part."
        )
    width, height = stretched if size[0] <= size[1] else stretched[::-1]
    box_width, box_height = fitted if size[0] <= size[1] else fitted[::-1]
    left, top = round((width - box_width) / 2), round((height - box_height) / 2)
    return _Plan((width, height), (left, top, left + box_width, top + box_height))


@contextmanager
def _decoding(limits: Limits) -> Iterator[None]:
    """Turn whatever Pillow raises on hostile bytes into the client's error."""
    try:
        yield
    except (InvalidOption, UndecodableImage):
        raise
    except UnidentifiedImageError:
        raise UnsupportedMediaType(
            f"The bytes do not begin as an image of an accepted type. Send {ACCEPTED}."
        ) from None
    except Image.DecompressionBombError:
        raise UndecodableImage(
            f"The image is over the limit of {limits.pixels} pixels. Send a smaller one."
        ) from None
    # Pillow's decoders raise whatever their parsing stumbles over: OSError, ValueError, TypeError,
    # IndexError, KeyError, struct.error, SyntaxError, NotImplementedError, MemoryError and more.
    except Exception as error:
        raise UndecodableImage(
            f"The image is damaged or truncated ({error}). Send the whole file."
        ) from error


def _check_pixels(pixels: int, limits: Limits) -> None:
    if pixels > limits.pixels:
        raise UndecodableImage(
            f"The image has {pixels} pixels by its header; the limit is {limits.pixels}. "
            "Send a smaller one."
        )


def _header_pixels(image: Image.Image) -> int:
    """Pixels that decoding will hold: a TIFF's single tile may be larger than its picture."""
    width, height = image.size
    if image.format != "TIFF":
        return width * height
    tags = image.tag_v2  # type: ignore[attr-defined]
    return max(width * height, int(tags.get(_TILE_WIDTH, 0)) * int(tags.get(_TILE_LENGTH, 0)))


def _icon_pixels(data: bytes) -> int:
    """Pixels of an icon file's largest picture, which Pillow decodes as it opens the file."""
    if not data.startswith(b"\0\0\1\0"):
        return 0
    pixels = 0
    for entry in range(6, 6 + 16 * int.from_bytes(data[4:6], "little"), 16):
        start = int.from_bytes(data[entry + 12 : entry + 16], "little")
        png = data[start : start + 8] == b"\x89PNG\r\n\x1a\n"
        sides = data[start + 16 : start + 24] if png else data[start + 4 : start + 12]
        if len(sides) == 8:
            width, height = struct.unpack(">II" if png else "<ii", sides)
            # A bitmap's height counts its transparency mask as well.
            pixels = max(pixels, width * height if png else abs(width * height) // 2)
    return pixels


def upright(image: Image.Image) -> Image.Image:
    """Decode the first frame and turn it as its EXIF orientation says."""
    image = _first_frame(image)
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:
        # A photograph with damaged EXIF data is still a photograph.
        orientation = 1
    turn = _UPRIGHT.get(orientation)
    return image if turn is None else image.transpose(turn)


def _first_frame(image: Image.Image) -> Image.Image:
    """Decode; what a GIF's first frame leaves open of the picture is transparent."""
    whole = (0, 0, *image.size)
    covered = image.tile[0].extents if isinstance(image, GifImageFile) and image.tile else whole
    image.load()
    if covered is None or covered == whole:
        return image
    page = Image.new("RGB", image.size, "white")
    page.paste(opaque(image.crop(covered)), covered[:2])
    return page


def _check_scans(image: Image.Image, data: bytes) -> None:
    """Count a JPEG's scans up to its end marker, stepping over the contents of its segments."""
    # Coded data never holds a marker, so that this counts no scan too few, and only those of a
    # preview in the metadata too many.
    if image.format not in ("JPEG", "MPO") or data.count(b"\xff\xda") <= MAX_SCANS:
        return
    scans, position = 0, 2
    while (found := _SEGMENT.search(data, position)) and scans <= MAX_SCANS:
        marker = data[found.end() - 1]
        if marker == _END_OF_IMAGE:
            return
        scans += marker == _START_OF_SCAN
        position = found.end() + int.from_bytes(data[found.end() : found.end() + 2])
    if scans > MAX_SCANS:
        raise UndecodableImage(
            f"The JPEG has more than {MAX_SCANS} scans, the limit. Send it re-encoded."
        )


def opaque(image: Image.Image) -> Image.Image:
    """Bring every mode to eight bits of grey or colour, transparency over white."""
    if image.mode.startswith("I;16") or image.mode == "I":
        values = np.asarray(image)
        if (clear := image.info.get("transparency")) is not None:
            values = np.where(values == clear, 65535, values)
        return _grey(values, whites=(65535,))
    if image.mode == "F":
        return _grey(np.asarray(image), whites=(1, 255, 65535))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        page = Image.new("RGB", image.size, "white")
        page.paste(image, mask=image)
        return page
    if image.mode == "1":
        return image.convert("L")
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def _grey(values: NDArray[np.generic], whites: tuple[int, ...]) -> Image.Image:
    """Scale deep grey values to eight bits; white is the first of `whites` that holds them all.

    Values above every white, or below zero, are stretched from their least to their greatest;
    infinite ones and those that are not numbers count as zero.
    """
    levels = np.nan_to_num(values.astype(np.float32), copy=False, posinf=0, neginf=0)
    low, high = min(0.0, float(levels.min())), float(levels.max())
    white = next((white for white in whites if high <= white), high)
    levels -= low
    levels *= 255 / (white - low)
    return Image.fromarray(np.rint(levels, out=levels).astype(np.uint8))
