"""Time that passes only when it is told to."""


class Clock:
    """Stands in for `time.time` or `time.monotonic`; `now` is moved by hand."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now
