"""A door that lets a few in at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Turns:
    """Lets in as many at a time as there is room for, in order of arrival: `async with turns`.

    Args:
        room: How many, at least one; asked anew whenever somebody leaves, and for one who comes
            while nobody waits.
    """

    def __init__(self, room: Callable[[], int]) -> None:
        self._room = room
        self._inside = 0
        # A dictionary is a queue that one also leaves in the middle at no cost.
        self._waiting: dict[asyncio.Future[None], None] = {}

    async def __aenter__(self) -> None:
        if self._inside < self._room() and not self._waiting:
            self._inside += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting[turn] = None
        try:
            await turn
        except asyncio.CancelledError:
            self._waiting.pop(turn, None)
            if not turn.cancelled():  # let in, and cancelled before it knew
                self._leave()
            raise

    async def __aexit__(self, *_: object) -> None:
        self._leave()

    def _leave(self) -> None:
        self._inside -= 1
        while self._waiting and self._inside < self._room():
            turn = next(iter(self._waiting))
            del self._waiting[turn]
            if not turn.cancelled():
                self._inside += 1
                turn.set_result(None)
