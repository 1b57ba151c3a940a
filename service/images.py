"""Encoded bytes -> upright RGB uint8 at the model's size; every limit on input is checked here.

Each limit is checked before the work that it bounds: bytes, then pixels by the header, then the
patches of the fitted picture, and only then is anything decoded. A picture comes out as a viewer
would show it: turned as EXIF says, the first frame of several, transparency over white, deep greys
scaled to eight bits. Colour profiles are not applied and JPEGs are decoded in full, as DINO's own
preprocessing does.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.GifImagePlugin import GifImageFile
from PIL.WebPImagePlugin import WebPImageFile

from service import heap
from service.bands import bands
from service.bundle import InputSpec
from service.errors import InvalidOption, TooLarge, UndecodableImage, UnsupportedMediaType
from service.grey import grey
from service.headers import check_scans, decoded_pixels, icon_pixels
from service.resampling import resize

Fit = Literal["crop", "whole"]

# AVIF and JPEG 2000 are left out: the header of an AVIF file may understate its coded frame, and
# libavif then decodes up to 268 megapixels before it scales them down.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "ICO")
ACCEPTED = "JPEG, PNG, WebP, GIF, BMP, TIFF, PNM or ICO"

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 274
_LARGE = 2**24  # pixels from which on the heap is trimmed


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
    _check_pixels(icon_pixels(data), limits)
    with _decoding(limits):
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        pixels = decoded_pixels(image)
        _check_pixels(pixels, limits)
        check_scans(image, data)
        _plan(image.size, spec, view, limits)
        # One step a line: each frees what the one before it has left, of up to 12 bytes a pixel.
        if isinstance(image, WebPImageFile):
            image = _frame(image)
        image = upright(image)
        image = opaque(image)
        image = fit(image, spec, view, limits)
        if pixels >= _LARGE:
            heap.trim()
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


def _frame(image: WebPImageFile) -> Image.Image:
    """The first frame, as `load` gives it, which keeps two canvases of the decoder beside it."""
    data, _, _ = image._get_next()
    del image._decoder
    frame = Image.frombytes(image.mode, image.size, data, "raw", image.rawmode)
    frame.info = image.info
    return frame


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


def opaque(image: Image.Image) -> Image.Image:
    """Bring every mode to eight bits of grey or colour, transparency over white."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return grey(image)
    if image.has_transparency_data:
        page = Image.new("RGB", image.size, "white")
        for box, band in bands(image):
            coloured = band.convert("RGBA")
            page.paste(coloured, box, mask=coloured)
        return page
    if image.mode == "1":
        return image.convert("L")
    return image if image.mode in ("L", "RGB") else image.convert("RGB")
