import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.breaker import FAILURES, FIRST_PAUSE, LONGEST_PAUSE, Breaker
from tests.clock import Clock


def opened(clock: Clock) -> Breaker:
    breaker = Breaker("Redis", clock)
    for _ in range(FAILURES):
        assert breaker.allows()
        breaker.failed(OSError("gone"))
    return breaker


def test_failures_in_a_row_open_it_and_others_do_not() -> None:
    breaker = Breaker("Redis", Clock())
    for _ in range(10):
        for _ in range(FAILURES - 1):
            breaker.failed(OSError("gone"))
        breaker.succeeded()
    assert not breaker.open
    for _ in range(FAILURES):
        breaker.failed(OSError("gone"))
    assert breaker.open
    assert not breaker.allows()
    assert breaker.opened == 1


def test_after_a_pause_one_may_try_and_each_pause_is_twice_the_last() -> None:
    clock = Clock()
    breaker = opened(clock)
    pauses = []
    for _ in range(10):
        waited = 0.0
        while not breaker.allows():
            waited += 0.25
            clock.now += 0.25
        assert not breaker.allows()
        pauses.append(waited)
        breaker.failed(OSError("gone"))
    doubled = [min(FIRST_PAUSE * 2**n, LONGEST_PAUSE) for n in range(10)]
    assert pauses == doubled


def test_a_probe_that_succeeds_closes_it_and_forgets_the_pauses() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now = FIRST_PAUSE
    assert breaker.allows()
    breaker.failed(OSError("gone"))
    clock.now += 2 * FIRST_PAUSE
    assert breaker.allows()
    breaker.succeeded()
    assert not breaker.open
    assert [breaker.allows() for _ in range(5)] == [True] * 5
    for _ in range(FAILURES):
        breaker.failed(OSError("gone"))
    clock.now += FIRST_PAUSE
    assert breaker.allows()


def test_what_fails_late_does_not_lengthen_the_pause() -> None:
    clock = Clock()
    breaker = opened(clock)
    for _ in range(20):
        breaker.failed(OSError("asked before it opened"))
    clock.now = FIRST_PAUSE
    assert breaker.allows()


def test_a_probe_that_never_reports_is_followed_by_another() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now = FIRST_PAUSE
    assert breaker.allows()
    clock.now += FIRST_PAUSE
    assert breaker.allows()


def test_one_line_tells_of_the_opening_and_one_of_the_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    with caplog.at_level(logging.INFO):
        breaker = opened(clock)
        breaker.failed(OSError("late"))
        clock.now = FIRST_PAUSE
        breaker.allows()
        breaker.failed(OSError("still gone"))
        clock.now += 10 * FIRST_PAUSE
        breaker.allows()
        breaker.succeeded()
        breaker.succeeded()
    assert [record.getMessage() for record in caplog.records] == [
        "Redis is left alone after 3 failures in a row, the last: OSError: gone",
        "Redis answers again",
    ]


@given(st.lists(st.sampled_from(["allows", "succeeded", "failed", "wait"]), max_size=60))
def test_whatever_happens_it_is_asked_again_within_the_longest_pause(history: list[str]) -> None:
    clock = Clock()
    breaker = Breaker("Redis", clock)
    for event in history:
        if event == "wait":
            clock.now += 0.7
        elif event == "failed":
            breaker.failed(OSError("gone"))
        else:
            getattr(breaker, event)()
    clock.now += LONGEST_PAUSE
    assert breaker.allows()
    breaker.succeeded()
    assert not breaker.open
    assert breaker.allows()
