"""Raw attention maps -> masks, run-length encodings and pictures.

A picture is the photograph as it was fitted to the model, times a whole number: a small one is
enlarged until its long side comes near 512 px, so that an input of 128 px can still be looked at.
The tiles of a grid of heads come near 320 px, and large ones are reduced to that.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.errors import InvalidOption

Picture = Literal["heatmap", "overlay", "mask", "heads"]
Floats = NDArray[np.float32]
Maps = Floats

SINGLE, TILE, GAP = 512, 320, 6

# Nine even samples of matplotlib's inferno (CC0): even steps of lightness, safe for the
# colour-blind, black for nothing.
_INFERNO: Floats = np.array(
    [
        (0, 0, 4),
        (33, 12, 74),
        (87, 16, 110),
        (138, 34, 106),
        (188, 55, 84),
        (228, 90, 49),
        (249, 142, 9),
        (249, 203, 53),
        (252, 255, 164),
    ],
    np.float32,
)
_LUMA: Floats = np.array((0.299, 0.587, 0.114), np.float32)
_OUTLINE = (255, 210, 60)


def select_heads(attention: Maps, heads: str) -> tuple[list[int] | list[str], Maps]:
    """Pick the maps that a request asks for.

    Args:
        attention: Maps, [heads, rows, columns].
        heads: `all`, `mean`, or numbers from zero with commas between them: `0,3`.

    Returns:
        The names of the maps, and the maps [n, rows, columns].

    Raises:
        InvalidOption: `heads` is none of these, or names a head twice or one that is not there.
    """
    count = len(attention)
    if heads == "all":
        return list(range(count)), attention
    if heads == "mean":
        return ["mean"], attention.mean(axis=0, keepdims=True)
    allowed = {str(head) for head in range(count)}
    names = [name.strip() for name in heads.split(",")]
    if not allowed.issuperset(names) or len(set(names)) < len(names):
        raise InvalidOption(
            f"heads must be 'all', 'mean' or different numbers from 0 to {count - 1} with commas "
            "between them, for example '0'."
        )
    numbers = [int(name) for name in names]
    return numbers, attention[numbers]


def mass_masks(attention: Maps, mass: float) -> NDArray[np.bool_]:
    """Find the smallest set of patches that holds `mass` of each map, as in DINO's Figure 4.

    Args:
        attention: Maps, [n, rows, columns], not negative; each is divided by its own sum.
        mass: Share of the map's sum, above 0 and at most 1.

    Returns:
        [n, rows, columns]; of equal patches the first in reading order are taken.

    Raises:
        InvalidOption: `mass` is out of its range.
    """
    if not 0 < mass <= 1:
        raise InvalidOption(f"mass is {mass}; it must be above 0 and at most 1.")
    flat = attention.reshape(len(attention), -1).astype(np.float64)
    order = np.argsort(-flat, axis=1, kind="stable")
    held = np.cumsum(np.take_along_axis(flat, order, axis=1), axis=1)
    needed = held < mass * held[:, -1:]
    # The patch that reaches the mass belongs to the set as well.
    needed = np.concatenate([np.ones_like(needed[:, :1]), needed[:, :-1]], axis=1)
    masks = np.zeros(flat.shape, np.bool_)
    np.put_along_axis(masks, order, needed, axis=1)
    return masks.reshape(attention.shape)


def run_lengths(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Encode a mask [height, width] as COCO's compressed run lengths, `pycocotools.mask.decode`.

    Runs go down the columns and begin with zeros. From the fourth on, a run is written as its
    difference from the run two before it, in groups of five bits, least first, a sixth bit saying
    that more follow, each as the character 48 above it.
    """
    pixels = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(pixels, prepend=False)).tolist()
    edges = [0, *changes, pixels.size]
    runs = [end - start for start, end in itertools.pairwise(edges)]
    deltas = runs[:3] + [run - before for run, before in zip(runs[3:], runs[1:], strict=False)]
    counts = "".join(chr(48 + group) for delta in deltas for group in _groups(delta))
    return {"size": list(mask.shape), "counts": counts}


def _groups(value: int) -> Iterator[int]:
    """The groups of five bits of a signed number; the last one's top bit is the sign."""
    while not -16 <= value < 16:
        yield value & 31 | 32
        value >>= 5
    yield value & 31


def render(pixels: NDArray[np.uint8], attention: Maps, view: Picture, mass: float) -> bytes:
    """Draw attention as a PNG.

    Args:
        pixels: The fitted photograph, [height, width, 3].
        attention: The maps to show, [n, rows, columns].
        view: `heatmap`: the mean map's colours alone; `overlay`: they glow on the photograph;
            `mask`: the patches that hold `mass` stay, the rest is dimmed; `heads`: a grid of one
            overlay a map.
        mass: Share of the attention that the mask holds.

    Raises:
        InvalidOption: `mass` is out of its range.
    """
    if view == "heads":
        photo = _scaled(pixels, TILE)
        picture = _grid([_overlay(photo, _levels(one, photo)) for one in attention])
    else:
        photo = _scaled(pixels, SINGLE)
        mean = attention.mean(axis=0)
        if view == "heatmap":
            picture = _colours(_levels(mean, photo))
        elif view == "overlay":
            picture = _overlay(photo, _levels(mean, photo))
        else:
            picture = _masked(photo, mass_masks(mean[None], mass)[0])
    file = io.BytesIO()
    Image.fromarray(picture.round().astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def _scaled(pixels: NDArray[np.uint8], target: int) -> Floats:
    """Enlarge by a whole number towards `target`; a tile that is too large is reduced by one."""
    image = Image.fromarray(pixels)
    width, height = image.size
    long = max(width, height)
    if long <= target:
        factor = round(target / long)
        image = image.resize((width * factor, height * factor), Image.Resampling.BICUBIC)
    elif target == TILE:
        image = image.reduce(round(long / target))
    return np.asarray(image, np.float32)


def _levels(one: Maps, photo: Floats) -> Floats:
    """Stretch a map to 0..1 and enlarge it smoothly to the photograph, [height, width].

    A few patches often hold far more than all others; the top hundredth is clipped for the rest to
    be seen.
    """
    low, high = float(one.min()), float(np.quantile(one, 0.99))
    levels = ((one - low) / max(high - low, 1e-12)).clip(0, 1).astype(np.float32)
    height, width = photo.shape[:2]
    smooth = Image.fromarray(levels).resize((width, height), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(smooth, np.float32), 0, 1)


def _colours(levels: Floats) -> Floats:
    """Levels 0..1 -> RGB 0..255, [..., 3]."""
    position = levels * (len(_INFERNO) - 1)
    start = np.minimum(position.astype(np.intp), len(_INFERNO) - 2)
    share: Floats = (position - start).astype(np.float32)[..., None]
    lower: Floats = _INFERNO[start]
    upper: Floats = _INFERNO[start + 1]
    return lower + (upper - lower) * share


def _faded(photo: Floats, light: float) -> Floats:
    """The photograph darker and with half its colour, so that what is laid on it stands out."""
    grey: Floats = (photo @ _LUMA)[..., None]
    return (photo + grey) * np.float32(light / 2)


def _overlay(photo: Floats, levels: Floats) -> Floats:
    share = (0.7 * levels)[..., None]
    return _faded(photo, 0.6) * (1 - share) + _colours(levels) * share


def _masked(photo: Floats, mask: NDArray[np.bool_]) -> Floats:
    height, width = photo.shape[:2]
    rows = np.arange(height) * mask.shape[0] // height
    columns = np.arange(width) * mask.shape[1] // width
    kept = mask[rows][:, columns]
    picture = np.where(kept[..., None], photo, _faded(photo, 0.4))
    picture[_inner_edge(kept)] = _OUTLINE
    return picture


def _inner_edge(kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of the region that are within two pixels of its outside."""
    inside = kept
    for _ in range(2):
        padded = np.pad(inside, 1, mode="edge")
        inside = (
            inside & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        )
    return kept & ~inside


def _grid(tiles: list[Floats]) -> Floats:
    """Lay tiles of one size row by row, near a square and with few blanks, gaps white."""
    height, width, _ = tiles[0].shape
    square = min(math.ceil(math.sqrt(len(tiles) * height / width)), len(tiles))
    across = min(square, square + 1, key=lambda columns: -len(tiles) % columns)
    down = math.ceil(len(tiles) / across)
    shape = (down * (height + GAP) - GAP, across * (width + GAP) - GAP, 3)
    grid = np.full(shape, 255, np.float32)
    for index, tile in enumerate(tiles):
        top, left = index // across * (height + GAP), index % across * (width + GAP)
        grid[top : top + height, left : left + width] = tile
    return grid
