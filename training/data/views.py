"""Which crops are cut of an image and how each is distorted, drawn as plain numbers.

Drawing knows nothing of pixels, so every way of cutting crops takes the same draws. The numbers of
a step are drawn for its whole batch at once; boxes need the images' sizes, distortions nothing.

Source: Caron et al., "Emerging Properties" (2021), section 3.2, and "SwAV" (2020), section 3.2;
the colour distortions are BYOL's (Grill et al., 2020, appendix B).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from training.data.crops import CropConfig

ASPECTS = (3 / 4, 4 / 3)
ATTEMPTS = 10
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
STRENGTHS = np.array([0.4, 0.4, 0.2, 0.1])

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Distortions:
    """What is done to some crops; every field has their shape, for example [batch, crops].

    Attributes:
        flip: Mirrored or not.
        jitter: Whether brightness, contrast, saturation and hue change.
        order: The four changes in the order in which they are made, [..., 4].
        amount: Factors of brightness, contrast and saturation, and the turn of the hue in 256ths
            of a circle, [..., 4].
        grey: Whether the colours go.
        blur: Radius of the blur in pixels, 0 for none.
        solarize: Whether levels from 128 on are inverted.
    """

    flip: NDArray[np.bool_]
    jitter: NDArray[np.bool_]
    order: NDArray[np.int64]
    amount: Numbers
    grey: NDArray[np.bool_]
    blur: Numbers
    solarize: NDArray[np.bool_]

    def __getitem__(self, key: object) -> Distortions:
        """The same part of every field."""
        return Distortions(*(getattr(self, field.name)[key] for field in fields(self)))

    def __len__(self) -> int:
        return len(self.flip)

    def flat(self) -> Distortions:
        """All crops along one axis."""
        values = (getattr(self, field.name) for field in fields(self))
        return Distortions(*(value.reshape(-1, *value.shape[self.flip.ndim :]) for value in values))


# Where each draw finds its numbers in the last axis of `numbers`.
_AREAS, _ASPECTS = slice(0, ATTEMPTS), slice(ATTEMPTS, 2 * ATTEMPTS)
_LEFT, _TOP, _FLIP, _JITTER, _GREY, _BLUR, _RADIUS, _SOLARIZE = range(20, 28)
_ORDER, _AMOUNT = slice(28, 32), slice(32, 36)
_COUNT = 36


def numbers(config: CropConfig, batch: int, random: Generator) -> Numbers:
    """All random numbers of one step, [batch, crops, 36], uniform in [0, 1).

    Args:
        config: The crops.
        batch: Images in the step's batch, of all processes together.
        random: Seeded for this step.
    """
    return random.random((batch, len(config.sides), _COUNT))


def boxes(config: CropConfig, uniform: Numbers, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Boxes of uniform area and log-uniform aspect; the image's centre where none of ten fits.

    Args:
        config: The crops.
        uniform: From `numbers`, or some of its rows.
        sizes: Width and height of each image in pixels, [batch, 2].

    Returns:
        Left, top, right and bottom in pixels, [batch, crops, 4]; the two global crops come first.
    """
    least, most = np.array([config.global_scale] * 2 + [config.local_scale] * config.local_count).T[
        ..., None
    ]
    width, height = sizes[:, None, :1], sizes[:, None, 1:]
    low, high = np.log(ASPECTS)
    side = np.sqrt((least + (most - least) * uniform[..., _AREAS]) * width * height)
    root = np.exp((low + (high - low) * uniform[..., _ASPECTS]) / 2)
    wide, tall = np.rint(side * root), np.rint(side / root)
    fits = (wide > 0) & (wide <= width) & (tall > 0) & (tall <= height)
    first = fits.argmax(axis=-1)[..., None]
    none = ~fits.any(axis=-1, keepdims=True)
    w, h = (np.take_along_axis(values, first, -1) for values in (wide, tall))
    w = np.where(none, np.minimum(width, np.rint(height * ASPECTS[1])), w)
    h = np.where(none, np.minimum(height, np.rint(width / ASPECTS[0])), h)
    left = np.where(none, (width - w) // 2, np.floor(uniform[..., [_LEFT]] * (width - w + 1)))
    top = np.where(none, (height - h) // 2, np.floor(uniform[..., [_TOP]] * (height - h + 1)))
    return np.concatenate([left, top, left + w, top + h], axis=-1).astype(np.int64)


def distortions(config: CropConfig, uniform: Numbers) -> Distortions:
    """What is done to the crops.

    Args:
        config: The crops.
        uniform: From `numbers`, or some of its rows.

    Returns:
        The draws, [batch, crops]; the two global crops come first.
    """
    first, second, local = config.blur_chance
    blur_chance = [first, second] + [local] * config.local_count
    solarize = [0.0, config.solarize] + [0.0] * config.local_count
    amount = STRENGTHS * (2 * uniform[..., _AMOUNT] - 1)
    amount[..., :HUE] += 1
    amount[..., HUE] = np.rint(255 * amount[..., HUE])
    low, high = config.blur
    radius = low + (high - low) * uniform[..., _RADIUS]
    return Distortions(
        flip=uniform[..., _FLIP] < config.flip,
        jitter=uniform[..., _JITTER] < config.jitter,
        order=uniform[..., _ORDER].argsort(axis=-1),
        amount=amount,
        grey=uniform[..., _GREY] < config.grey,
        blur=np.where(uniform[..., _BLUR] < blur_chance, radius, 0.0),
        solarize=uniform[..., _SOLARIZE] < solarize,
    )
