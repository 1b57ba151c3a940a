"""The rate limit, beside a bucket counted by hand."""

import asyncio
import random

import pytest

from service.breaker import FAILURES, Breaker
from service.guards import limiters
from service.guards.limiters import LocalLimiter, SharedLimiter
from service.guards.rates import Rate
from tests.clock import Clock
from tests.redis_servers import RedisServer


@pytest.mark.parametrize(
    ("text", "rate"), [("100/s", (100, 1)), ("6000/m", (6000, 60)), (" 5/h ", (5, 3600))]
)
def test_a_rate_is_images_a_second_minute_or_hour(text: str, rate: tuple[int, int]) -> None:
    assert Rate.parse(text) == Rate(*rate)


@pytest.mark.parametrize("text", ["", "100", "0/s", "-1/s", "1.5/s", "5/d", "5/s/s", "5 / s"])
def test_anything_else_is_no_rate(text: str) -> None:
    with pytest.raises(ValueError, match="100/s"):
        Rate.parse(text)


async def test_a_bucket_empties_with_each_image_and_fills_steadily() -> None:
    """The same as a leaky bucket written out: a level that rises with time up to its size."""
    rate, clock, rng = Rate(7, 3), Clock(1000.0), random.Random(0)
    limiter = LocalLimiter(rate, clock)
    level = float(rate.images)
    for _ in range(2000):
        passed = rng.choice([0.0, 0.01, 0.3, 1.0, 4.0])
        clock.now += passed
        level = min(rate.images, level + passed * rate.images / rate.seconds)
        images, debt = rng.randint(1, 3), rng.random() < 0.1
        if abs(level - 1) < 1e-6:
            continue
        bucket = await limiter.take("caller", images, debt=debt)
        assert bucket.allowed == (debt or level >= 1)
        level -= images if bucket.allowed else 0
        filling = (rate.images - level) * rate.seconds / rate.images
        assert bucket.filling == pytest.approx(filling, abs=1e-6)
        assert bucket.left(rate) in {max(0, int(level)), max(0, int(level + 1e-5))}


async def test_after_the_wait_that_it_names_the_caller_is_let_in() -> None:
    rate, clock = Rate(10, 60), Clock(1000.0)
    limiter = LocalLimiter(rate, clock)
    await limiter.take("caller", 25)
    refused = await limiter.take("caller", 1)
    assert not refused.allowed
    assert refused.wait(rate) == 96  # 15 images of debt and the one asked for, at 6 s each
    clock.now += refused.wait(rate)
    assert (await limiter.take("caller", 1)).allowed


async def test_callers_have_buckets_of_their_own_and_many_take_bounded_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limiters, "CALLERS", 100)
    limiter = LocalLimiter(Rate(1, 3600))
    for number in range(1000):
        assert (await limiter.take(f"caller{number}", 1)).allowed
    assert not (await limiter.take("caller999", 1)).allowed
    assert len(limiter) == 100


async def test_gateways_share_one_bucket_in_redis(redis_server: RedisServer) -> None:
    rate = Rate(20, 3600)
    gateways = [SharedLimiter(rate, redis_server.url, 60) for _ in range(2)]
    takes = [gateway.take("alice", 1) for gateway in gateways for _ in range(20)]
    buckets = await asyncio.gather(*takes)
    assert sum(bucket.allowed for bucket in buckets) == 20
    assert min(bucket.left(rate) for bucket in buckets if bucket.allowed) == 0
    assert (await gateways[0].take("bob", 1)).allowed
    await gateways[0].take("bob", 30, debt=True)
    owed = await gateways[1].take("bob", 1)
    assert not owed.allowed
    assert 11 * 180 < owed.wait(rate) <= 12 * 180 + 1
    for gateway in gateways:
        await gateway.close()


async def test_a_bucket_is_forgotten_by_redis_once_it_is_full(
    redis_server: RedisServer,
) -> None:
    limiter = SharedLimiter(Rate(10, 6000), redis_server.url, 60)
    await limiter.take("alice", 1)
    (key,) = redis_server("KEYS", "*")
    assert 300_000 < redis_server("PTTL", key) <= 600_002
    await limiter.close()


async def test_without_redis_each_gateway_limits_alone(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limiters, "Breaker", lambda name: Breaker(name, Clock()))
    limiter = SharedLimiter(Rate(5, 3600), redis_server.url, 0.1)
    asked, ask = [], limiter._script
    monkeypatch.setattr(limiter, "_script", lambda **given: asked.append(given) or ask(**given))
    redis_server.freeze()
    allowed = [(await limiter.take("alice", 1)).allowed for _ in range(100)]
    assert allowed == [True] * 5 + [False] * 95
    assert len(asked) == FAILURES  # A hundred time-outs would take ten seconds.
    redis_server.thaw()
    await limiter.close()
