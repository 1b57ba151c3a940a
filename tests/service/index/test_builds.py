"""The local index while a collection is laid anew beside it: whoever uses it never notices."""

import asyncio
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import faiss
import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.app import create_app
from service.bundle import Bundle
from service.errors import DeadlineExceeded, NotFound
from service.index.base import Item
from service.index.local import LocalIndex
from service.settings import Settings
from tests.service.gateways import assert_problem, serving
from tests.service.index.vectors import DIGEST, items, query, ranked

MANY = 2000
FEW = 500
PATIENCE = 60  # seconds; what is held up is held up for longer


class Graphs:
    """Lets a test hold up whatever is about to be added to a graph, and counts what was."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()
        self.added = 0
        self.failing = False
        self._add = faiss.IndexHNSWFlat.add

    def add(self, graph: faiss.IndexHNSWFlat, vectors: np.ndarray) -> None:
        self.reached.set()
        self.go_on.wait(2 * PATIENCE)
        if self.failing:
            raise MemoryError
        self._add(graph, vectors)
        self.added += len(vectors)

    def hold(self) -> None:
        self.reached.clear()
        self.go_on.clear()

    async def held(self) -> None:
        """Wait until a build stands in the middle of a step."""
        assert await asyncio.to_thread(self.reached.wait, PATIENCE)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Graphs]:
    watched = Graphs()
    monkeypatch.setattr(faiss.IndexHNSWFlat, "add", lambda *given: watched.add(*given))
    yield watched
    watched.go_on.set()


async def idle(index: LocalIndex) -> None:
    """Wait for the builds that have begun."""
    async with asyncio.timeout(PATIENCE):
        await asyncio.wrap_future(index._builder._thread.submit(int))


async def built(index: LocalIndex, collection: str = "big") -> None:
    await idle(index)
    assert index._vectors[collection]._laid.graph is not None


async def names(index: LocalIndex, vector: np.ndarray, k: int = 20) -> list[str]:
    return [match.id for match in await index.search("big", vector, DIGEST, k)]


async def test_nothing_waits_for_a_build_and_none_of_it_is_lost(
    tmp_path: Path, graphs: Graphs
) -> None:
    index = LocalIndex(tmp_path, exact_below=FEW)
    held = items(MANY)
    graphs.hold()
    async with asyncio.timeout(PATIENCE):
        await index.put("big", held, DIGEST)
        await graphs.held()
        moved, new = Item("0", -held[0].vector, {}), items(600, seed=1, prefix="new")
        await index.put("big", [moved, *new], DIGEST)
        await index.delete("big", "1")
        await index.delete("big", str(MANY - 1))
        await index.put("other", items(3), DIGEST)
        assert [c.items for c in await index.collections()] == [MANY + 598, 3]
        now = [moved, *held[2:-1], *new]
        for seed in range(10):
            expected = [name for name, _ in ranked(now, query(seed))[:20]]
            assert await names(index, query(seed)) == expected
    assert graphs.added == 0
    graphs.go_on.set()
    await built(index)
    assert graphs.added == MANY + 600  # one of the three had not been copied when it died
    hits = 0
    for seed in range(20):
        truth = {name for name, _ in ranked(now, query(seed))[:10]}
        hits += len(truth & set(await names(index, query(seed), 10)))
    assert hits / 200 > 0.98
    assert await names(index, -held[0].vector, 1) == ["0"]
    assert "1" not in await names(index, held[1].vector, MANY)
    await index.close()


async def test_a_dropped_collections_build_is_given_up(tmp_path: Path, graphs: Graphs) -> None:
    index = LocalIndex(tmp_path, exact_below=FEW)
    graphs.hold()
    async with asyncio.timeout(PATIENCE):
        await index.put("big", items(MANY), DIGEST)
        await graphs.held()
        await index.drop("big")
        again = items(50, seed=1, prefix="again")
        await index.put("big", again, DIGEST)
        graphs.go_on.set()
        await index.put("other", items(MANY), DIGEST)
        await built(index, "other")
    assert graphs.added < MANY + 300  # the step under way, and the other collection
    assert await names(index, query(), 50) == [name for name, _ in ranked(again, query())]
    await index.close()


async def test_closing_waits_for_one_step_and_the_next_start_builds_again(
    tmp_path: Path, graphs: Graphs
) -> None:
    index = LocalIndex(tmp_path, exact_below=FEW)
    graphs.hold()
    for collection in ("big", "waiting"):
        await index.put(collection, items(MANY), DIGEST)
    await graphs.held()
    closing = asyncio.create_task(index.close())
    await asyncio.sleep(0.05)
    assert not closing.done()
    graphs.go_on.set()
    async with asyncio.timeout(PATIENCE):
        await closing
    assert graphs.added < 300
    again = LocalIndex(tmp_path, exact_below=FEW)
    await built(again, "big")
    await built(again, "waiting")
    expected = [name for name, _ in ranked(items(MANY), query())[:5]]
    assert await names(again, query(), 5) == expected
    await again.close()


async def test_a_start_does_not_wait_for_a_graph(tmp_path: Path, graphs: Graphs) -> None:
    held = items(MANY)
    first = LocalIndex(tmp_path)
    await first.put("big", held, DIGEST)
    await first.close()
    graphs.hold()
    index = LocalIndex(tmp_path, exact_below=FEW)
    await graphs.held()
    assert await names(index, query()) == [name for name, _ in ranked(held, query())[:20]]
    graphs.go_on.set()
    await built(index)
    await index.close()


async def test_a_build_that_fails_is_logged_and_tried_again_with_the_next_put(
    tmp_path: Path, graphs: Graphs, caplog: pytest.LogCaptureFixture
) -> None:
    index = LocalIndex(tmp_path, exact_below=FEW)
    held = items(MANY)
    graphs.failing = True
    await index.put("big", held, DIGEST)
    await idle(index)
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert await names(index, query()) == [name for name, _ in ranked(held, query())[:20]]
    graphs.failing = False
    await index.put("big", held[:1], DIGEST)
    await built(index)
    await index.close()


async def test_an_operation_ends_at_its_deadline_and_does_not_start_after_it(
    tmp_path: Path,
) -> None:
    index = LocalIndex(tmp_path)
    held = items(3)
    await index.put("big", held, DIGEST)
    busy = threading.Event()
    index._thread.submit(busy.wait, 2 * PATIENCE)
    soon = asyncio.get_running_loop().time() + 0.05
    late = (
        index.put("big", items(1, prefix="new"), DIGEST, deadline=soon),
        index.get("big", "0", deadline=soon),
        index.delete("big", "0", deadline=soon),
        index.search("big", query(), DIGEST, 3, deadline=soon),
        index.collections(deadline=soon),
        index.drop("big", deadline=soon),
    )
    async with asyncio.timeout(PATIENCE):
        ends = await asyncio.gather(*late, return_exceptions=True)
    assert [type(end) for end in ends] == [DeadlineExceeded] * len(late)
    busy.set()
    assert set(await names(index, query())) == {"0", "1", "2"}
    await index.close()


def test_over_http_a_deadline_is_504_for_the_index_too(bundle: Bundle, tmp_path: Path) -> None:
    app = create_app(Settings(model=bundle.path, data=tmp_path, threads=1))
    with serving(app) as gateway:
        vector = [1.0] * app.state.gateway.model().manifest.dim
        kept = gateway.put("/collections/c/items/a", json={"embedding": vector})
        assert kept.status_code == 200, kept.text
        busy = threading.Event()
        app.state.gateway.index._thread.submit(busy.wait, 2 * PATIENCE)
        gateway.headers["X-Request-Timeout-Ms"] = "100"
        search = {"collection": "c"}
        for answer in (
            gateway.get("/collections"),
            gateway.get("/collections/c/items/a"),
            gateway.put("/collections/other/items/b", json={"embedding": vector}),
            gateway.post("/similar", json=search | {"embedding": vector}),
            gateway.post("/similar", json=search | {"id": "a"}),
            gateway.delete("/collections/c/items/a"),
            gateway.delete("/collections/c"),
        ):
            assert_problem(answer, 504, "deadline_exceeded")
        busy.set()
        gateway.headers["X-Request-Timeout-Ms"] = "30000"
        assert [c["name"] for c in listed(gateway)] == ["c"]
        assert [c["items"] for c in listed(gateway)] == [1]
        refused = gateway.get("/collections", headers={"X-Request-Timeout-Ms": "soon"})
        assert_problem(refused, 422, "invalid_option", "X-Request-Timeout-Ms")


def listed(gateway: httpx.Client) -> list[dict]:
    answer = gateway.get("/collections")
    assert answer.status_code == 200, answer.text
    found: list[dict] = answer.json()["collections"]
    return found


ACTIONS = st.lists(
    st.tuples(st.sampled_from(["put", "put", "delete", "search", "drop"]), st.integers(0, 300)),
    min_size=5,
    max_size=40,
)


@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(ACTIONS)
def test_whatever_is_done_while_builds_come_and_go_is_what_brute_force_says(
    tmp_path_factory: pytest.TempPathFactory, actions: list[tuple[str, int]]
) -> None:
    with patch("service.index.vectors.STEP", 16):
        asyncio.run(against_brute_force(tmp_path_factory.mktemp("index"), actions))


async def against_brute_force(folder: Path, actions: list[tuple[str, int]]) -> None:
    """A graph of this few has no recall to lose, so that each answer is exact, before and after a
    restart."""
    index, truth = LocalIndex(folder, exact_below=40), dict[str, Item]()
    for seed, (action, number) in enumerate([*actions, ("search", 5), ("restart", 0)]):
        if action == "put":
            new = [
                Item(str((number + i.metadata["number"]) % 300), i.vector, i.metadata)
                for i in items(60, seed=seed)
            ]
            await index.put("big", new, DIGEST)
            truth |= {item.id: item for item in new}
        elif action == "delete":
            for name in [str(n) for n in range(number, number + 30) if str(n) in truth]:
                await index.delete("big", name)
                del truth[name]
        elif action == "drop" and number < 30:
            try:
                await index.drop("big")
            except NotFound:
                assert not truth
            truth.clear()
        elif action == "restart":
            await index.close()
            index = LocalIndex(folder, exact_below=40)
        if truth:
            expected = ranked(list(truth.values()), query(seed))[:10]
            found = await index.search("big", query(seed), DIGEST, 10)
            assert [match.id for match in found] == [name for name, _ in expected]
    await index.close()
