import asyncio
import threading
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

from service.bundle import Bundle
from service.engines import threaded
from service.engines.base import Images, Outputs
from service.engines.threaded import ThreadedEngine, best_batch, buckets
from tests.clock import Clock

SIZES = (1, 2, 4, 8)
IMAGE = np.zeros((1, 64, 64, 3), np.uint8)


class Recorder:
    """Stands for a graph: notes the batches that it is given, and may be held back.

    Args:
        clock: Shows that a run takes `seconds`.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock or Clock()
        self.batches: list[int] = []
        self.seconds = 0.0
        self.started = threading.Event()
        self.may_go = threading.Event()
        self.may_go.set()

    def __call__(self, images: Images, outputs: tuple[str, ...]) -> Outputs:
        self.batches.append(len(images))
        self.started.set()
        assert self.may_go.wait(60)
        self.clock.now += self.seconds
        return {name: images.mean((1, 2), dtype=np.float32) for name in outputs}


MakeEngine = Callable[[Recorder, Recorder], ThreadedEngine]


@pytest.fixture
def make(bundle: Bundle) -> MakeEngine:
    return lambda beside, alone: ThreadedEngine(
        "recorder", "fp32", bundle, beside=beside, alone=alone, threads=2, batches=(4,)
    )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """What runs are timed by."""
    clock = Clock()
    monkeypatch.setattr(threaded, "time", SimpleNamespace(perf_counter=clock))
    return clock


async def test_a_lone_run_gets_all_cores_and_runs_side_by_side_get_one_each(
    make: MakeEngine,
) -> None:
    beside, alone = Recorder(), Recorder()
    engine = make(beside, alone)
    await engine.infer(IMAGE, ("embedding",), lone=True)
    assert (beside.batches, alone.batches) == ([], [1])
    await asyncio.gather(*(engine.infer(IMAGE, ("embedding",)) for _ in range(3)))
    assert (beside.batches, alone.batches) == ([1, 1, 1], [1])
    await engine.close()


async def test_warm_up_runs_every_power_of_two_both_ways(make: MakeEngine, clock: Clock) -> None:
    beside, alone = Recorder(clock), Recorder(clock)
    beside.seconds = 0.02
    engine = make(beside, alone)
    assert not engine.ready
    await engine.warm_up()
    assert engine.ready
    assert engine.max_batch == 4
    assert set(beside.batches) == set(alone.batches) == {1, 2, 4}
    await engine.close()
    assert not engine.ready


async def test_a_graph_that_all_cores_run_no_quicker_is_run_by_one(
    make: MakeEngine, clock: Clock
) -> None:
    beside, alone = Recorder(clock), Recorder(clock)
    alone.seconds = 0.02
    engine = make(beside, alone)
    await engine.warm_up()
    known = len(alone.batches)
    await engine.infer(IMAGE, ("embedding",), lone=True)
    assert len(alone.batches) == known
    await engine.close()


async def test_close_lets_a_run_finish(make: MakeEngine) -> None:
    alone = Recorder()
    engine = make(Recorder(), alone)
    alone.may_go.clear()
    run = asyncio.create_task(engine.infer(IMAGE, ("embedding",), lone=True))
    assert await asyncio.to_thread(alone.started.wait, 60)
    closing = asyncio.create_task(engine.close())
    alone.may_go.set()
    assert set(await run) == {"embedding"}
    await closing


@pytest.mark.parametrize(
    ("each", "best"),
    [
        ((1.0, 1.0, 1.0, 1.0), 8),
        ((1.0, 0.9, 0.8, 0.7), 8),
        ((1.0, 0.9, 0.91, 0.95), 4),
        ((1.0, 1.01, 1.03, 1.0), 2),  # what comes after one that is slower is not tried
        ((1.0, 1.05, 1.1, 1.2), 1),
        ((1.0, 0.7, 0.72, 0.9), 2),
    ],
)
async def test_the_batch_chosen_is_the_largest_that_is_nearly_the_quickest(
    each: tuple[float, ...], best: int
) -> None:
    known = dict(zip(SIZES, each, strict=True))
    tried: list[int] = []

    async def seconds_an_image(size: int) -> float:
        tried.append(size)
        return known[size]

    assert await best_batch(seconds_an_image, SIZES) == best
    assert max(tried) <= 2 * best


async def test_batches_are_timed_with_a_run_on_every_thread(bundle: Bundle) -> None:
    together: list[int] = []
    running, counting, met = 0, threading.Lock(), threading.Event()

    def beside(images: Images, outputs: tuple[str, ...]) -> Outputs:
        nonlocal running
        with counting:
            running += 1
            together.append(running)
        if running == 2:
            met.set()
        met.wait(60)
        with counting:
            running -= 1
        return {}

    engine = ThreadedEngine(
        "counted", "fp32", bundle, beside=beside, alone=beside, threads=2, batches=(1, 2)
    )
    await engine.warm_up()
    await engine.close()
    assert max(together) == 2


def test_buckets_end_with_the_largest_batch() -> None:
    assert buckets(1) == [1]
    assert buckets(64) == [1, 2, 4, 8, 16, 32, 64]
