"""The batcher under a virtual clock: time passes only when nothing else can happen.

So a test is exact and fast, and an image that is lost shows at once: when neither a callback nor a
timer is left, the loop says so instead of waiting for ever.
"""

import asyncio
import selectors
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.batching import Batcher
from service.engines.base import Images, Outputs
from service.errors import DeadlineExceeded, Overloaded

FOREVER = 1e6
OUTPUTS = ("embedding", "attention")
T = TypeVar("T")


class VirtualSelector(selectors.SelectSelector):
    now = 0.0

    def select(self, timeout: float | None = None) -> list:
        assert timeout is not None, "nothing is left to happen, yet somebody waits"
        self.now += timeout
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.clock = VirtualSelector()
        super().__init__(self.clock)

    def time(self) -> float:
        return self.clock.now


def play(main: Coroutine[None, None, T]) -> T:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


class GuiltyImageError(Exception):
    pass


@dataclass
class FakeEngine:
    """Takes `fixed` and `each` seconds a run and an image; answers with the image's number.

    An image is its number in its first two pixels; one in `guilty` fails every run it is in.
    """

    slots: int = 1
    max_batch: int = 4
    fixed: float = 1.0
    each: float = 0.0
    guilty: frozenset[int] = frozenset()
    ready: bool = True
    runs: list[list[int]] = field(default_factory=list)
    asked: list[tuple[str, ...]] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    limits: list[float] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0

    async def infer(
        self, images: Images, outputs: tuple[str, ...], *, lone: bool, limit: float
    ) -> Outputs:
        numbers = [number(image) for image in images]
        self.runs.append(numbers)
        self.asked.append(outputs)
        self.shapes.append(images.shape[1:])
        self.limits.append(limit)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        await asyncio.sleep(self.fixed + self.each * len(images))
        self.in_flight -= 1
        if guilty := self.guilty.intersection(numbers):
            raise GuiltyImageError(min(guilty))
        answer = np.array(numbers, np.float32)
        return {name: answer + index / 2 for index, name in enumerate(outputs)}

    async def warm_up(self) -> None: ...

    async def close(self) -> None: ...

    @property
    def computed(self) -> Counter[int]:
        return Counter(n for run in self.runs for n in run)


def picture(n: int, side: int = 8) -> np.ndarray:
    image = np.zeros((side, side, 3), np.uint8)
    image[0, :2, 0] = divmod(n, 256)
    return image


def number(image: np.ndarray) -> int:
    return int(image[0, 0, 0]) * 256 + int(image[0, 1, 0])


def opened(engine: FakeEngine, max_queue: int = 1000) -> Batcher:
    batcher = Batcher(engine, max_queue)
    batcher.start()
    return batcher


async def ask(batcher: Batcher, n: int, deadline: float = FOREVER, side: int = 8) -> float:
    answer = await batcher.submit(picture(n, side), ("embedding",), deadline)
    assert answer.keys() == {"embedding"}
    return float(answer["embedding"])


@dataclass(frozen=True)
class Arrival:
    at: float
    side: int
    patience: float
    gives_up: float | None
    guilty: bool


arrivals = st.lists(
    st.builds(
        Arrival,
        at=st.sampled_from([0.0, 0.25, 1.0, 2.5, 7.0]),
        side=st.sampled_from([8, 16]),
        patience=st.sampled_from([0.5, 2.0, 6.0, FOREVER]),
        gives_up=st.none() | st.sampled_from([0.0, 0.1, 1.5, 4.0]),
        guilty=st.booleans() | st.just(False),
    ),
    max_size=40,
)


@settings(deadline=None, max_examples=300)
@given(
    arrivals=arrivals,
    slots=st.integers(1, 3),
    max_batch=st.integers(1, 5),
    max_queue=st.integers(1, 20),
    each=st.sampled_from([0.0, 0.3]),
)
def test_each_image_has_one_answer_and_every_bound_holds(
    arrivals: list[Arrival], slots: int, max_batch: int, max_queue: int, each: float
) -> None:
    guilty = frozenset(n for n, arrival in enumerate(arrivals) if arrival.guilty)
    engine = FakeEngine(slots=slots, max_batch=max_batch, each=each, guilty=guilty)
    deepest = 0
    arrived: list[int] = []

    async def client(batcher: Batcher, n: int, arrival: Arrival) -> object:
        nonlocal deepest
        loop = asyncio.get_running_loop()
        await asyncio.sleep(arrival.at)
        deadline = loop.time() + arrival.patience
        arrived.append(n)
        request = asyncio.create_task(ask(batcher, n, deadline, arrival.side))
        if arrival.gives_up is not None:
            loop.call_later(arrival.gives_up, request.cancel)
        await asyncio.wait([request])
        deepest = max(deepest, batcher.depth)
        assert loop.time() <= deadline
        if request.cancelled():
            return "gave up"
        return request.exception() or request.result()

    async def main() -> list[object]:
        batcher = opened(engine, max_queue)
        ends = await asyncio.gather(
            *(client(batcher, n, arrival) for n, arrival in enumerate(arrivals))
        )
        await batcher.close()
        assert (batcher.depth, batcher.running) == (0, 0)
        assert sum(n * count for n, count in batcher.batches.items()) == sum(
            len(run) for run in engine.runs
        )
        return ends

    ends = play(main())
    for n, (arrival, end) in enumerate(zip(arrivals, ends, strict=True)):
        match end:
            case float():
                assert end == n
                assert not arrival.guilty
            case GuiltyImageError():
                assert arrival.guilty
                assert end.args == (n,)
                assert engine.runs.count([n]) == 1
            case DeadlineExceeded():
                assert arrival.patience < FOREVER
            case Overloaded():
                assert end.retry_after
                assert engine.computed[n] == 0
            case _:
                assert end == "gave up"
                assert arrival.gives_up is not None
    assert engine.most_in_flight <= slots
    assert deepest <= max_queue
    assert all(len(run) <= max_batch for run in engine.runs)
    assert all(len({arrivals[n].side for n in run}) == 1 for run in engine.runs)
    if not guilty:
        assert max(engine.computed.values(), default=1) == 1
        for side in (8, 16):
            started = [n for run in engine.runs for n in run if arrivals[n].side == side]
            assert started == sorted(started, key=arrived.index)


def test_an_idle_engine_takes_what_arrives_at_once_and_a_busy_one_fills_its_batches() -> None:
    engine = FakeEngine(max_batch=4)

    async def main() -> float:
        batcher = opened(engine)
        await ask(batcher, 0)
        assert asyncio.get_running_loop().time() == 1.0
        later = [asyncio.create_task(ask(batcher, 1))]
        await asyncio.sleep(0.5)
        later += [asyncio.create_task(ask(batcher, n)) for n in range(2, 8)]
        await asyncio.gather(*later)
        return asyncio.get_running_loop().time()

    assert play(main()) == 4.0
    assert engine.runs == [[0], [1], [2, 3, 4, 5], [6, 7]]


def test_a_batch_holds_one_shape_and_the_heads_shape_goes_first() -> None:
    engine = FakeEngine(max_batch=3)

    async def main() -> None:
        batcher = opened(engine)
        sides = [8, 16, 8, 16, 8, 8]
        await asyncio.gather(*(ask(batcher, n, side=side) for n, side in enumerate(sides)))

    play(main())
    assert engine.runs == [[0, 2, 4], [1, 3], [5]]
    assert engine.shapes == [(8, 8, 3), (16, 16, 3), (8, 8, 3)]


def test_each_image_gets_only_what_it_asked_for() -> None:
    engine = FakeEngine()

    async def main() -> list[Outputs]:
        batcher = opened(engine)
        wishes = [("embedding",), ("attention",), ("embedding", "attention")]
        return await asyncio.gather(
            *(batcher.submit(picture(n), wish, FOREVER) for n, wish in enumerate(wishes))
        )

    answers = play(main())
    assert engine.asked == [OUTPUTS]
    assert answers == [
        {"embedding": 0.0},
        {"attention": 1.5},
        {"embedding": 2.0, "attention": 2.5},
    ]


@settings(deadline=None)
@given(size=st.integers(1, 16), guilty=st.frozensets(st.integers(0, 15)))
def test_only_the_guilty_of_a_batch_fail(size: int, guilty: frozenset[int]) -> None:
    engine = FakeEngine(max_batch=16, guilty=guilty)

    async def main() -> list[float | BaseException]:
        batcher = opened(engine)
        return await asyncio.gather(*(ask(batcher, n) for n in range(size)), return_exceptions=True)

    for n, end in enumerate(play(main())):
        if n in guilty:
            assert isinstance(end, GuiltyImageError)
            assert end.args == (n,)
        else:
            assert end == n
    # The halves of halves: each level of the tree runs an innocent image at most once.
    assert max(engine.computed.values()) <= 1 + np.ceil(np.log2(size))


def test_an_answer_that_lacks_an_image_fails_like_a_run() -> None:
    class Short(FakeEngine):
        async def infer(
            self, images: Images, outputs: tuple[str, ...], *, lone: bool, limit: float
        ) -> Outputs:
            answer = await super().infer(images, outputs, lone=lone, limit=limit)
            return {name: array[: max(1, len(images) - 1)] for name, array in answer.items()}

    async def main() -> list[float]:
        batcher = opened(Short())
        return await asyncio.gather(*(ask(batcher, n) for n in range(4)))

    assert play(main()) == [0, 1, 2, 3]


@pytest.mark.parametrize("error", [Overloaded("full", retry_after=1), DeadlineExceeded("late")])
def test_what_is_no_images_fault_is_told_to_all_and_not_tried_in_halves(error: Exception) -> None:
    class Refusing(FakeEngine):
        async def infer(
            self, images: Images, outputs: tuple[str, ...], *, lone: bool, limit: float
        ) -> Outputs:
            await super().infer(images, outputs, lone=lone, limit=limit)
            raise error

    engine = Refusing()

    async def main() -> list[float | BaseException]:
        batcher = opened(engine)
        return await asyncio.gather(*(ask(batcher, n) for n in range(4)), return_exceptions=True)

    assert play(main()) == [error] * 4
    assert engine.runs == [[0, 1, 2, 3]]


def test_a_run_may_take_until_the_last_deadline_in_its_batch() -> None:
    engine = FakeEngine()

    async def main() -> None:
        batcher = opened(engine)
        await asyncio.sleep(1)
        asks = [ask(batcher, n, deadline) for n, deadline in enumerate((5.0, 8.0, 3.0))]
        await asyncio.gather(*asks)

    play(main())
    assert engine.limits == [7.0]


def test_while_the_engine_is_gone_nothing_is_accepted() -> None:
    engine = FakeEngine(ready=False)

    async def main() -> None:
        batcher = opened(engine)
        with pytest.raises(Overloaded) as refused:
            await ask(batcher, 0)
        assert refused.value.retry_after == 1
        assert batcher.shed == {"gone": 1}
        engine.ready = True
        assert await ask(batcher, 1) == 1

    play(main())
    assert engine.runs == [[1]]


def test_what_nobody_waits_for_leaves_the_queue_and_is_not_computed() -> None:
    engine = FakeEngine(max_batch=1)

    async def main() -> None:
        batcher = opened(engine, max_queue=2)
        first = asyncio.create_task(ask(batcher, 0))
        await asyncio.sleep(0.1)
        gone = asyncio.create_task(ask(batcher, 1))
        stays = asyncio.create_task(ask(batcher, 2))
        await asyncio.sleep(0.1)
        gone.cancel()
        await asyncio.sleep(0.1)
        assert batcher.depth == 1
        assert await asyncio.gather(first, stays, ask(batcher, 3)) == [0, 2, 3]

    play(main())
    assert engine.runs == [[0], [2], [3]]


def test_what_is_past_its_deadline_is_told_in_time_and_not_computed() -> None:
    engine = FakeEngine(max_batch=1, fixed=10)

    async def main() -> None:
        batcher = opened(engine)
        running = asyncio.create_task(ask(batcher, 0))
        await asyncio.sleep(1)
        with pytest.raises(DeadlineExceeded):
            await ask(batcher, 1, deadline=4.0)
        assert asyncio.get_running_loop().time() == 4.0
        assert await running == 0

    play(main())
    assert engine.runs == [[0]]


def test_a_full_queue_refuses_and_tells_when_to_come_again() -> None:
    engine = FakeEngine(max_batch=1, fixed=4)

    async def main() -> None:
        batcher = opened(engine, max_queue=3)
        await ask(batcher, 0)
        waiting = []
        for n in range(1, 5):
            waiting.append(asyncio.create_task(ask(batcher, n)))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert (batcher.running, batcher.depth) == (1, 3)
        with pytest.raises(Overloaded, match="3 images wait") as refusal:
            await ask(batcher, 5)
        assert refusal.value.retry_after == 16
        assert batcher.shed == {"full": 1}
        await asyncio.gather(*waiting)

    play(main())


def test_what_cannot_be_finished_in_time_is_refused_at_the_door() -> None:
    engine = FakeEngine(max_batch=2, fixed=1)

    async def main() -> None:
        batcher = opened(engine)
        await ask(batcher, 0)
        start = asyncio.get_running_loop().time()
        waiting = [asyncio.create_task(ask(batcher, n)) for n in range(1, 9)]
        await asyncio.sleep(0.1)
        assert batcher.depth == 6
        with pytest.raises(Overloaded, match="past its deadline"):
            await ask(batcher, 9, deadline=start + 3)
        assert batcher.shed == {"late": 1}
        assert await ask(batcher, 10, deadline=start + 6) == 10
        await asyncio.gather(*waiting)

    play(main())


def test_one_slow_run_does_not_shut_the_door() -> None:
    engine = FakeEngine(fixed=1000)

    async def main() -> None:
        batcher = opened(engine)
        await ask(batcher, 0)
        engine.fixed = 1
        deadline = asyncio.get_running_loop().time() + 2
        assert await ask(batcher, 1, deadline) == 1

    play(main())


def test_closing_finishes_what_was_accepted_and_refuses_the_rest() -> None:
    engine = FakeEngine(max_batch=2)

    async def main() -> None:
        batcher = opened(engine)
        accepted = [asyncio.create_task(ask(batcher, n)) for n in range(5)]
        await asyncio.sleep(0.5)
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="draining"):
            await ask(batcher, 5)
        await closing
        assert all(request.done() for request in accepted)
        assert await asyncio.gather(*accepted) == [0, 1, 2, 3, 4]

    play(main())


def test_before_its_start_it_refuses() -> None:
    async def main() -> None:
        with pytest.raises(Overloaded, match="starting"):
            await ask(Batcher(FakeEngine(), 10), 0)

    play(main())


def test_when_a_run_is_stopped_its_images_are_answered_and_the_next_go_on() -> None:
    engine = FakeEngine(max_batch=2)

    async def main() -> list[float | BaseException]:
        batcher = opened(engine)
        before = asyncio.all_tasks()
        requests = [asyncio.create_task(ask(batcher, n)) for n in range(4)]
        await asyncio.sleep(0.5)
        (run,) = asyncio.all_tasks() - before - set(requests)
        run.cancel()
        return await asyncio.gather(*requests, return_exceptions=True)

    stopped, also, *others = play(main())
    assert isinstance(stopped, Overloaded)
    assert isinstance(also, Overloaded)
    assert others == [2, 3]


def test_a_run_that_never_ends_shows_a_minute_after_its_deadline_and_holds_up_no_close() -> None:
    engine = FakeEngine(slots=2, fixed=FOREVER)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        batcher = opened(engine)
        with pytest.raises(DeadlineExceeded):
            await ask(batcher, 1, deadline=5.0)
        await asyncio.sleep(59)
        assert not batcher.stuck
        engine.fixed = 1.0
        assert await ask(batcher, 2) == 2
        await asyncio.sleep(1)
        assert batcher.stuck
        await batcher.close()
        assert loop.time() == pytest.approx(66)

    play(main())


def test_a_close_waits_for_a_run_that_may_still_end() -> None:
    engine = FakeEngine(fixed=30.0)

    async def main() -> None:
        batcher = opened(engine)
        with pytest.raises(DeadlineExceeded):
            await ask(batcher, 1, deadline=5.0)
        await batcher.close()
        assert asyncio.get_running_loop().time() == pytest.approx(30)
        assert (batcher.running, batcher.stuck) == (0, False)

    play(main())
