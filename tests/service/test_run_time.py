import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.run_time import RunTime


@settings(deadline=None)
@given(
    a=st.floats(1e-6, 1e-3),
    b=st.floats(0, 1),
    sizes=st.lists(st.integers(1, 1000), min_size=16, max_size=40),
    stalls=st.sets(st.integers(0, 15), max_size=3),
)
def test_the_running_estimate_finds_the_line_and_ignores_stalls(
    a: float, b: float, sizes: list[int], stalls: set[int]
) -> None:
    sizes[-16:] = [n + 1000 * i for i, n in enumerate(sizes[-16:])]
    estimate = RunTime()
    for i, n in enumerate(sizes):
        stalled = len(sizes) - 1 - i in stalls
        estimate.observe(n, 60.0 if stalled else a * n + b)
    assert estimate(5000) == pytest.approx(a * 5000 + b, rel=0.5)
    if not stalls:
        assert estimate(5000) == pytest.approx(a * 5000 + b)
        assert estimate(5000, runs=3) == pytest.approx(a * 5000 + 3 * b)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 10**9), st.floats(0, 1e3)), max_size=40))
def test_the_running_estimate_is_never_negative(runs: list[tuple[int, float]]) -> None:
    estimate = RunTime()
    for pixels, seconds in runs:
        estimate.observe(pixels, seconds)
    assert 0 <= estimate(1) < float("inf")
