"""Rate limits: a bucket of images for each caller, filled steadily.

A request costs as many images as it asks for, because that is what it costs us: 64 images in one
request are no cheaper than 64 requests. How many there are is known only when the request has been
read, so a request is let in while its caller's bucket holds anything, and its images are taken out
afterwards, into debt if need be. Over time no caller gets more than the rate.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

SECONDS = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True, slots=True)
class Rate:
    """So many images in so many seconds; as many may come at once.

    Attributes:
        images: The size of the bucket.
        seconds: How long an empty one takes to fill.
    """

    images: int
    seconds: int

    @classmethod
    def parse(cls, text: str) -> Rate:
        """Read `100/s`, `6000/m` or `50000/h`.

        Raises:
            ValueError: It is none of these.
        """
        match = re.fullmatch(r"([1-9]\d{0,8})/([smh])", text.strip())
        if not match:
            raise ValueError("write images a second, minute or hour: 100/s, 6000/m, 50000/h")
        return cls(int(match[1]), SECONDS[match[2]])

    @property
    def each(self) -> float:
        """Seconds that one image takes to be filled in again."""
        return self.seconds / self.images


@dataclass(frozen=True, slots=True)
class Bucket:
    """A caller's bucket after a request.

    Attributes:
        allowed: Whether the request is let in.
        filling: Seconds until the bucket is full.
    """

    allowed: bool
    filling: float

    def left(self, rate: Rate) -> int:
        """How many images it holds."""
        return max(0, math.floor((rate.seconds - self.filling) / rate.each + 1e-6))

    def wait(self, rate: Rate) -> int:
        """Whole seconds until it holds one."""
        return max(1, math.ceil(self.filling + rate.each - rate.seconds))
