"""How long a run of the engine takes, learnt from the last ones."""

from __future__ import annotations

from collections import deque

import numpy as np

REFIT = 8  # runs


class RunTime:
    """Running estimate of how long a run takes: a * pixels + b, in seconds.

    Theil and Sen's line, the median of the slopes between all pairs of the last runs: a stall or
    two among them do not move it, and what no longer holds is soon forgotten.
    """

    def __init__(self) -> None:
        self._seen: deque[tuple[int, float]] = deque(maxlen=16)
        self._unread = 0
        self.a = 0.0
        self.b = 0.0

    def observe(self, pixels: int, seconds: float) -> None:
        """Take one finished run into account."""
        self._seen.append((pixels, seconds))
        self._unread += 1
        # Laid anew for every run, the line would cost more than the rest of the batcher.
        if len(self._seen) == self._seen.maxlen and self._unread < REFIT:
            return
        self._unread = 0
        n, t = np.array(self._seen).T
        rise, run = t[:, None] - t, n[:, None] - n
        slopes = rise[run > 0] / run[run > 0]
        # Runs of one size say nothing of others: taken as constant, which refuses too little.
        self.a = max(float(np.median(slopes)), 0.0) if len(slopes) else 0.0
        self.b = max(float(np.median(t - self.a * n)), 0.0)

    def __call__(self, pixels: int, runs: int = 1) -> float:
        """Seconds of `runs` runs that share `pixels`, one after another."""
        return self.a * pixels + self.b * runs
