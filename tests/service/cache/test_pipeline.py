"""Photographs through the pipeline, with a real model, a real Redis and its faults."""

import asyncio
from typing import Any

import pytest

from service.breaker import FAILURES
from service.bundle import Bundle
from service.pipeline import Pipeline
from tests.redis_servers import RedisServer
from tests.service.test_pipeline import CROP, after, ask, opened, photos


def sharing(server: RedisServer, **settings: Any) -> dict[str, Any]:
    return {"redis_url": server.url, "cache_redis_timeout": 60, **settings}


@pytest.mark.usefixtures("patient_writes")
async def test_one_gateway_answers_from_what_another_computed(
    bundle: Bundle, redis_server: RedisServer
) -> None:
    data = photos(4)
    async with opened(bundle, **sharing(redis_server)) as (pipeline, engine):
        computed = [await ask(pipeline, one) for one in data]
        assert pipeline.requests == {"miss": 4}
        await pipeline._cache.close()
    async with opened(bundle, **sharing(redis_server)) as (pipeline, engine):
        answers = await asyncio.gather(*(ask(pipeline, one) for one in data * 5))
        for answer, expected in zip(answers, computed * 5, strict=True):
            assert answer.tobytes() == expected.tobytes()
            assert not answer.flags.writeable
        assert engine.images == 0
        # Of identical photographs at once one asks Redis; afterwards memory knows them.
        assert pipeline.requests == {"hit": 4, "coalesced": 16}
        assert reads(pipeline) == {"hit": 4}
        await ask(pipeline, data[0])
        assert reads(pipeline) == {"hit": 4}
        assert pipeline.requests["hit"] == 5


@pytest.mark.usefixtures("patient_writes")
async def test_only_what_redis_does_not_have_is_computed(
    bundle: Bundle, redis_server: RedisServer
) -> None:
    (data,) = photos(1)
    async with opened(bundle, **sharing(redis_server)) as (pipeline, engine):
        embedding = await ask(pipeline, data)
        await pipeline._cache.close()
    async with opened(bundle, **sharing(redis_server)) as (pipeline, engine):
        answer = await pipeline.run(data, CROP, ("attention", "embedding"), after(60))
        assert engine.asked == [("attention",)]
        assert answer["embedding"].tobytes() == embedding.tobytes()
        assert pipeline.requests == {"miss": 1}


@pytest.mark.parametrize("fault", ["killed", "frozen"])
async def test_no_photograph_fails_when_redis_does(
    bundle: Bundle, redis_server: RedisServer, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.breaker.FIRST_PAUSE", 600)
    data = photos(12)
    async with opened(bundle, threads=2) as (pipeline, engine):
        engine.max_batch = 1
        alone = [await ask(pipeline, one) for one in data]
    short = sharing(redis_server, cache_redis_timeout=1, cache_bytes=0, threads=2)
    async with opened(bundle, **short) as (pipeline, _):
        await ask(pipeline, data[0])
        (redis_server.kill if fault == "killed" else redis_server.freeze)()
        for one, expected in zip(data, alone, strict=True):
            assert (await ask(pipeline, one)).tobytes() == expected.tobytes()
        assert reads(pipeline)["error"] == FAILURES
        assert reads(pipeline)["skipped"] == len(data) - FAILURES


async def test_when_the_server_drains_a_photograph_that_waits_for_redis_is_answered(
    bundle: Bundle, redis_server: RedisServer
) -> None:
    async with opened(bundle, **sharing(redis_server)) as (pipeline, engine):
        redis_server.freeze()
        request = asyncio.create_task(ask(pipeline, photos(1)[0]))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        closing = asyncio.create_task(pipeline.close())
        await asyncio.sleep(0)
        assert not pipeline.ready
        redis_server.thaw()
        assert (await request).shape == (bundle.manifest.dim,)
        await closing
        assert engine.images == 1


def reads(pipeline: Pipeline) -> dict[str, int]:
    assert pipeline._cache.redis is not None
    return dict(pipeline._cache.redis.reads)
