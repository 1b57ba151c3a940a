"""The circuit breaker: what keeps failing is left alone for a while, then tried once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

FAILURES = 3  # in a row; a single time-out may be a hiccup of our own event loop
FIRST_PAUSE = 1.0  # seconds
LONGEST_PAUSE = 5.0  # what is there again is soon used again, and one call in 5 s costs nothing


class Breaker:
    """Says whether a dependency may be asked now; one log line tells when that changes.

    Closed, it lets everything pass. After `FAILURES` failures in a row it opens and lets nothing
    pass for a pause. Then it is half open: one caller may try; if that fails too, the next pause
    is twice as long, up to `LONGEST_PAUSE`.

    Args:
        name: What the log calls the dependency.
        clock: Seconds that never go backwards.

    Attributes:
        open: Whether it holds callers back.
        opened: How many times it opened.
    """

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.open = False
        self.opened = 0
        self._name = name
        self._clock = clock
        self._failures = 0
        self._pause = FIRST_PAUSE
        self._until = 0.0
        self._probing = False

    def allows(self) -> bool:
        """Whether to ask now; whoever is told yes reports `succeeded` or `failed`."""
        if not self.open:
            return True
        now = self._clock()
        if now < self._until:
            return False
        # This caller is the probe; the others are held back until it has reported, and should it
        # never do so, for another pause.
        self._probing = True
        self._until = now + self._pause
        return True

    def succeeded(self) -> None:
        """The dependency answered."""
        if self.open:
            logger.warning("%s answers again", self._name)
        self.open = self._probing = False
        self._failures = 0
        self._pause = FIRST_PAUSE

    def failed(self, error: Exception) -> None:
        """The dependency did not answer, or not as it should."""
        self._failures += 1
        if self.open:
            # Of what was asked before it opened the failures may still come in: they are no news.
            if self._probing:
                self._probing = False
                self._pause = min(2 * self._pause, LONGEST_PAUSE)
                self._until = self._clock() + self._pause
        elif self._failures >= FAILURES:
            self.open = True
            self.opened += 1
            self._until = self._clock() + self._pause
            logger.warning(
                "%s is left alone after %d failures in a row, the last: %s: %s",
                self._name,
                self._failures,
                type(error).__name__,
                error,
            )
