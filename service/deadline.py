"""Work that is of no more use after a given time."""

from __future__ import annotations

import asyncio
from types import TracebackType

from service.errors import DeadlineExceeded


class Deadline:
    """Leave the block at a given time: `async with Deadline(at)`.

    Args:
        at: In the event loop's time.

    Raises:
        DeadlineExceeded: The block was not done by then.
    """

    __slots__ = ("_limit",)

    def __init__(self, at: float) -> None:
        self._limit = asyncio.timeout_at(at)

    async def __aenter__(self) -> None:
        await self._limit.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self._limit.__aexit__(kind, error, traceback)
        except TimeoutError:
            raise DeadlineExceeded(
                "The answer was not ready before the deadline; allow more time or send fewer "
                "images."
            ) from None
