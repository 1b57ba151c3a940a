"""Computations under way: what several ask for at the same time is computed once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass, field

from service.engines.base import Outputs


@dataclass(eq=False, slots=True)
class Flight:
    """One computation, and how many wait for it until when.

    Attributes:
        keys: What it computes.
        deadline: The latest of those who wait, in the event loop's time.
    """

    keys: frozenset[str]
    deadline: float
    waiters: int = 0
    task: asyncio.Task[Outputs] = field(init=False)


class Flights:
    """Knows each computation by the keys that it will fill."""

    def __init__(self) -> None:
        self._by_key: dict[str, Flight] = {}
        self._tasks: set[asyncio.Task[Outputs]] = set()

    def covering(self, keys: Collection[str]) -> Flight | None:
        """The flight that computes all of `keys`, if there is one."""
        flights = {self._by_key.get(key) for key in keys}
        return flights.pop() if len(flights) == 1 else None

    def launch(
        self,
        keys: Collection[str],
        deadline: float,
        compute: Callable[[Flight], Coroutine[None, None, Outputs]],
    ) -> Flight:
        """Start a computation, which others can join until it ends."""
        flight = Flight(frozenset(keys), deadline)
        flight.task = asyncio.create_task(compute(flight))
        self._by_key |= dict.fromkeys(flight.keys, flight)
        self._tasks.add(flight.task)
        flight.task.add_done_callback(self._tasks.discard)
        flight.task.add_done_callback(lambda _: self._forget(flight))
        return flight

    async def join(self, flight: Flight, deadline: float) -> Outputs:
        """Wait for a flight; it goes on while anybody does, and is cancelled when nobody does."""
        flight.deadline = max(flight.deadline, deadline)
        flight.waiters += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiters -= 1
            if not flight.waiters:
                flight.task.cancel()
                self._forget(flight)

    async def landed(self) -> None:
        """Return when no flight is under way."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _forget(self, flight: Flight) -> None:
        for key in flight.keys:
            if self._by_key.get(key) is flight:
                del self._by_key[key]
