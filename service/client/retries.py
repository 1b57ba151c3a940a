"""When to try again: exponential back-off with full jitter, and never before Retry-After.

Full jitter (Brooker, "Exponential Backoff And Jitter", 2015): each pause is drawn evenly between
nothing and a bound that doubles, so that clients turned away together do not come back together.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

import httpx

from service.client.errors import Unreachable

TRANSIENT = frozenset({429, 503, 504})
# A request that timed out while it was answered is left alone: trying again would add load.
BROKEN = (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ConnectTimeout)

Outcome = httpx.Response | httpx.TransportError


@dataclass(frozen=True, slots=True)
class Retries:
    """How long to go on when the server is busy or away.

    Attributes:
        attempts: The most requests for one call; 1 tries once.
        first: Bound of the first pause in seconds; it doubles with each.
        longest: The most that the bound grows to, in seconds.
        total: Seconds after the first request from which no further one begins. A Retry-After
            that reaches beyond ends the call at once.
    """

    attempts: int = 6
    first: float = 0.5
    longest: float = 20.0
    total: float = 60.0


class Attempts:
    """The attempts at one call.

    Args:
        retries: The bounds.
        clock: Seconds that only grow.
        now: Seconds since 1970, against which a Retry-After given as a date is read.
        draw: A number in [0, 1).
    """

    def __init__(
        self,
        retries: Retries,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._retries = retries
        self._clock = clock
        self._now = now
        self._draw = draw
        self._made = 0
        self._end = clock() + retries.total

    def judge(self, outcome: Outcome) -> httpx.Response | float:
        """The final answer, or seconds to wait before another attempt.

        Raises:
            Unreachable: No answer came, and none is waited for any more.
        """
        self._made += 1
        bound = min(self._retries.longest, self._retries.first * 2.0 ** (self._made - 1))
        pause = self._draw() * bound
        if isinstance(outcome, httpx.Response):
            pause += self._asked(outcome)
            if outcome.status_code in TRANSIENT and self._may_wait(pause):
                return pause
            return outcome
        if isinstance(outcome, BROKEN) and self._may_wait(pause):
            return pause
        raise Unreachable(_explain(outcome, self._made)) from outcome

    def _may_wait(self, pause: float) -> bool:
        return self._made < self._retries.attempts and self._clock() + pause <= self._end

    def _asked(self, response: httpx.Response) -> float:
        """Seconds that the Retry-After header asks for, given as a number or as a date."""
        asked = response.headers.get("retry-after", "").strip()
        if asked.isdigit():
            return float(asked)
        try:
            return max(parsedate_to_datetime(asked).timestamp() - self._now(), 0.0)
        except ValueError:
            return 0.0


def _explain(error: httpx.TransportError, attempts: int) -> str:
    times = "once" if attempts == 1 else f"{attempts} times"
    return (
        f"no answer from {error.request.url.copy_with(query=None)}, asked {times}: "
        f"{str(error) or type(error).__name__}"
    )
