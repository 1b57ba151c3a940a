import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from service.bundle import Bundle
from service.cache import Cache
from service.engines.base import Images, Outputs
from service.engines.onnx import OnnxEngine
from service.errors import (
    DeadlineExceeded,
    InvalidOption,
    Overloaded,
    UndecodableImage,
    UnsupportedMediaType,
)
from service.images import Limits, View, prepare
from service.pipeline import Pipeline
from service.settings import Settings
from tests.data import dataset
from tests.waiting import until

CROP = View()
EMBEDDING = ("embedding",)
LIMITS = Limits(bytes=10**9, pixels=10**9, patches=10**6)


class WatchedEngine(OnnxEngine):
    """The real engine, which counts what it runs and can be held before it does."""

    def __init__(self, bundle: Bundle, threads: int) -> None:
        super().__init__(bundle, threads)
        self.images = 0
        self.asked: list[tuple[str, ...]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def infer(
        self,
        images: Images,
        outputs: tuple[str, ...],
        *,
        lone: bool = False,
        limit: float | None = None,
    ) -> Outputs:
        self.images += len(images)
        self.asked.append(outputs)
        await self.gate.wait()
        return await super().infer(images, outputs, lone=lone)


@asynccontextmanager
async def opened(bundle: Bundle, **settings: Any) -> AsyncIterator[tuple[Pipeline, WatchedEngine]]:
    """A pipeline of one slot that takes one image at a time."""
    options = Settings(**{"threads": 1, **settings})
    engine = WatchedEngine(bundle, options.threads)
    with ThreadPoolExecutor(options.threads) as decoder:
        pipeline = Pipeline(bundle, engine, options, Cache(options), decoder)
        await pipeline.start()
        engine.slots = engine.max_batch = 1
        yield pipeline, engine
        engine.gate.set()
        await pipeline.close()


def photos(count: int) -> list[bytes]:
    files = sorted(dataset("photos").glob("in1k_*.jpg"))
    return [file.read_bytes() for file in files[:count]]


def after(seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds


def skip(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let time pass at once."""
    loop = asyncio.get_running_loop()
    clock = loop.time
    monkeypatch.setattr(loop, "time", lambda: clock() + seconds)


async def ask(pipeline: Pipeline, data: bytes, seconds: float = 60) -> np.ndarray:
    answer = await pipeline.run(data, CROP, EMBEDDING, after(seconds))
    return answer["embedding"]


def start(pipeline: Pipeline, data: bytes, seconds: float = 60) -> asyncio.Task[np.ndarray]:
    return asyncio.create_task(ask(pipeline, data, seconds))


async def test_an_answer_is_what_the_engine_gives_for_the_prepared_photograph(
    bundle: Bundle,
) -> None:
    outputs = ("attention", "embedding", "patches")
    async with opened(bundle, threads=2) as (pipeline, engine):
        for data in photos(3):
            for view in (CROP, View("whole"), View("whole", 32), View("crop", 128)):
                actual = await pipeline.run(data, view, outputs, after(60))
                image = prepare(data, bundle.manifest.input, view, LIMITS)
                expected = await engine.infer(image[None], outputs, lone=True)
                assert tuple(actual) == outputs
                for name in outputs:
                    np.testing.assert_allclose(actual[name], expected[name][0], atol=1e-5)
                    assert not actual[name].flags.writeable
                np.testing.assert_array_equal(await pipeline.pixels(data, view, after(30)), image)


async def test_a_hit_is_bit_equal_to_the_miss_that_filled_it(bundle: Bundle) -> None:
    (data,) = photos(1)
    async with opened(bundle) as (pipeline, engine):
        miss, hit = await ask(pipeline, data), await ask(pipeline, data)
    assert hit.tobytes() == miss.tobytes()
    assert engine.images == 1
    assert pipeline.requests == {"miss": 1, "hit": 1}


async def test_identical_photographs_in_flight_are_computed_once(bundle: Bundle) -> None:
    first, second = photos(2)
    async with opened(bundle, cache_bytes=0) as (pipeline, engine):
        answers = await asyncio.gather(*(ask(pipeline, d) for d in [first, second] * 8))
    assert engine.images == 2
    assert pipeline.requests == {"miss": 2, "coalesced": 14}
    assert len({answer.tobytes() for answer in answers[::2]}) == 1
    assert len({answer.tobytes() for answer in answers[1::2]}) == 1
    assert answers[0].tobytes() != answers[1].tobytes()


async def test_a_photograph_over_a_megabyte_is_named_by_its_bytes_as_well(bundle: Bundle) -> None:
    large = [path.read_bytes() for path in sorted(dataset("photos").glob("cam_*.jpg"))]
    assert max(map(len, large)) > 1_000_000
    async with opened(bundle) as (pipeline, engine):
        first = await asyncio.gather(*(ask(pipeline, data) for data in large))
        again = await asyncio.gather(*(ask(pipeline, data) for data in large))
    assert [a.tobytes() for a in first] == [a.tobytes() for a in again]
    assert len({a.tobytes() for a in first}) == len(large) == engine.images


async def test_each_view_has_its_own_answer_and_the_default_size_is_a_size(bundle: Bundle) -> None:
    (data,) = photos(1)
    async with opened(bundle) as (pipeline, engine):
        views = [CROP, View("whole"), View("crop", 32), View("crop", bundle.manifest.input.crop)]
        answers = [await pipeline.run(data, view, EMBEDDING, after(60)) for view in views]
        crop, whole, small, same = (answer["embedding"].tobytes() for answer in answers)
        assert len({crop, whole, small}) == 3
        assert same == crop
        assert engine.images == 3
        with pytest.raises(InvalidOption, match="size is 0"):
            await pipeline.run(data, View("crop", 0), EMBEDDING, after(60))


async def test_only_the_outputs_that_are_not_known_are_computed(bundle: Bundle) -> None:
    (data,) = photos(1)
    async with opened(bundle) as (pipeline, engine):
        await ask(pipeline, data)
        answer = await pipeline.run(data, CROP, ("attention", "embedding"), after(60))
        assert answer.keys() == {"attention", "embedding"}
        await pipeline.run(data, CROP, ("attention",), after(60))
    assert engine.asked == [("embedding",), ("attention",)]


async def test_a_flight_that_covers_the_outputs_is_shared(bundle: Bundle) -> None:
    (data,) = photos(1)
    async with opened(bundle) as (pipeline, engine):
        both, one, patches = await asyncio.gather(
            pipeline.run(data, CROP, ("embedding", "attention"), after(60)),
            pipeline.run(data, CROP, ("attention",), after(60)),
            pipeline.run(data, CROP, ("embedding", "patches"), after(60)),
        )
    assert engine.asked == [("embedding", "attention"), ("embedding", "patches")]
    assert one["attention"] is both["attention"]
    np.testing.assert_allclose(patches["embedding"], both["embedding"], atol=1e-6)


async def test_an_unknown_output_is_refused_by_name(bundle: Bundle) -> None:
    async with opened(bundle) as (pipeline, _):
        with pytest.raises(InvalidOption, match="no output 'depth'; it has embedding, patches"):
            await pipeline.run(photos(1)[0], CROP, ("depth",), after(60))


async def test_broken_photographs_among_good_ones_fail_alone(bundle: Bundle) -> None:
    good = photos(6)
    async with opened(bundle, threads=2) as (pipeline, _):
        alone = [await ask(pipeline, data) for data in good]
    half = good[0][: len(good[0]) // 2]
    mixed = [*good[:3], half, b"no image", *good[3:], half]
    async with opened(bundle, threads=2) as (pipeline, engine):
        engine.max_batch = 8
        ends = await asyncio.gather(*(ask(pipeline, d) for d in mixed), return_exceptions=True)
        assert engine.images == len(good)
    assert isinstance(ends[3], UndecodableImage)
    assert isinstance(ends[4], UnsupportedMediaType)
    assert isinstance(ends[8], UndecodableImage)
    for actual, expected in zip(ends[:3] + ends[5:8], alone, strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-6)


async def test_when_one_of_several_gives_up_the_others_are_answered(bundle: Bundle) -> None:
    (data,) = photos(1)
    async with opened(bundle) as (pipeline, engine):
        engine.gate.clear()
        gone, *others = [start(pipeline, data) for _ in range(3)]
        await until(lambda: engine.images == 1)
        gone.cancel()
        await asyncio.wait([gone])
        assert gone.cancelled()
        engine.gate.set()
        assert len({answer.tobytes() for answer in await asyncio.gather(*others)}) == 1
        assert engine.images == 1


async def test_when_all_give_up_nothing_is_computed(bundle: Bundle) -> None:
    first, second = photos(2)
    async with opened(bundle) as (pipeline, engine):
        engine.gate.clear()
        running = start(pipeline, first)
        await until(lambda: engine.images == 1)
        waiting = [start(pipeline, second) for _ in range(3)]
        await until(lambda: pipeline.batcher.depth == 1)
        for request in waiting:
            request.cancel()
        await asyncio.wait(waiting)
        await asyncio.sleep(0)
        assert pipeline.batcher.depth == 0
        engine.gate.set()
        await running
        assert engine.images == 1
        assert (await ask(pipeline, second)).shape == (bundle.manifest.dim,)
        assert engine.images == 2


async def test_a_photograph_given_up_before_it_is_decoded_is_not_computed(bundle: Bundle) -> None:
    first, second = photos(2)
    async with opened(bundle) as (pipeline, engine):
        stays, gone = start(pipeline, first), start(pipeline, second)
        await asyncio.sleep(0)
        gone.cancel()
        await stays
        assert gone.cancelled()
    assert engine.images == 1


@pytest.mark.parametrize("stage", ["decoding", "queued", "running"])
async def test_each_who_waits_for_one_photograph_has_a_deadline_of_its_own(
    bundle: Bundle, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = photos(2)
    async with opened(bundle) as (pipeline, engine):
        engine.gate.clear()
        if stage == "queued":
            other = start(pipeline, second, seconds=600)
            await until(lambda: engine.images == 1)
        hurried = start(pipeline, first)
        if stage == "queued":
            await until(lambda: pipeline.batcher.depth == 1)
        if stage == "running":
            await until(lambda: engine.images == 1)
        patient = start(pipeline, first, seconds=600)
        await asyncio.sleep(0)  # it has come
        skip(100, monkeypatch)
        with pytest.raises(DeadlineExceeded):
            await hurried
        assert not patient.done()
        engine.gate.set()
        assert (await patient).shape == (bundle.manifest.dim,)
        assert pipeline.requests["coalesced"] == 1
        if stage == "queued":
            await other
            assert engine.images == 2


async def test_a_flood_is_refused_before_it_is_decoded(bundle: Bundle) -> None:
    async with opened(bundle, max_queue=2) as (pipeline, engine):
        engine.gate.clear()
        ends = [start(pipeline, data) for data in photos(10)]
        await until(lambda: pipeline.batcher.depth == 1)
        refused = [end for end in ends if end.done()]
        assert len(refused) == 8
        for end in refused:
            error = end.exception()
            assert isinstance(error, Overloaded)
            assert error.retry_after
        with pytest.raises(Overloaded):
            await asyncio.gather(*(pipeline.pixels(data, CROP, after(30)) for data in photos(2)))
        engine.gate.set()
        await asyncio.wait(ends)
        assert sum(end.exception() is None for end in ends) == 2
        assert (await ask(pipeline, photos(10)[9])).shape == (bundle.manifest.dim,)


async def test_in_a_flood_nothing_is_begun_for_what_is_new_and_all_else_is_answered(
    bundle: Bundle,
) -> None:
    known, first, second, new = photos(4)
    async with opened(bundle, max_queue=1) as (pipeline, engine):
        answer = await ask(pipeline, known)
        engine.gate.clear()
        running = start(pipeline, first)
        await until(lambda: engine.images == 2)
        queued = start(pipeline, second)
        await until(lambda: pipeline.batcher.depth == 1)
        with pytest.raises(Overloaded):
            pipeline.begin(new, CROP, EMBEDDING, after(60))  # at once, without anything to await
        np.testing.assert_array_equal(await ask(pipeline, known), answer)
        joined = start(pipeline, second)
        engine.gate.set()
        np.testing.assert_array_equal(await joined, await queued)
        await running


async def test_a_photograph_is_decoded_only_shortly_before_its_turn(bundle: Bundle) -> None:
    flood = [photo + bytes([n]) for n in range(30) for photo in photos(2)]
    async with opened(bundle) as (pipeline, engine):
        engine.gate.clear()
        ends = [start(pipeline, data) for data in flood]
        await asyncio.sleep(0)  # they begin
        # Decoded, it would be told that it is no image.
        with pytest.raises(DeadlineExceeded):
            await ask(pipeline, b"\xff\xd8 broken", seconds=3)
        batcher = pipeline.batcher
        await until(lambda: batcher.expected + batcher.depth == len(flood) - 1)  # one runs
        assert batcher.depth < len(flood) - 10
        engine.gate.set()
        answers = await asyncio.gather(*ends)
        assert len({answer.tobytes() for answer in answers}) == 2


async def test_what_comes_too_late_is_refused_before_it_is_decoded(bundle: Bundle) -> None:
    async with opened(bundle) as (pipeline, engine):
        engine.gate.clear()
        ends = [start(pipeline, data) for data in photos(2)]
        await until(lambda: pipeline.batcher.depth == 1)
        for _ in range(16):
            pipeline.batcher._run_time.observe(1, 20.0)
        # Decoded, it would be told that it is no image.
        with pytest.raises(Overloaded, match="deadline"):
            await ask(pipeline, b"\xff\xd8 broken", seconds=10)
        engine.gate.set()
        await asyncio.gather(*ends)


async def test_closing_answers_what_was_accepted_and_refuses_the_rest(bundle: Bundle) -> None:
    *accepted, late = photos(5)
    async with opened(bundle) as (pipeline, engine):
        assert pipeline.ready
        engine.gate.clear()
        requests = [start(pipeline, data) for data in accepted]
        await until(lambda: engine.images == 1)
        closing = asyncio.create_task(pipeline.close())
        await asyncio.sleep(0)
        assert not pipeline.ready
        with pytest.raises(Overloaded, match="draining"):
            await ask(pipeline, late)
        engine.gate.set()
        answers = await asyncio.gather(*requests)
        await closing
        assert len({answer.tobytes() for answer in answers}) == len(accepted)
        assert not engine.ready


async def test_before_its_start_it_is_not_ready_and_refuses(bundle: Bundle) -> None:
    engine, cache = WatchedEngine(bundle, 1), Cache(Settings())
    with ThreadPoolExecutor(1) as decoder:
        pipeline = Pipeline(bundle, engine, Settings(), cache, decoder)
        assert not pipeline.ready
        with pytest.raises(Overloaded, match="starting"):
            await ask(pipeline, photos(1)[0])
        await pipeline.close()
