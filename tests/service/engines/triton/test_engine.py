"""The engine against the real server; see `tests.triton_servers` for what stands in behind it."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, InferenceServerException
from tritonclient.grpc.aio import InferenceServerClient as AioClient

from service.breaker import FIRST_PAUSE, LONGEST_PAUSE, Breaker
from service.bundle import GRAPH, Bundle, Manifest
from service.engines.base import ServerStatistics
from service.engines.onnx import OnnxEngine
from service.engines.triton import connection, server, servers
from service.engines.triton.engine import TritonEngine
from service.engines.triton.memory import FOLDER, PREFIX
from service.errors import DeadlineExceeded, InvalidOption, Overloaded
from tests.bundles import DIM
from tests.clock import Clock
from tests.ports import HeldPort
from tests.service.engines.batches import OUTPUTS, images
from tests.triton_servers import TritonServer, running, write_repository
from tests.waiting import until

EMBEDDING = ("embedding",)
MARK = 7  # images; no other run has so many


@asynccontextmanager
async def opened(
    bundle: Bundle, *urls: str, shared_memory: bool = False
) -> AsyncIterator[TritonEngine]:
    engine = TritonEngine(bundle, urls, shared_memory=shared_memory)
    try:
        await engine.warm_up()
        yield engine
    finally:
        await engine.close()


@pytest.fixture
def short_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has changed is noticed in a tenth of a second instead of one."""
    monkeypatch.setattr(server, "PAUSE", 0.1)


async def counted(engine: TritonEngine) -> list[ServerStatistics]:
    """What the servers have counted, of each another run of MARK images included.

    A server counts a run after its answer and before it begins the next: the one image of its first
    look, or a run since, has had earlier marks counted, and this mark all that came before it.
    """
    before = await engine.statistics()
    await asyncio.gather(*(engine.infer(images(MARK, 64, 64), EMBEDDING) for _ in before))
    async with asyncio.timeout(60):
        while True:
            now = await engine.statistics()
            if all(n.batches[MARK] > b.batches[MARK] for b, n in zip(before, now, strict=True)):
                return now
            await asyncio.sleep(0.01)


def changed(bundle: Bundle, **fields: Any) -> Bundle:
    manifest = Manifest.model_validate(bundle.manifest.model_dump() | fields)
    return Bundle(bundle.path, manifest)


def ours() -> set[str]:
    """The memory that this process holds; other processes may have some too."""
    held = Path("/proc/self/maps").read_text()
    return {path.name for path in FOLDER.glob(f"{PREFIX}*") if str(path) in held}


@pytest.mark.parametrize("shared_memory", [False, True])
@pytest.mark.parametrize("shape", [(1, 64, 64), (8, 64, 64), (3, 32, 80), (8, 128, 128)])
async def test_answers_are_those_of_the_engine_in_this_process(
    bundle: Bundle, triton: TritonServer, shape: tuple[int, int, int], shared_memory: bool
) -> None:
    other = OnnxEngine(bundle, threads=1)
    batch = images(*shape)
    expected = await other.infer(batch, OUTPUTS)
    async with opened(bundle, triton.url, shared_memory=shared_memory) as engine:
        assert engine.ready
        actual = await engine.infer(batch, OUTPUTS)
        assert set(await engine.infer(batch, EMBEDDING)) == {"embedding"}
    await other.close()
    assert actual.keys() == expected.keys()
    for name, array in actual.items():
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, expected[name], atol=1e-5)


async def test_how_it_is_fed_and_at_what_precision_is_the_servers_to_say(
    bundle: Bundle, triton: TritonServer
) -> None:
    async with opened(bundle, triton.url) as engine:
        assert (engine.name, engine.precision) == ("triton", "fp32")
        assert (engine.max_batch, engine.slots) == (8, 2)


async def test_a_server_with_another_models_digest_is_not_used(
    bundle: Bundle, triton: TritonServer, caplog: pytest.LogCaptureFixture
) -> None:
    stranger = changed(bundle, files=bundle.manifest.files | {GRAPH: "0" * 64})
    async with opened(stranger, triton.url) as engine:
        assert not engine.ready
    assert f"with the digest {bundle.digest}; that of" in caplog.text


async def test_a_server_with_another_signature_is_not_used(
    bundle: Bundle, triton: TritonServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(changed(bundle, dim=DIM + 1), triton.url) as engine:
        assert not engine.ready
    assert f"tiny of Triton at {triton.url} must have an output embedding" in caplog.text


async def test_a_full_queue_refuses_and_what_was_in_it_is_answered(
    bundle: Bundle, triton: TritonServer
) -> None:
    async with opened(bundle, triton.url) as engine:
        triton.hold()
        # Eight images fill a run: of twelve runs one goes on, and four wait.
        runs = [asyncio.create_task(engine.infer(images(8, 64, 64), EMBEDDING)) for _ in range(12)]
        await until(lambda: sum(run.done() for run in runs) >= 12 - 7)
        triton.heal()
        found = await asyncio.gather(*runs, return_exceptions=True)
        assert engine.ready
    refused = [answer for answer in found if isinstance(answer, Exception)]
    assert {type(error) for error in refused} == {Overloaded}
    assert all(error.retry_after == 1 for error in refused)
    assert 4 <= 12 - len(refused) <= 7


async def test_a_run_past_its_deadline_is_given_up_here_and_not_begun_there(
    bundle: Bundle, triton: TritonServer
) -> None:
    async with opened(bundle, triton.url) as engine:
        (before,) = await counted(engine)
        begun = triton.hold()
        first = asyncio.create_task(engine.infer(images(8, 64, 64), EMBEDDING, limit=120))
        await until(begun.exists)
        with pytest.raises(DeadlineExceeded):
            await engine.infer(images(8, 64, 64), EMBEDDING, limit=0.1)
        assert not first.done()
        await asyncio.sleep(0.3)  # There too the time must have passed.
        triton.heal()
        await first
        await engine.infer(images(1, 64, 64), EMBEDDING, limit=120)
        (after,) = await counted(engine)
    assert after.images - before.images == 8 + 1 + MARK


async def test_a_servers_statistics_count_runs_by_their_size(
    bundle: Bundle, triton: TritonServer
) -> None:
    async with opened(bundle, triton.url) as engine:
        (before,) = await counted(engine)
        for _ in range(3):
            await engine.infer(images(5, 64, 64), EMBEDDING)
        (after,) = await counted(engine)
    assert after.server == triton.url
    assert after.ready
    assert after.images - before.images == 15 + MARK
    assert after.batches[5] - before.batches.get(5, 0) == 3
    assert after.compute_seconds > before.compute_seconds
    assert after.queue_seconds > before.queue_seconds


async def test_without_a_server_nothing_is_accepted_until_one_comes(
    bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with HeldPort() as port, caplog.at_level(logging.WARNING):
        nowhere = f"127.0.0.1:{port.number}"
        async with opened(bundle, nowhere) as engine:
            assert not engine.ready
            with pytest.raises(Overloaded) as refused:
                await engine.infer(images(1, 64, 64), EMBEDDING)
            assert refused.value.retry_after == 1
            (told,) = await engine.statistics()
            assert (told.server, told.ready) == (nowhere, False)
            assert engine.precision == "unknown"
    assert "Not ready before a Triton server has the model" in caplog.text
    assert f"Triton at {nowhere} is not used" in caplog.text


async def test_names_that_lead_nowhere_are_asked_again(
    bundle: Bundle, triton: TritonServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "FIND_PAUSE", 0.05)
    found: dict[str, list[str]] = {"model-servers:8001": []}

    async def addresses(url: str) -> list[str]:
        return found[url]

    monkeypatch.setattr(servers, "_addresses", addresses)
    with HeldPort() as port:
        nobody = f"127.0.0.1:{port.number}"
        async with opened(bundle, *found) as engine:
            assert not engine.ready
            found["model-servers:8001"] = [triton.url, nobody]
            await until(lambda: engine.ready)
            assert len(await engine.statistics()) == 2
            found["model-servers:8001"] = [triton.url]
            async with asyncio.timeout(60):
                told = await engine.statistics()
                while len(told) > 1:
                    await asyncio.sleep(0.01)
                    told = await engine.statistics()
            assert [server.server for server in told] == [triton.url]
            found["model-servers:8001"] = []
            await asyncio.sleep(0.3)
            assert engine.ready


async def test_a_name_of_both_families_is_one_server(bundle: Bundle, triton: TritonServer) -> None:
    async with opened(bundle, f"localhost:{triton.port}") as engine:
        assert [told.server for told in await engine.statistics()] == [triton.url]


async def test_pixels_travel_in_memory_that_is_given_back(
    bundle: Bundle, triton: TritonServer
) -> None:
    assert not ours()
    with InferenceServerClient(triton.url) as client:

        def forgotten() -> bool:
            return not client.get_system_shared_memory_status().regions

        # Triton gives up a region when the run that read it has ended, a little after its answer.
        await until(forgotten)
        async with opened(bundle, triton.url, shared_memory=True) as engine:
            runs = (engine.infer(images(8, 64, 64), EMBEDDING) for _ in range(4))
            await asyncio.gather(*runs)
            mine = ours()
            assert 1 <= len(mine) <= 4
            regions = client.get_system_shared_memory_status().regions
            assert regions.keys() == mine
            assert {region.byte_size for region in regions.values()} == {8 * 64 * 64 * 3}
        await until(forgotten)
    assert not ours()
    assert not any((FOLDER / name).exists() for name in mine)


async def test_a_run_given_up_does_not_spoil_the_next_in_its_memory(
    bundle: Bundle, triton: TritonServer
) -> None:
    one, two = images(2, 64, 64), images(2, 64, 64, seed=1)
    async with opened(bundle, triton.url, shared_memory=True) as engine:
        expected = await engine.infer(two, OUTPUTS)
        triton.hold()
        with pytest.raises(DeadlineExceeded):
            await engine.infer(one, OUTPUTS, limit=0.1)
        asyncio.get_running_loop().call_later(0.1, triton.heal)
        actual = await engine.infer(two, OUTPUTS)
    for name, array in expected.items():
        np.testing.assert_allclose(actual[name], array, atol=1e-6)


@pytest.mark.usefixtures("short_looks")
async def test_after_a_restart_the_server_and_its_memory_are_taken_up_again(
    bundle: Bundle, triton: TritonServer
) -> None:
    batch = images(2, 64, 64)
    async with opened(bundle, triton.url, shared_memory=True) as engine:
        expected = await engine.infer(batch, OUTPUTS)
        triton.kill()
        with pytest.raises(Overloaded):
            await engine.infer(batch, OUTPUTS)
        assert not engine.ready
        assert engine.precision == "fp32"  # the name of what is cached
        await asyncio.to_thread(triton.start)
        await until(lambda: engine.ready)
        actual = await engine.infer(batch, OUTPUTS)
        with InferenceServerClient(triton.url) as client:
            assert client.get_system_shared_memory_status().regions.keys() & ours()
    for name, array in expected.items():
        np.testing.assert_allclose(actual[name], array, atol=1e-6)


async def test_memory_that_a_server_forgot_is_told_again(
    bundle: Bundle, triton: TritonServer
) -> None:
    batch = images(2, 64, 64)
    async with opened(bundle, triton.url, shared_memory=True) as engine:
        expected = await engine.infer(batch, EMBEDDING)
        with InferenceServerClient(triton.url) as client:

            def forgotten() -> bool:
                with suppress(InferenceServerException):  # a little after its answer the run ends
                    client.unregister_system_shared_memory()
                return not client.get_system_shared_memory_status().regions

            await until(forgotten)
        actual = await engine.infer(batch, EMBEDDING)
        assert engine.ready
    np.testing.assert_allclose(actual["embedding"], expected["embedding"], atol=1e-6)


async def test_runs_are_spread_over_the_servers(
    bundle: Bundle, tritons: tuple[TritonServer, TritonServer]
) -> None:
    async with opened(bundle, *(server.url for server in tritons)) as engine:
        assert engine.slots == 4
        before = await counted(engine)
        for _ in range(10):
            await asyncio.gather(*(engine.infer(images(1, 64, 64), EMBEDDING) for _ in range(2)))
        after = await counted(engine)
    counts = [b.images - a.images for a, b in zip(before, after, strict=True)]
    assert counts == [10 + MARK, 10 + MARK]


@pytest.mark.usefixtures("short_looks")
async def test_a_server_that_freezes_loses_its_runs_to_the_other(
    bundle: Bundle, tritons: tuple[TritonServer, TritonServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = images(1, 64, 64)

    def hasty(url: str, **options: Any) -> AioClient:
        """Looks at the first server end after two seconds; the other may be late, being busy."""
        made = AioClient(url, **options)
        for name in ("get_model_metadata", "get_model_config") if url == tritons[0].url else ():
            ask = getattr(made, name)
            monkeypatch.setattr(made, name, lambda *a, ask=ask, **_: ask(*a, client_timeout=2))
        return made

    monkeypatch.setattr(connection, "InferenceServerClient", hasty)
    async with opened(bundle, *(server.url for server in tritons)) as engine:
        expected = await engine.infer(batch, EMBEDDING)
        await until(lambda: engine.slots == 4)
        tritons[0].freeze()
        runs = (engine.infer(batch, EMBEDDING, limit=120) for _ in range(6))
        found = await asyncio.gather(*runs)
        assert [told.ready for told in await engine.statistics()] == [False, True]
        tritons[0].heal()
        for answer in found:
            np.testing.assert_allclose(answer["embedding"], expected["embedding"], atol=1e-6)
        await until(lambda: engine.slots == 4)


@pytest.mark.usefixtures("short_looks")
async def test_a_server_whose_runs_fail_is_left_alone(
    bundle: Bundle,
    tritons: tuple[TritonServer, TritonServer],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr(server, "Breaker", lambda name: Breaker(name, clock))
    async with opened(bundle, *(server.url for server in tritons)) as engine:
        await until(lambda: engine.slots == 4)
        failures = tritons[0].fail()
        for _ in range(40):
            await engine.infer(images(1, 64, 64), EMBEDDING)
        assert engine.slots == 2
        # A look that was under way when the third failed may have run a black image.
        assert len(failures.read_text()) in {3, 4}
        tried = len(failures.read_text())
        clock.now += FIRST_PAUSE
        # One black image for each pause that it was left alone.
        await until(lambda: len(failures.read_text()) > tried)
        await asyncio.sleep(0.3)
        assert len(failures.read_text()) in {4, 5}
        tritons[0].heal()

        def again() -> bool:
            clock.now += LONGEST_PAUSE
            return engine.slots == 4

        await until(again)
    assert f"Triton at {tritons[0].url} is left alone after 3 failures" in caplog.text


async def test_a_run_that_fails_everywhere_accuses_no_server(
    bundle: Bundle, tritons: tuple[TritonServer, TritonServer]
) -> None:
    async with opened(bundle, *(server.url for server in tritons)) as engine:
        for server in tritons:
            server.fail()
        for _ in range(5):
            with pytest.raises(InferenceServerException, match="the backend is broken"):
                await engine.infer(images(1, 64, 64), EMBEDDING)
        assert engine.slots == 4


async def test_a_model_of_one_size_says_so_and_once_replaced_is_sent_nothing_more(
    bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_repository(tmp_path / "models", bundle, side=64)
    explicit = ("--model-control-mode=explicit", f"--load-model={bundle.manifest.name}")
    with running(tmp_path / "models", tmp_path, *explicit) as server:
        async with opened(bundle, server.url) as engine:
            assert set(await engine.infer(images(1, 64, 64), EMBEDDING)) == {"embedding"}
            with pytest.raises(InvalidOption, match="takes 64 x 64 alone"):
                await engine.infer(images(1, 32, 80), EMBEDDING)
            assert engine.ready
            write_repository(tmp_path / "models", bundle, digest="another")
            with InferenceServerClient(server.url) as client:
                await asyncio.to_thread(client.load_model, bundle.manifest.name)
            await until(lambda: "with the digest another" in caplog.text)
            assert not engine.ready
