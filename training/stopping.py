"""A request to stop, which a run follows after its step and between an evaluation's batches."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """The run was asked to stop and has written a checkpoint.

    Attributes:
        number: Of the signal.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number


class Interrupted(Exception):
    """A signal came; what it interrupts is not done."""


def heed() -> None:
    """Go on, unless the run of this process, if there is one, is asked to stop.

    Raises:
        Interrupted: It is.
    """
    if any(stopping.signal for stopping in _entered):
        raise Interrupted


class Stopping:
    """Notes SIGTERM and SIGINT for as long as it is entered; a second one takes its usual course.

    Attributes:
        signal: Number of the signal that came, 0 before.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stopping:
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        _entered.append(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _entered.remove(self)
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


# A process has one handler of a signal, so what it noted is known everywhere in it.
_entered: list[Stopping] = []
