"""What is noted of the request at hand, wherever in the code its work is done."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass(eq=False, slots=True)
class Record:
    """One request.

    Attributes:
        id: Names it, to the client and in the log.
        images: How many images were asked for.
        stages: Name, start and end of each stage of each image, in `time.perf_counter` seconds.
        key: Name of the API key that it came with.
        trace: Id of the trace that it belongs to.
    """

    id: str
    images: int = 0
    stages: list[tuple[str, float, float]] = field(default_factory=list)
    key: str | None = None
    trace: str | None = None

    def durations(self) -> dict[str, float]:
        """Seconds of each stage; of several images, those of the slowest."""
        longest: dict[str, float] = {}
        for name, started, ended in self.stages:
            longest[name] = max(ended - started, longest.get(name, 0.0))
        return longest


# The tasks that a request starts inherit it.
current: ContextVar[Record | None] = ContextVar("current", default=None)


def count_image() -> None:
    """Note that the request at hand asks for one more image."""
    if (record := current.get()) is not None:
        record.images += 1


def note(stage: str, started: float, ended: float) -> None:
    """Note a stage of the request at hand, in `time.perf_counter` seconds."""
    if (record := current.get()) is not None:
        record.stages.append((stage, started, ended))
