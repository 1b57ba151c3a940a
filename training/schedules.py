"""Values over the steps of a run: learning rate, weight decay, momentum, temperature."""

from __future__ import annotations

import math


def cosine(start: float, end: float, steps: int, warmup: int = 0) -> list[float]:
    """A cosine from `start` to `end`, after a linear rise from 0 over the first `warmup` steps.

    Returns:
        One value a step.
    """
    rise = linear(0.0, start, min(warmup, steps))
    fall = steps - len(rise)
    return rise + [
        end + 0.5 * (start - end) * (1.0 + math.cos(math.pi * step / fall)) for step in range(fall)
    ]


def staircase(start: float, end: float, warmup_epochs: int, epochs: int, steps: int) -> list[float]:
    """From `start` to `end` in equal steps, one an epoch, then constant.

    Args:
        start: Value of the first epoch.
        end: Value from the last warm-up epoch on.
        warmup_epochs: Epochs until `end` is reached.
        epochs: Epochs of the run.
        steps: Steps an epoch.

    Returns:
        One value a step.
    """
    rise = linear(start, end, warmup_epochs)[:epochs]
    values = rise + [end] * (epochs - len(rise))
    return [value for value in values for _ in range(steps)]


def linear(start: float, end: float, count: int) -> list[float]:
    """`count` values from `start` to `end`, both included."""
    return [start + (end - start) * i / max(1, count - 1) for i in range(count)]
